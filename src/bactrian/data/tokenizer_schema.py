"""The parts of a tokenizer's files that are read here, as a schema; the rest is the engine's."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bactrian.errors import ModelError
from bactrian.files import schemas

_Id = Annotated[int, Field(ge=0, lt=2**31)]
_HOLES = 1 << 16  # ids that no token has, at most: padding of a vocabulary, not a number that went wrong


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Token(_Schema):
    content: Annotated[str, Field(min_length=1)]
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class _Added(_Token):
    id: _Id


class _Model(_Schema):
    vocab: dict[str, _Id] | list[Annotated[tuple[str, float], Field(strict=False)]]


class _Definition(_Schema):
    """tokenizer.json."""

    model: _Model
    added_tokens: list[_Added] = []


class _Named(_Schema):
    name: str
    template: str


class _Config(_Schema):
    """tokenizer_config.json, with what special_tokens_map.json says."""

    bos_token: str | _Token | None = None
    eos_token: str | _Token | None = None
    pad_token: str | _Token | None = None
    add_bos_token: bool | None = None
    added_tokens_decoder: dict[str, _Token] | None = None
    additional_special_tokens: list[str | _Token] | None = None
    extra_special_tokens: list[str | _Token] | dict[str, str | _Token] | None = None
    chat_template: str | list[_Named] | None = None


_DEFINITION, _CONFIG = TypeAdapter(_Definition), TypeAdapter(_Config)


def check(folder: Path, definition: dict[str, Any], config: dict[str, Any]) -> None:
    """See that the files of a tokenizer are of their types, and no id is out of all proportion. Raises `ModelError`."""
    found = schemas.validate(_DEFINITION, definition, f"{folder}/tokenizer.json", ModelError)
    schemas.validate(_CONFIG, config, f"{folder}/tokenizer_config.json", ModelError)
    vocab = found.model.vocab
    ids = {**vocab} if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    ids.update((token.content, token.id) for token in found.added_tokens)
    last = max(ids, key=ids.__getitem__, default=None)
    if last is None or ids[last] > len(ids) + _HOLES:
        said = "has no tokens" if last is None else f"token {last!r} has the id {ids[last]} of {len(ids)} tokens"
        raise ModelError(f"{folder}/tokenizer.json: {said}; download it again")
