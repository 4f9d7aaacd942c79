"""The tokenizer in a Hugging Face folder: its definition, the ids that have a role, and its chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bactrian.data import gguf_tokenizer, tokenizer_schema
from bactrian.data.plain_text import Json
from bactrian.errors import ModelError
from bactrian.files import documents

_ROLES = ("bos", "eos", "pad")


def read(folder: Path) -> gguf_tokenizer.Description:
    """The tokenizer of a folder, with the tokens that only its configuration states, as `transformers` reads it."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder}: tokenizer.json is missing; save the model with a fast tokenizer")
    definition = _read_json(folder / "tokenizer.json")
    config = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
    if not isinstance(definition.get("model"), dict) or "vocab" not in definition["model"]:
        raise ModelError(f"{folder}/tokenizer.json: has no model with a vocabulary; download it again")
    tokenizer_schema.check(folder, definition, config)
    definition.setdefault("added_tokens", [])
    chat_template = _read_template(folder, config)
    named = _named(config)
    _add_stated(folder, definition, config, named, chat_template or "")
    bos_id, eos_id, pad_id = (_role(folder, definition, config.get(f"{role}_token"), role) for role in _ROLES)
    eos_id = _first_end(folder) if eos_id is None else eos_id
    if eos_id is None:
        raise ModelError(f"{folder}: no end-of-text token; name eos_token in tokenizer_config.json")
    # A tokenizer.json without a post-processor leaves BOS to the configuration.
    if definition.get("post_processor") is None and config.get("add_bos_token") and bos_id is not None:
        bos = _texts(definition)[bos_id]
        definition["post_processor"] = gguf_tokenizer.begin_with(bos, bos_id)
    return gguf_tokenizer.Description(
        definition, bos_id, eos_id, pad_id, chat_template, _ends(folder, definition), tuple(named.items())
    )


def _named(config: Json) -> dict[str, str]:
    """The special tokens that have a name (`bos_token`, `pad_token`, …), as a chat template is given them."""
    extra = config.get("extra_special_tokens")
    stated = {**config, **extra} if isinstance(extra, dict) else config
    return {
        name: text
        for name, token in stated.items()
        if (name.endswith("_token") or name in (extra or ())) and (text := _content(token)) is not None
    }


def _content(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _add_stated(folder: Path, definition: Json, config: Json, named: dict[str, str], template: str) -> None:
    """Adds, in place, the tokens that the configuration states and tokenizer.json lacks, or flags otherwise.

    Their order is that of `transformers`, which gives them the next free ids. A padding token that nothing else
    mentions is left out: it would only make the model larger.
    """
    added = {token["content"]: token for token in definition["added_tokens"]}
    ids = {text: i for i, text in _texts(definition).items()}
    roles = {text for name, text in named.items() if name in ("bos_token", "eos_token")}
    by_id = _by_id(folder, config)
    for token in [*by_id, *_by_name(folder, config, named)]:
        text = token["content"]
        if text not in ids:
            if text in roles:
                continue  # the text of a role that no list of tokens holds is a mistake
            ids[text] = max(ids.values(), default=-1) + 1
        if text not in added or token in by_id:
            added[text] = {"id": ids[text], **token}
    known = {token["content"] for token in definition["added_tokens"]}
    pad, newest = named.get("pad_token"), max(ids, key=ids.__getitem__, default=None)
    is_new = pad == newest and pad in added and pad not in known
    if pad is not None and is_new and pad not in template and "pad_token" not in template:
        added.pop(named.pop("pad_token"))
        config.pop("pad_token", None)
    definition["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])


def _by_id(folder: Path, config: Json) -> list[Json]:
    """The added tokens that tokenizer_config.json states with their ids, in their order."""
    stated = config.get("added_tokens_decoder")
    ordered = sorted((stated or {}).items(), key=lambda item: _number(folder, item[0]))
    return [_flagged(folder, token, special=False) for _, token in ordered]


def _by_name(folder: Path, config: Json, named: dict[str, str]) -> list[Json]:
    """The special tokens that have a name or stand in a list, and those of a file of their own."""
    lists = [config.get("additional_special_tokens"), config.get("extra_special_tokens")]
    more = [token for each in lists if isinstance(each, list) for token in each]
    marked = {*named.values(), *filter(None, map(_content, more))}
    stored = [] if config.get("added_tokens_decoder") else _read_json(folder / "added_tokens.json").items()
    ordered = [text for text, _ in sorted(stored, key=lambda item: _number(folder, item[1]))]
    tokens = [_flagged(folder, {"content": text}, special=text in marked) for text in ordered]
    by_name = [config[name] if isinstance(config.get(name), dict) else text for name, text in named.items()]
    tokens += [_flagged(folder, token, special=True) for token in by_name]
    return tokens + [_flagged(folder, token, special=isinstance(token, str)) for token in more]


def _flagged(folder: Path, token: Any, special: bool) -> Json:
    """An added token as tokenizer.json writes it, without its id."""
    text, stated = _content(token), token if isinstance(token, dict) else {}
    if not text:
        raise ModelError(f"{folder}/tokenizer_config.json: an added token has no content; download it again")
    special = bool(stated.get("special", special))
    flags = {**gguf_tokenizer.EXACT, "normalized": not special}
    return {"content": text, **{flag: bool(stated.get(flag, default)) for flag, default in flags.items()},
            "special": special}  # fmt: skip


def _number(folder: Path, stated: Any) -> int:
    try:
        return int(stated)
    except (TypeError, ValueError):
        raise ModelError(f"{folder}: {stated!r} is not the id of an added token; download the model again") from None


def _role(folder: Path, definition: Json, token: str | Json | None, role: str) -> int | None:
    """The id of the token with this role, by its text in the tokenizer's files."""
    text = _content(token)
    if text is None:
        return None
    ids = [i for i, known in _texts(definition).items() if known == text]
    if not ids:
        raise ModelError(f"{folder}: {role}_token {text!r} is not in the vocabulary of tokenizer.json")
    return ids[0]


def _first_end(folder: Path) -> int | None:
    """The id of EOS where the tokenizer's files name none."""
    ids = [i for name in ("generation_config.json", "config.json") for i in _stop_ids(folder, name)]
    return ids[0] if ids else None


def _ends(folder: Path, definition: Json) -> tuple[int, ...]:
    """The tokens at which generation stops, by the model's files: all that generation_config.json states, and of
    what config.json states, which is often left over from another vocabulary, those set apart from text."""
    stated, guessed = _stop_ids(folder, "generation_config.json"), _stop_ids(folder, "config.json")
    if _read_json(folder / "generation_config.json").get("_from_model_config"):
        stated, guessed = [], [*stated, *guessed]
    apart = {token["id"] for token in definition["added_tokens"]}
    return tuple(dict.fromkeys([*stated, *(i for i in guessed if i in apart)]))


def _stop_ids(folder: Path, name: str) -> list[int]:
    """`eos_token_id` of a file, which is one or a list of them."""
    stated = _read_json(folder / name).get("eos_token_id")
    values = stated if isinstance(stated, list) else [stated]
    return [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value >= 0]


def _texts(definition: Json) -> dict[int, str]:
    vocab = definition["model"]["vocab"]
    pairs = vocab.items() if isinstance(vocab, dict) else ((piece, i) for i, (piece, _) in enumerate(vocab))
    return {i: text for text, i in pairs} | {token["id"]: token["content"] for token in definition["added_tokens"]}


def with_roles(definition: Json, roles: list[int | None], ends: Sequence[int] = ()) -> list[Json]:
    """The added tokens, where those that have a role, or end a turn, are special even if the file does not say so.

    A special token is found as it is written, not after the text was normalized: else `Hi</s>` of Llama 2's older files
    holds none, since a space belongs in front of it.
    """
    added = {token["id"]: token for token in definition["added_tokens"]}
    for i in roles:
        if i is not None:
            known = added.get(i) or {"id": i, "content": _texts(definition)[i], **gguf_tokenizer.EXACT}
            added[i] = {**known, "special": True}
    added |= {i: {**added[i], "special": True} for i in ends if i in added}
    if definition.get("normalizer"):
        added = {i: {**token, "normalized": False} if token["special"] else token for i, token in added.items()}
    return [added[i] for i in sorted(added)]


def _read_json(path: Path) -> Json:
    """The object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    where = f"{path}: not valid JSON"
    value = documents.parse_json(path.read_bytes(), where, ModelError, "download it again")
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object; download it again")
    return value


def _read_template(folder: Path, config: Json) -> str | None:
    """The chat template: a file of its own comes first; of several named ones, the one named default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_bytes().decode("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((named["template"] for named in template if named.get("name") == "default"), None)
    return template
