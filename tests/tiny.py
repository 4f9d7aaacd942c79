"""A tiny world, made offline in a second: a real Hugging Face folder with random weights, data, and a recipe.

folder/base/              2 layers of width 32, a byte-level BPE tokenizer of 400 tokens, a ChatML template
folder/sft.jsonl          conversations, sft-heldout.jsonl some more
folder/pairs.jsonl        preference pairs, pairs-heldout.jsonl some more
folder/prompts.jsonl      questions
folder/recipe.toml        SFT and DPO on them
"""

import contextlib
import fcntl
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[1] / "src"
SECRET = "hf_" + "abcdefghijklmnopqrstuvwxyz01234567"  # of nobody; must never be seen in what a run writes

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLACES = ["harbour", "market", "bakery", "library", "garden", "station", "school", "tower"]
THINGS = ["bread", "fish", "books", "flowers", "lamps", "maps", "apples", "letters"]
PEOPLE = ["Ada", "Boris", "Clara", "Dmitri"]

RECIPE = """\
name = "tiny"
seed = 5

[model]
source = "base"
chat = "model"
compute_dtype = "float32"

[sft]
batch_size = 4
epochs = 3
max_length = 96
row_length = 128
microbatch_rows = 2
evaluate_every = 6
checkpoint_every = 3
data = [{ path = "sft.jsonl", format = "messages", licence = "cc0-1.0" }]
heldout = [{ path = "sft-heldout.jsonl", format = "messages" }]
optimizer = { learning_rate = 1e-2, warmup_ratio = 0.1 }

[dpo]
batch_size = 4
epochs = 2
max_length = 96
row_length = 128
microbatch_rows = 2
evaluate_every = 6
checkpoint_every = 3
data = [{ path = "pairs.jsonl", format = "preference" }]
heldout = [{ path = "pairs-heldout.jsonl", format = "preference" }]
optimizer = { learning_rate = 3e-3 }

[evaluation]
prompts = "prompts.jsonl"
max_tokens = 16
rules = [
  { name = "greets", any_of = ['\\bgood day\\b'] },
  { name = "on_topic", column = "about", none_of = ['\\bgo away\\b'] },
]

[export]
name = "Tiny"
licence = "cc0-1.0"

[tracking]
tensorboard = false
"""


class Done(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def make(folder: Path) -> Path:
    """Write the whole world into a folder; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(index) for index in range(40)]
    conversations = [{"messages": _conversation(row, index)} for index, row in enumerate(rows)]
    pairs = [{"prompt": ask, "chosen": kind, "rejected": rude} for ask, kind, rude, _ in rows]
    write_rows(folder / "sft.jsonl", conversations[:24])
    write_rows(folder / "sft-heldout.jsonl", conversations[24:30])
    write_rows(folder / "pairs.jsonl", pairs[:24])
    write_rows(folder / "pairs-heldout.jsonl", pairs[24:30])
    write_rows(folder / "prompts.jsonl", [{"prompt": ask, "about": [thing]} for ask, _, _, thing in rows[30:34]])
    model(folder / "base", "\n".join(text for row in rows for text in row))
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.toml"


def _row(index: int) -> tuple[str, str, str, str]:
    """A question, a kind answer, a rude one, and the thing that both are about."""
    # Steps that share no factor with the lists' lengths bring every combination before one comes back.
    person, place, thing = PEOPLE[index % 4], PLACES[(index * 3) % 8], THINGS[(index * 5 + index // 8) % 8]
    ask = f"Where does {person} find {thing}?"
    return ask, f"Good day! {person} finds {thing} at the {place}.", f"Go away, {thing} are not for {person}.", thing


def _conversation(row: tuple[str, str, str, str], index: int) -> list[dict[str, str]]:
    ask, answer, _, thing = row
    turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    if index % 3 == 0:
        turns += [{"role": "user", "content": "Thanks!"}, {"role": "assistant", "content": f"Enjoy the {thing}."}]
    return turns


def model(folder: Path, text: str, width: int = 32, seed: int = 0) -> None:
    """Save a random model, with a tokenizer trained on `text`, as a Hugging Face folder."""
    import jax
    import tokenizers as engines
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from bactrian.data import tokenizer as tokenizers
    from bactrian.model import llama, weights

    special = ["<|im_start|>", "<|im_end|>"]
    engine = engines.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator([text], trainer)
    eos_id = special.index("<|im_end|>")  # they come first
    tokenizer = tokenizers.Tokenizer(engine.to_str(), eos_id, chat_template=TEMPLATE)
    config = llama.Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=width // 4,
        max_positions=512,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
    )
    folder.mkdir(parents=True)
    weights.save(folder, config, llama.init(config, jax.random.PRNGKey(seed)), "float32", (eos_id,), None)
    tokenizers.save(tokenizer, folder, config.max_positions)


def write_rows(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def environment(cache: Path, **more: str) -> dict[str, str]:
    """What the command runs in: the package from this working copy, a cache of its own, no network."""
    return {**os.environ, "PYTHONPATH": str(SOURCE), "BACTRIAN_CACHE": str(cache), "HF_HUB_OFFLINE": "1", **more}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bactrian", *map(str, arguments)]


def run(arguments: Sequence[object], cache: Path, stdin: str = "", timeout: float = 240, **more: str) -> Done:
    """Run the command in a process of its own."""
    told = {"input": stdin, "env": environment(cache, **more), "timeout": timeout}
    done = subprocess.run(command(*arguments), capture_output=True, text=True, **told)
    return Done(done.returncode, done.stdout, done.stderr)


def call(*arguments: object, stdin: str = "") -> Done:
    """Run the command in this process: the same `main`, without the seconds that a start takes."""
    from bactrian import progress
    from bactrian.cli import app

    out, err = io.StringIO(), io.StringIO()
    before, sys.argv, given, sys.stdin = sys.argv, ["bactrian", *map(str, arguments)], sys.stdin, io.StringIO(stdin)
    progress.console.file = err
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app.main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        sys.argv, sys.stdin = before, given
        progress.console.file = None  # pyright: ignore[reportAttributeAccessIssue]  (rich takes stderr then)
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def once(folder: Path) -> Iterator[bool]:
    """Makes a folder once for all the test processes of a session: true for the one that is to fill it."""
    marker = folder.with_name(f"{folder.name}.made")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not marker.exists()
        marker.touch()
