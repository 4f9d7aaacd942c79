"""The tokenizer in a Hugging Face folder: its definition, the ids that have a role, and its chat template."""

import json
from pathlib import Path

from bactrian.data import gguf_tokenizer
from bactrian.data.plain_text import Json
from bactrian.errors import ModelError


def read(folder: Path) -> gguf_tokenizer.Description:
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder}: tokenizer.json is missing; save the model with a fast tokenizer")
    definition = _read_json(folder / "tokenizer.json")
    config = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
    if not isinstance(definition.get("model"), dict) or "vocab" not in definition["model"]:
        raise ModelError(f"{folder}/tokenizer.json: has no model with a vocabulary; download it again")
    definition.setdefault("added_tokens", [])
    bos_id = _role(folder, definition, config.get("bos_token"), "bos")
    eos_id = _role(folder, definition, config.get("eos_token"), "eos")
    pad_id = _role(folder, definition, config.get("pad_token"), "pad")
    if eos_id is None:
        raise ModelError(f"{folder}: no end-of-text token; name eos_token in tokenizer_config.json")
    # A tokenizer.json without a post-processor leaves BOS to the configuration.
    if definition.get("post_processor") is None and config.get("add_bos_token") and bos_id is not None:
        bos = _texts(definition)[bos_id]
        definition["post_processor"] = gguf_tokenizer.begin_with(bos, bos_id)
    return gguf_tokenizer.Description(definition, bos_id, eos_id, pad_id, _read_template(folder, config))


def _role(folder: Path, definition: Json, token: str | Json | None, role: str) -> int | None:
    """The id of the token with this role, by its text in the tokenizer's files, or for EOS its id in the model's."""
    if token is None:
        if role != "eos":
            return None
        for name in ("generation_config.json", "config.json"):
            found = _read_json(folder / name).get("eos_token_id")
            found = found[0] if isinstance(found, list) and found else found
            if isinstance(found, int):
                return found
        return None
    text = token["content"] if isinstance(token, dict) else token
    ids = [i for i, known in _texts(definition).items() if known == text]
    if not ids:
        raise ModelError(f"{folder}: {role}_token {text!r} is not in the vocabulary of tokenizer.json")
    return ids[0]


def _texts(definition: Json) -> dict[int, str]:
    vocab = definition["model"]["vocab"]
    pairs = vocab.items() if isinstance(vocab, dict) else ((piece, i) for i, (piece, _) in enumerate(vocab))
    return {i: text for text, i in pairs} | {token["id"]: token["content"] for token in definition["added_tokens"]}


def with_roles(definition: Json, roles: list[int | None]) -> list[Json]:
    """The added tokens, where those that have a role are special even if the file does not say so."""
    added = {token["id"]: token for token in definition["added_tokens"]}
    for i in roles:
        if i is not None:
            known = added.get(i) or {"id": i, "content": _texts(definition)[i], **gguf_tokenizer.EXACT}
            added[i] = {**known, "special": True}
    return [added[i] for i in sorted(added)]


def _read_json(path: Path) -> Json:
    """The object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error}); download it again") from error
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
