import codecs
import io
import itertools

import pytest

from bactrian.errors import InputError
from bactrian.inference import terminal
from bactrian.inference.engine import Settings
from bactrian.inference.terminal import Turn


class FakeEngine:
    """Answers the n-th prompt with the n-th text, one byte a token; Ctrl-C comes after so many."""

    def __init__(self, *texts: str, interrupt_after: int | None = None):
        self.texts = iter(texts)
        self.interrupt_after = interrupt_after
        self.prompts: list[str] = []

    def stream(self, prompt, settings):
        self.prompts.append(bytes(prompt).decode())
        for count, byte in enumerate(next(self.texts).encode()):
            if count == self.interrupt_after:
                raise KeyboardInterrupt
            yield byte


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _prompt_ids(turns: list[Turn]) -> list[int]:
    return list("".join(f"{role[0]}:{content};" for role, content in turns).encode())


class Bytes:
    """The text of bytes, given as far as they are characters."""

    def __init__(self, _before):
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        return self.decoder.decode(bytes([token]))

    def end(self) -> str:
        return self.decoder.decode(b"", final=True)


def _chat(engine, **options) -> None:
    options = {"max_positions": 1000, **options}
    terminal.chat(engine, _prompt_ids, Bytes, Settings(max_tokens=10), **options)


@pytest.fixture
def typed(monkeypatch):
    """Has these lines come from a pipe, or from a user at a terminal; an exception among them is raised there."""

    def type_in(*lines, at_terminal: bool = False) -> None:
        monkeypatch.setattr("sys.stdin", (Terminal if at_terminal else io.StringIO)("\n".join(map(str, lines)) + "\n"))
        left = itertools.chain(lines, [EOFError()])

        def read(_prompt: str) -> str:
            line = next(left)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)

    return type_in


def test_lines_of_a_pipe_are_answered_on_standard_output_alone(typed, capsys):
    typed("hi", "", "more")
    engine = FakeEngine("hello", "[b]yes")
    _chat(engine, system="be kind")
    captured = capsys.readouterr()
    assert captured.out == "hello\n[b]yes\n"
    assert "tokens/s" in captured.err
    assert engine.prompts == ["s:be kind;u:hi;", "s:be kind;u:hi;a:hello;u:more;"]


def test_commands(typed, capsys):
    typed("one", "/reset", "two", "/system be brief", "three", "/system", "four", "/exit", "five")
    engine = FakeEngine("1", "2", "3", "4")
    _chat(engine)
    assert engine.prompts == [
        "u:one;",
        "u:two;",
        "s:be brief;u:two;a:2;u:three;",
        "u:two;a:2;u:three;a:3;u:four;",
    ]


def test_an_unknown_command_is_an_error_and_a_path_is_a_message(typed):
    typed("/etc/passwd is what?", "/rest")
    engine = FakeEngine("a file")
    with pytest.raises(InputError, match="/rest is not a command"):
        _chat(engine)
    assert engine.prompts == ["u:/etc/passwd is what?;"]


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(typed, capsys):
    typed("one", KeyboardInterrupt(), "/nope", "two", at_terminal=True)
    engine = FakeEngine("hello", "world", interrupt_after=3)
    _chat(engine)
    assert engine.prompts == ["u:one;", "u:one;a:hel;u:two;"]
    assert "/nope is not a command" in capsys.readouterr().out


def test_the_oldest_exchanges_go_when_the_conversation_is_full_and_it_says_so(typed, capsys):
    typed("one", "two", "three", "x" * 24)
    engine = FakeEngine("1", "2", "3", "4")
    _chat(engine, max_positions=40)
    assert engine.prompts == ["u:one;", "u:one;a:1;u:two;", "u:one;a:1;u:two;a:2;u:three;", f"u:{'x' * 24};"]
    assert "dropped its oldest 3 of 3 exchanges" in capsys.readouterr().err


def test_a_message_that_cannot_fit_is_refused_and_forgotten(typed, capsys):
    typed("one", "x" * 60, "two", at_terminal=True)
    engine = FakeEngine("1", "2")
    _chat(engine, max_positions=40)
    assert engine.prompts == ["u:one;", "u:one;a:1;u:two;"]
    assert "a prompt of 63 tokens, but 30 is all that 40 positions leave" in capsys.readouterr().out.replace("\n", " ")


def test_an_unfinished_character_at_the_end_is_told(typed, capsys):
    typed("hi", at_terminal=True)
    _chat(FakeEngine("a🐪", interrupt_after=3))
    assert "a\ufffd\n" in capsys.readouterr().out


def test_an_answer_cannot_drive_the_terminal(typed, capsys):
    typed("hi")
    _chat(FakeEngine("a\x1b[2Jb\tc"))
    assert capsys.readouterr().out == "a[2Jb\tc\n"
