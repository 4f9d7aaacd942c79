"""What a MODEL argument stands for: a model's folder or file, its architecture, its tokenizer and its chat format."""

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from bactrian import progress
from bactrian.data import served
from bactrian.data import tokenizer as tokenizers
from bactrian.data.chat import Chat
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import ModelError
from bactrian.files import folders
from bactrian.files.cache import cache_root
from bactrian.inference.engine import Engine
from bactrian.model import hub, llama, tensors, weights
from bactrian.model import mesh as meshes
from bactrian.model.llama import Dtype

ChatFormat = Literal["tulu", "model"]

_READ_AGAIN = 2**28  # weights at most that an export reads again


@dataclass(frozen=True)
class Assistant:
    """A model that is at hand on disk; its weights are read when they are asked for."""

    path: Path
    config: llama.Config
    tokenizer: Tokenizer
    now: datetime = field(default_factory=datetime.now)  # what its chat template is told of the time

    def chat(self, format: ChatFormat, learn: Literal["all", "last"] = "all") -> Chat:
        """The chat format, Tulu's or the model's own template."""
        return Chat(self.tokenizer, format, learn, self.now)

    def parameters(self, dtype: Dtype = "float32", mesh: Mesh | None = None) -> llama.Parameters:
        """The weights, with an embedding for every token of the tokenizer; on the devices of a mesh, if it is given."""
        stored = weights.read_config(self.path)
        parameters = weights.load(self.path, dtype, None if mesh is None else meshes.of_parameters(mesh, stored))
        if stored.vocab_size < self.config.vocab_size:
            _, parameters = weights.resize_embeddings(stored, parameters, self.config.vocab_size)
        return parameters if mesh is None else jax.device_put(parameters, meshes.of_parameters(mesh, self.config))

    def engine(self, dtype: Dtype = "float32") -> Engine:
        """The model ready to generate."""
        return Engine(self.config, self.parameters(dtype), dtype=dtype)


def find(model: str, add_tokens: tuple[str, ...] = (), max_positions: int | None = None) -> Assistant:
    """Bring a MODEL to this machine and read what it is, with tokens added to its tokenizer.

    Those of them that the chat format writes, no text becomes; the others are words. `max_positions`
    takes the place of what the model says of itself. Raises `ModelError`, also where its weights are not whole.
    """
    enable_compile_cache()
    path = hub.locate(model)
    source = tensors.open_model(path)
    for remark in source.remarks:
        progress.say(remark)
    config = source.config
    tokenizer = tokenizers.load(path)
    if add_tokens:
        tokenizer = tokenizer.add_tokens(add_tokens, special=False)
    if tokenizer.vocab_size > config.vocab_size:
        config = replace(config, vocab_size=tokenizer.vocab_size)
    if max_positions is not None:
        config = replace(config, max_positions=max_positions)
    return Assistant(path, config, tokenizer)


def save(folder: Path, assistant: Assistant, parameters: llama.Parameters, chat: Chat, dtype: Dtype) -> None:
    """Write a Hugging Face folder, whole or not at all, whose chat template is the format that was trained.

    Where there are several processes all must call, and the first one writes.
    """

    def save_weights(into: Path) -> None:
        weights.save(into, assistant.config, parameters, dtype, chat.stop_ids, chat.tokenizer.bos_id)

    if jax.process_index():
        save_weights(folder)
        return
    with folders.replacing(folder) as temporary:
        save_weights(temporary)
        _save_tokenizer(temporary, assistant, chat)
        served.check(temporary, chat, str(folder))
        _check_weights(temporary, assistant.config, parameters, dtype, str(folder))


def check_export(assistant: Assistant, chat: Chat, model: str) -> None:
    """Raise `ModelError` where others would read a conversation otherwise than it is trained; `model` names it."""
    with tempfile.TemporaryDirectory() as folder:
        _save_tokenizer(Path(folder), assistant, chat)
        served.check(Path(folder), chat, model)


def _save_tokenizer(folder: Path, assistant: Assistant, chat: Chat) -> None:
    """The tokenizer's files. A SentencePiece model that the assistant came with, which converters read, goes along."""
    tokenizers.save(chat.tokenizer.with_template(chat.jinja()), folder, assistant.config.max_positions)
    pieces = assistant.path / "tokenizer.model"
    if pieces.is_file():
        shutil.copyfile(pieces, folder / pieces.name)


def _check_weights(folder: Path, config: llama.Config, parameters: llama.Parameters, dtype: Dtype, name: str) -> None:
    """Raise `ModelError` where the folder holds another model than it was made from: its settings, the names and
    shapes of its tensors, and where it is small enough to be read again in a moment, every number."""
    if weights.read_config(folder) != replace(config, lora=None):
        raise ModelError(f"{name}: the exported config.json reads as another model; nothing was written")
    sizes = [leaf.size for leaf in jax.tree.leaves(parameters)]
    if jax.process_count() > 1 or sum(sizes) > _READ_AGAIN:
        return
    again = jax.tree.map(np.asarray, weights.load(folder, dtype))
    same = jax.tree.map(lambda one, other: np.array_equal(one, np.asarray(other).astype(one.dtype)), again, parameters)
    if not jax.tree.all(same):
        raise ModelError(f"{name}: the exported weights read as others than were written; nothing was written")


def enable_compile_cache() -> None:
    """Keep compiled programs on disk, so that only the first run of a kind compiles."""
    jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
