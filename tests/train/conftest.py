"""Small random models on both sides, and real and random examples in the few token ids that they use."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from bactrian.data import corpus, screen, sources, tokenizer
from bactrian.data.chat import Chat
from bactrian.data.records import Example
from bactrian.model import llama, weights
from bactrian.recipe import Source

CONFIG = llama.Config(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_positions=128,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """The models are so small that to compile them well takes longer than to run them badly compiled."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Twin(NamedTuple):
    """One model twice: of `transformers`, and of this project."""

    model: Any  # LlamaForCausalLM
    config: llama.Config
    parameters: llama.Parameters


@pytest.fixture(scope="session")
def config() -> llama.Config:
    return CONFIG


@pytest.fixture(scope="session")
def parameters() -> llama.Parameters:
    """Parameters of `config`, larger than usual, so that what a token sees shows in its log-probability."""
    random = np.random.default_rng(2)

    def start(spec: llama.Spec) -> np.ndarray:
        deviation, mean = (0.2, 0.0) if spec.init == "normal" else (0.1, 1.0)
        return random.normal(mean, deviation, spec.shape).astype(np.float32)

    tree = jax.tree.map(start, llama.specs(CONFIG), is_leaf=lambda node: isinstance(node, llama.Spec))
    return jax.tree.map(jax.numpy.asarray, tree)


@pytest.fixture(scope="session")
def pairs() -> list[Example]:
    """Random preference pairs of `config`'s vocabulary."""
    random = np.random.default_rng(0)
    return [random_example(random, shared=int(random.integers(1, 20)), own=(7, 4)) for _ in range(12)]


@pytest.fixture(scope="session")
def conversations() -> list[Example]:
    """Random conversations of `config`'s vocabulary."""
    random = np.random.default_rng(1)
    return [random_example(random, shared=int(random.integers(4, 30)), own=()) for _ in range(12)]


def random_example(random: np.random.Generator, shared: int, own: Sequence[int]) -> Example:
    """An example of random tokens, of which about half are learnt: what ends each branch always is."""
    starts = tuple(shared + sum(own[:branch]) for branch in range(len(own)))
    length = shared + sum(own)
    learn = random.random(length) < 0.5
    learn[[0, *(start for start in starts if shared == 0)]] = False  # nothing comes before them
    learn[[end - 1 for end in (*starts[1:], length)]] = True
    return Example(random.integers(0, CONFIG.vocab_size, length).astype(np.int32), learn, starts)


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Twin]:
    """Makes a random model on both sides: `twin(vocabulary, seed, near=None, tied=False)`.

    One that is `near` another has its numbers with a little noise.
    """
    import torch
    import transformers

    def make(vocabulary: int, seed: int, near: Twin | None = None, tied: bool = False) -> Twin:
        torch.manual_seed(seed)
        settings = transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            tie_word_embeddings=tied,
        )
        model = transformers.LlamaForCausalLM(settings).eval()
        with torch.no_grad():
            if near is not None:
                model.load_state_dict(near.model.state_dict())
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        return Twin(model, weights.read_config(folder), weights.load(folder))

    return make


@pytest.fixture
def gradients(tmp_path: Path) -> Callable[[Any], llama.Parameters]:
    """The gradients that lie in a model of `transformers`, as a tree of ours: they are its weights for a moment."""
    import torch

    def tree(model: Any) -> llama.Parameters:
        kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.grad)
            model.save_pretrained(tmp_path / "gradients")
            for name, parameter in model.named_parameters():
                parameter.copy_(kept[name])
        return weights.load(tmp_path / "gradients")

    return tree


@pytest.fixture(scope="session")
def words(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tokenizer.Tokenizer:
    """Llama 2's tokenizer."""
    folder = tmp_path_factory.mktemp("llama2")
    (folder / "tokenizer.json").write_bytes((shared_data / "llama2_tokenizer" / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return tokenizer.load(folder)


@pytest.fixture(scope="session")
def real(words: tokenizer.Tokenizer) -> Callable[..., list[Example]]:
    """The first examples of a source in Tulu's format, none longer than `max_length` on one path."""

    def load(source: Source, count: int, max_length: int, learn: Any) -> list[Example]:
        limits = corpus.Limits(max_length, max_length * 3 // 2)
        made = corpus.examples(sources.load(source), Chat(words, "tulu", learn), limits)
        return list(islice((example for example in made if not isinstance(example, str)), count))

    return load


@pytest.fixture(scope="session")
def empty_answers(shared_data: Path, words: tokenizer.Tokenizer) -> list[Example]:
    """The four pairs of hh-rlhf in which an answer says nothing but that it is over."""
    source = Source(path=str(shared_data / "hh-rlhf" / "test.jsonl.gz"), format="hh")
    empty = (record for record in sources.load(source) if screen.unusable(record) == "empty_answer")
    return [corpus.render(record, Chat(words, "tulu", "last")) for record in empty]


@pytest.fixture(scope="session")
def reduced() -> Callable[[Iterable[Example]], tuple[list[Example], int]]:
    """Examples with the token ids that occur in them numbered from 0, and how many there are."""

    def reduce(examples: Iterable[Example]) -> tuple[list[Example], int]:
        examples = list(examples)
        ids = np.unique(np.concatenate([example.tokens for example in examples]))
        return [
            Example(np.searchsorted(ids, each.tokens).astype(np.int32), each.learn, each.starts) for each in examples
        ], len(ids)

    return reduce
