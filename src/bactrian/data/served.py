"""An exported tokenizer read as others read it: their ids are those that were trained, or the export is refused.

Others are `transformers` and what is built on it: the folder's chat template in plain Jinja, given the special tokens
by name, then the `tokenizers` library with special tokens found wherever they are written. None of our own reading of
a tokenizer is between; our reader is held against the same ids.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Engine

from bactrian.data import template, tokenizer
from bactrian.data.chat import Chat
from bactrian.data.records import Message, Messages
from bactrian.errors import ChatError, ModelError
from bactrian.files import documents

_TALKS: tuple[tuple[str, ...], ...] = (
    ("user", "Hi", "assistant", "Hello there."),
    ("system", "Be brief.", "user", "Hi", "assistant", "Hello\n\n  there: 12, naïve, 日本語 🐫!"),
    ("user", " a\n", "assistant", "b", "user", "c ", "assistant", "\td\n"),
    ("user", "1", "assistant", "2.", "user", "3", "assistant", ""),
)
_WORDS = 20  # added tokens that are words, of which an answer may hold any


def check(folder: Path, chat: Chat, name: str) -> None:
    """Raise `ModelError` where the tokenizer in a folder gives other ids, other text or other stops than `chat`.

    name: what the folder is called in the message. The folder may hold no generation_config.json yet.
    """
    again = Chat(tokenizer.load(folder), "model", now=chat.now)
    engine = Engine.from_file(str(folder / "tokenizer.json"))
    config = documents.read_json(folder / "tokenizer_config.json", ModelError)
    names = {key: text for key, text in config.items() if key.endswith("_token") and isinstance(text, str)}
    jinja = (folder / "chat_template.jinja").read_bytes().decode()
    for messages, generate in _conversations(chat):
        ids = (chat.prompt(messages) if generate else chat.render(messages)[0]).tolist()
        theirs = engine.encode(_rendered(jinja, messages, names, generate, chat.now), add_special_tokens=False)
        try:
            ours = (again.prompt(messages) if generate else again.render(messages)[0]).tolist()
        except ChatError as error:
            raise ModelError(f"{name}: the exported chat template cannot be read again: {error}") from None
        for who, read in (("other readers", list(theirs.ids)), ("this one", ours)):
            if read != ids:
                _refuse(name, who, chat, ids, read)
        for skip in (False, True):
            if engine.decode(ids, skip_special_tokens=skip) != chat.tokenizer.decode(ids, skip):
                raise ModelError(f"{name}: the exported tokenizer decodes {ids[:20]} otherwise; {_ADVICE}")
    _check_stops(folder, chat, again, name)


def _rendered(jinja: str, messages: Messages, names: dict[str, str], generate: bool, now: datetime) -> str:
    """What `apply_chat_template` renders. `chat` has rendered the same within limits, so none are needed here."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[template.Generation, loopcontrols]
    )
    environment.filters["tojson"] = template.to_json
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return environment.from_string(jinja).render(
        messages=turns,
        tools=None,
        documents=None,
        add_generation_prompt=generate,
        raise_exception=template.refuse,
        strftime_now=now.strftime,
        **names,
    )


_ADVICE = 'use a tokenizer that `transformers` saved, or another chat format (chat = "tulu")'


def _refuse(name: str, who: str, chat: Chat, ids: list[int], read: list[int]) -> None:
    at = next((i for i, (a, b) in enumerate(zip(ids, read, strict=False)) if a != b), min(len(ids), len(read)))
    trained, found = ([chat.tokenizer.written(i) for i in each[at : at + 4]] for each in (ids, read))
    raise ModelError(
        f"{name}: {who} of the exported tokenizer would read a conversation's token {at + 1} and what follows as "
        f"{found}, and it is trained as {trained}; {_ADVICE}"
    )


def _check_stops(folder: Path, chat: Chat, again: Chat, name: str) -> None:
    if not (folder / "generation_config.json").is_file():
        return
    if set(again.stop_ids) != set(chat.stop_ids):
        raise ModelError(
            f"{name}: the export says that generation stops at {sorted(again.stop_ids)}, and the model was taught to "
            f"stop at {sorted(chat.stop_ids)}; {_ADVICE}"
        )


def _conversations(chat: Chat) -> Iterator[tuple[Messages, bool]]:
    """Conversations that the chat format renders, and whether an answer is asked for."""
    special = chat.tokenizer.special
    words = [text for text in chat.tokenizer.set_apart if text not in special and text not in chat.marks][:_WORDS]
    for talk in (*_TALKS, ("user", "Hi", "assistant", "a " + " b ".join(words))):
        messages = tuple(Message(role, text) for role, text in zip(talk[::2], talk[1::2], strict=True))  # type: ignore[arg-type]
        for some, generate in ((messages, False), (messages[:-1], True)):
            with suppress(ChatError):
                chat.prompt(some) if generate else chat.render(some)
                yield some, generate
