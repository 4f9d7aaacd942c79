"""Law: an exported tokenizer that others would read otherwise is refused, by name, and nothing is written."""

import json
from pathlib import Path

import pytest

from bactrian.data import served, tokenizer
from bactrian.data.chat import Chat
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import ModelError


@pytest.fixture
def chat(tiny_recipe: Path) -> Chat:
    return Chat(tokenizer.load(tiny_recipe.parent / "base"), "model")


def _export(chat: Chat, folder: Path) -> Path:
    tokenizer.save(chat.tokenizer.with_template(chat.jinja()), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(chat.stop_ids)}))
    return folder


def _edit(path: Path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("form", ["model", "tulu"])
def test_what_is_saved_is_served(chat: Chat, tmp_path: Path, form):
    served.check(_export(Chat(chat.tokenizer, form), tmp_path), Chat(chat.tokenizer, form), "export")


def test_what_others_would_read_otherwise_is_refused(chat: Chat, tmp_path: Path):
    def lost(definition):
        definition["added_tokens"] = [t for t in definition["added_tokens"] if t["content"] != "<|im_start|>"]

    def eaten(definition):
        definition["added_tokens"][1]["rstrip"] = True

    def merged(definition):
        definition["model"]["merges"] = []

    for number, change in enumerate((lost, eaten, merged)):
        folder = _export(chat, tmp_path / str(number))
        _edit(folder / "tokenizer.json", change)
        with pytest.raises(ModelError, match=r"my/export: .*would read a conversation's token|my/export: .*decodes"):
            served.check(folder, chat, "my/export")


def test_another_template_or_stop_is_refused(chat: Chat, tmp_path: Path):
    folder = _export(chat, tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    with pytest.raises(ModelError, match=r"stops at \[1, 5\]"):
        served.check(folder, chat, "export")
    (folder / "chat_template.jinja").write_text(chat.jinja().replace("assistant", "model"))
    with pytest.raises(ModelError, match=r"cannot be read again: .*prefix-monotone"):
        served.check(folder, chat, "export")


def test_a_special_name_that_the_export_does_not_give_is_seen(chat: Chat, tmp_path: Path):
    text = "{{ mask_token }}" + chat.jinja()
    words: Tokenizer = chat.tokenizer.with_template(text)
    named = Chat(
        words.__class__(words.definition, words.eos_id, None, None, text, (), (("mask_token", "<|im_start|>"),)),
        "model",
    )
    folder = _export(named, tmp_path)
    served.check(folder, named, "export")
    _edit(folder / "tokenizer_config.json", lambda config: config.pop("mask_token"))
    with pytest.raises(ModelError, match="would read a conversation"):
        served.check(folder, named, "export")
