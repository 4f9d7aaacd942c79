"""A chat in the terminal, or over lines of a pipe: answers go to standard output as their tokens arrive.

The room knows token ids only through the two functions it is handed, so any chat format serves.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from bactrian import progress
from bactrian.errors import InputError, printable
from bactrian.files import documents
from bactrian.inference.engine import Ids, Settings

_HELP = (
    "/reset forgets the conversation, /system TEXT sets the system message (none without TEXT), /exit or Ctrl-D ends"
)
_INVISIBLE = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Turn(NamedTuple):
    """One message; `Message(*turn)` is the data path's noun for it."""

    role: str
    content: str


class Streams(Protocol):
    """What the chat asks of an engine."""

    def stream(self, prompt: Ids, settings: Settings) -> Iterator[int]: ...


class Text(Protocol):
    """An answer's text as its tokens arrive; no piece of it ends inside a character."""

    def add(self, token: int) -> str:
        """What is known of the text now, and was not before."""
        ...

    def end(self) -> str:
        """What is left of it when no token comes any more."""
        ...


@dataclass
class _Chat:
    engine: Streams
    prompt_ids: Callable[[list[Turn]], Ids]
    text_after: Callable[[Ids], Text]
    settings: Settings
    max_positions: int
    note: Callable[[str], None]
    system: str
    turns: list[Turn] = field(default_factory=list)


def chat(
    engine: Streams,
    prompt_ids: Callable[[list[Turn]], Ids],
    text_after: Callable[[Ids], Text],
    settings: Settings,
    *,
    max_positions: int,
    system: str = "",
) -> None:
    """Reads messages from standard input and answers each, until /exit or the end of the input.

    `prompt_ids` renders system, user and assistant turns up to the header of the next answer, and `text_after` gives
    the text of tokens that follow such a prompt. In a terminal, Ctrl-C
    stops the answer and what was said of it counts; errors are shown and the chat goes on. From a pipe every line is a
    message, standard output holds the answers alone and the rest goes to standard error; an InputError ends it.
    """
    interactive = sys.stdin.isatty()
    console = progress.Plain(stderr=not interactive)

    def note(text: str) -> None:
        console.print(printable(text), style="dim")

    state = _Chat(engine, prompt_ids, text_after, settings, max_positions, note, system)
    if interactive:
        note(_HELP)
    for line in _decoded(_typed(note) if interactive else sys.stdin):
        try:
            if not _obey(state, line.strip()):
                break
        except InputError as error:
            if not interactive:
                raise
            state.note(str(error))


def _decoded(lines: Iterable[str]) -> Iterator[str]:
    """The lines that a person or a pipe gives. Raises `InputError` where one is no text."""
    try:
        for line in lines:
            if not documents.is_text(line):
                raise InputError("a message is no UTF-8 text; write it in UTF-8")
            yield line
    except UnicodeDecodeError:
        raise InputError("a message is no UTF-8 text; write it in UTF-8") from None


def _typed(note: Callable[[str], None]) -> Iterator[str]:
    """What the user types, line by line, until Ctrl-D."""
    with contextlib.suppress(ImportError):  # not every platform has it
        import readline  # noqa: F401  (importing it gives `input` editing and history)
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print()
            note("/exit or Ctrl-D ends the chat")
        except EOFError:
            print()
            return


def _obey(state: _Chat, line: str) -> bool:
    """Does what a line asks for; False if that is to leave."""
    command, _, rest = line.partition(" ")
    match command:
        case "":
            pass
        case "/exit":
            return False
        case "/help":
            state.note(_HELP)
        case "/reset":
            state.turns.clear()
            state.note("the conversation starts afresh")
        case "/system":
            state.system = rest.strip()
            state.note("system message set" if state.system else "no system message")
        case _ if command.startswith("/") and command[1:].isalpha():
            raise InputError(f"{command} is not a command: {_HELP}")
        case _:
            _answer(state, line)
    return True


def _answer(state: _Chat, message: str) -> None:
    """Prints the answer to a message and keeps both; if the message cannot be asked, the conversation is as before."""
    turns, ids = _prompt_that_fits(state, Turn("user", message))
    text, times = state.text_after(ids), [time.perf_counter()]
    said: list[str] = []

    def say(piece: str) -> None:
        said.append(piece)
        sys.stdout.write(piece.translate(_INVISIBLE))  # an answer must not drive the terminal
        sys.stdout.flush()

    try:
        for token in state.engine.stream(ids, state.settings):
            times.append(time.perf_counter())
            say(text.add(token))
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    say(text.end())
    print(flush=True)
    state.turns = [*turns, Turn("assistant", "".join(said))]
    state.note(_speed(times))


def _prompt_that_fits(state: _Chat, turn: Turn) -> tuple[list[Turn], Ids]:
    """The conversation with the new turn, without its oldest exchanges if they leave no room, and its ids."""
    room = state.max_positions - state.settings.max_tokens
    system = [Turn("system", state.system)] if state.system else []
    for dropped in range(0, len(state.turns) + 1, 2):
        turns = [*state.turns[dropped:], turn]
        ids = state.prompt_ids([*system, *turns])
        if len(ids) <= room:
            if dropped:
                state.note(
                    f"the conversation no longer fits in {state.max_positions} positions: dropped its oldest "
                    f"{dropped // 2} of {len(state.turns) // 2} exchanges"
                )
            return turns, ids
    if room <= 0:
        raise InputError(
            f"{state.max_positions} positions leave no room for a prompt beside {state.settings.max_tokens} tokens of "
            f"answer: lower max_tokens (--max-tokens)"
        )
    raise InputError(
        f"the message makes a prompt of {len(ids)} tokens, but {room} is all that {state.max_positions} positions "
        f"leave beside {state.settings.max_tokens} tokens of answer: shorten it or lower max_tokens (--max-tokens)"
    )


def _speed(times: list[float]) -> str:
    """Tokens per second from the first token on: what comes before is the reading of the prompt."""
    count = len(times) - 1
    if count < 2:
        return f"{count} tokens"
    rate = (count - 1) / max(times[-1] - times[1], 1e-9)
    return f"{count} tokens, {rate:.1f} tokens/s, the first after {times[1] - times[0]:.1f} s"
