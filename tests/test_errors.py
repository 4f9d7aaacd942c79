"""What a machine refuses is a line; what drives a terminal is escaped; bugs stay bugs."""

import errno
import os

import pytest

from bactrian.errors import LONGEST_LINE, line, printable, refusal, shown


def _raised(error: BaseException, behind: BaseException | None = None) -> BaseException:
    try:
        try:
            if behind is not None:
                raise behind
        except BaseException:
            raise error from None if behind is None else behind
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (MemoryError(), "out of memory; free memory"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/final"),
            "out/final: no space left on device; free space",
        ),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many open files; raise ulimit -n"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "x"), "x: file too large; raise ulimit -f"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "cache"), "cache: permission denied; give"),
        (RuntimeError("can't start new thread"), "raise ulimit -u"),
        (ImportError("lib.so: failed to map segment from shared object"), "free memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes"), "out of memory"),
        (ValueError('Error writing "a/b": [OS error 28: ENOSPC No space left on device]'), "free space on the disk"),
    ],
)
def test_what_a_machine_refuses_is_a_line(error: BaseException, named: str):
    for raised in (error, _raised(ValueError("cannot write"), error)):
        said = refusal(raised)
        assert said is not None and said.exit_code == 1
        assert line(said).startswith("failed: ") and named in line(said)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        TypeError("Out of memory"),
        ValueError("no"),
        FileNotFoundError(errno.ENOENT, "no", "f"),
        RecursionError(),
    ],
)
def test_a_bug_stays_a_bug(error: BaseException):
    assert refusal(_raised(error)) is None


def test_a_terminal_is_not_driven_and_text_of_all_languages_stays():
    assert shown("a\x1b[2J\x9b1m\x07\u202e\udc80") == "a\\x1b[2J\\x9b1m\\x07\\u202e\\udc80"
    text = "l’été\u00a0: 漢字\u3000👩\u200d🚀 می\u200cخواهم\n\ttab"
    assert shown(text) == text
    assert printable("  indented\n\t and\u00a0joined \r\n") == "  indented and joined"
    assert len(printable("\x1b" * 10_000)) <= LONGEST_LINE
