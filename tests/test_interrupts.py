"""Law: Ctrl-C ends a command with 130 and one line, whenever it comes; a second one ends it at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from bactrian import interrupts


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_verb_is_interrupted_and_what_was_before_is_back():
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), interrupts.raised() as came:
        assert not came()
        interrupt()
        time.sleep(10)
    assert came()
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_interrupt_in_a_callback_is_raised_again(capsys: pytest.CaptureFixture[str]):
    class Freed:
        def __del__(self):
            interrupt()
            time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt), interrupts.raised():
        Freed()
        time.sleep(10)
    assert capsys.readouterr().err == ""


def test_who_catches_each_goes_on():
    with interrupts.raised() as came, interrupts.each_raised():
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                interrupt()
                time.sleep(10)
    assert not came()


def start(program: list[str], *, shown: int = subprocess.PIPE) -> subprocess.Popen:
    """A process of which Ctrl-C is not ignored, as what a shell in the background starts has it."""
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        environment = {**os.environ, "PYTHONPATH": str(tiny.SOURCE)}
        return subprocess.Popen(program, env=environment, stdout=shown, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, ours)


STUBBORN = """
import time
from bactrian import interrupts
with interrupts.raised():
    for _ in range(2):
        try:
            print("ready", flush=True)
            while True:
                time.sleep(0.05)
        except KeyboardInterrupt:
            pass
"""


def test_a_second_one_leaves_at_once():
    with start([sys.executable, "-c", STUBBORN]) as process:
        for _ in range(2):
            assert process.stdout and process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == interrupts.CODE
        assert process.communicate()[1] == "interrupted again: left at once, and saved nothing more\n"


def test_what_does_not_end_is_ended():
    hurried = STUBBORN.replace("with interrupts.raised()", "interrupts._DEADLINE = 0.2\nwith interrupts.raised()")
    with start([sys.executable, "-c", hurried]) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == interrupts.CODE
        assert process.communicate()[1] == "interrupted\n"


@pytest.mark.parametrize("after", [0.1, 0.2, 0.4, 0.7, 1.0])
def test_whenever_it_comes_a_command_ends_with_a_line(tiny_recipe: Path, after: float):
    # Python has begun when it has said so: before that nothing of ours runs.
    program = "import bactrian.__main__ as it, sys; print('begun', flush=True); it.main()"
    base, pairs = tiny_recipe.parent / "base", tiny_recipe.parent / "pairs.jsonl"
    with start([sys.executable, "-c", program, "score", str(base), str(pairs)]) as process:
        assert process.stdout and process.stdout.readline() == "begun\n"
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=30)[1]
    assert (process.returncode, err) == (130, "interrupted\n")


TALKING = """
import typer
from bactrian.cli.app import app, main
@app.command()
def talk():
    while True:
        typer.echo("and so on " * 100)
main()
"""


def test_a_reader_that_leaves_ends_it_quietly():
    reading, writing = os.pipe()
    with start([sys.executable, "-c", TALKING, "talk"], shown=writing) as process:
        os.close(writing)
        os.read(reading, 10)
        os.close(reading)
        assert process.wait(10) == 128 + signal.SIGPIPE
        assert process.communicate()[1] == ""
