"""Inputs that nobody should give: what a person has, spoilt by a seeded hand, and the command that is given it.

A family makes one input of a folder of its own from a `random.Random`, and returns the command's arguments. The same
seed makes the same input.
"""

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

Arguments = list[object]


class World(NamedTuple):
    """What is spoilt: the tiny world's folder, the small question set's, and a tiny GGUF file."""

    tiny: Path
    questions: Path
    gguf: Path


class Given(NamedTuple):
    """A command's arguments, what stands on its stdin, and the folder that it may write, whole or not at all."""

    arguments: Arguments
    stdin: str = ""
    out: Path | None = None


_SCALARS: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, math.nan, math.inf, 2**31, 2**32 - 1, 2**63, 10**30, 10**400),
    *("", " ", "x", "false", "0", "1e400", "nan", "assistant", "system", "\0", "../..", "/", "hf:a/b", "~nobody"),
    *("\x1b[31mred\x1b[0m", "a\nb\r\u2028c", "\ud800", "\udfff\ud800", "é\u0301\u202e", "{{ 1 / 0 }}", "<|im_end|>"),
]


def odd(random: Random) -> Any:
    """A value that is rarely meant."""
    choice = random.randrange(len(_SCALARS) + 6)
    if choice < len(_SCALARS):
        return _SCALARS[choice]
    make: list[Callable[[], Any]] = [
        lambda: [],
        lambda: {},
        lambda: [random.choice(_SCALARS) for _ in range(3)],
        lambda: {written(random.choice(_SCALARS)): random.choice(_SCALARS)},
        lambda: deep(random.choice((50, 150, 3000))),
        lambda: "long " * random.choice((100, 30_000)),
    ]
    return make[choice - len(_SCALARS)]()


def deep(levels: int) -> Any:
    value: Any = "inside"
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def spoil(tree: Any, random: Random, times: int = 1) -> Any:
    """A tree of JSON values with some of them replaced, removed, doubled or renamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(times):
        node, key = _somewhere(tree, random)
        if node is None:
            return odd(random)
        what = random.randrange(6)
        if what < 3:
            node[key] = odd(random)
        elif what == 3:
            del node[key]
        elif isinstance(node, dict):
            node[written(odd(random))[:200] if what == 4 else f"{key}_"] = node[key]
        else:
            node.insert(random.randrange(len(node) + 1), node[key])
    return tree


def _somewhere(tree: Any, random: Random) -> tuple[Any, Any]:
    places, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in items:
            places.append((node, key))
            waiting.append(child)
    return random.choice(places) if places else (None, None)


def written(value: Any) -> str:
    """A value as a command line or a key has it."""
    try:
        return str(value)
    except (RecursionError, ValueError):
        return "[" * 5000


def dumped(value: Any) -> str:
    """JSON as careless writers have it: NaN, halves of surrogate pairs and nesting that no encoder follows."""
    try:
        return json.dumps(value)
    except (RecursionError, ValueError):
        return "[" * 5000 + "9" * 5000


def broken(raw: bytes, random: Random) -> bytes:
    """Bytes with some of them changed, cut out, doubled or missing at the end."""
    at = random.randrange(len(raw) + 1)
    size = random.choice((1, 2, 8, 40))
    junk = random.choice(
        (bytes(size), b"\xff" * size, random.randbytes(size), b"\xed\xa0\x80", b"{", b"]", b"\n", b'"')
    )
    choices = (
        raw[:at],
        raw[:at] + junk + raw[at:],
        raw[:at] + junk + raw[at + len(junk) :],
        raw[:at] + raw[at + size :],
    )
    return random.choice((*choices, raw[:at] + raw[at : at + size] + raw[at:], b"\xef\xbb\xbf" + raw))


def text_of(value: Any, random: Random) -> bytes:
    """A value as the bytes of a JSON file, now and then not quite."""
    raw = dumped(value).encode("utf-8", "surrogatepass")
    return broken(raw, random) if random.random() < 0.15 else raw


# Families


def recipes(random: Random, folder: Path, world: World) -> Given:
    text = (world.tiny / "recipe.toml").read_text().replace('"base"', f'"{world.tiny}/base"')
    for name in ("sft", "sft-heldout", "pairs", "pairs-heldout", "prompts"):
        text = text.replace(f'"{name}.jsonl"', f'"{world.tiny}/{name}.jsonl"')
    lines = text.split("\n")
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(lines))
        key = lines[at].partition("=")[0]
        changed = f"{key}= {toml(odd(random))}"
        lines[at : at + 1] = random.choice(
            ([changed], [changed], [], [lines[at]] * 2, [toml(odd(random))], ["[" * 200])
        )
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    (folder / "recipe.toml").write_bytes(broken(raw, random) if random.random() < 0.2 else raw)
    arguments: Arguments = ["data", "check", folder / "recipe.toml"]
    if random.random() < 0.3:
        keys = (
            "sft.epochs",
            "sft.row_length",
            "sft.data.0.limit",
            "seed",
            "model.max_positions",
            "sft.lora.rank",
            "x.0.y",
        )
        arguments.append(f"{random.choice(keys)}={toml(odd(random))}".replace("\0", ""))
    return Given(arguments)


def toml(value: Any) -> str:
    """A value as TOML has it, or nearly."""
    try:
        return _toml(value)
    except RecursionError:
        return "[" * 5000


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    return {None: '"\0"', True: "true", False: "false"}.get(value) or hex(value)


_TALK = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]
_SAID = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]
ROWS: dict[str, Any] = {
    "messages": {"messages": [{"role": "system", "content": "Be kind."}, *_TALK], "id": "1"},
    "alpaca": {"instruction": "Sum up.", "input": "Long.", "output": "Short."},
    "preference": {"prompt": "Where?", "chosen": "There.", "rejected": "Go away."},
    "hh": {"chosen": "\n\nHuman: Where?\n\nAssistant: There.", "rejected": "\n\nHuman: Where?\n\nAssistant: No."},
    "ranking": {"prompt": "Where?", "answers": [{"text": "There.", "score": 2}, {"text": "No.", "score": 1}]},
    "flan": {"inputs": "Is it raining?", "targets": "No."},
    "open_orca": {"id": "niv.1", "system_prompt": "Think.", "question": "2+2?", "response": "4"},
    "science": {"dataset": "scierc_ner", "input": "Find.", "output": "A"},
    "dolly": {"instruction": "Sum up.", "context": "Long.", "response": "L.", "category": "summarization"},
    "wizardlm": {"idx": "a1", "conversations": _SAID},
    "lima": {"conversations": ["Q", "A"], "source": "multi_turn"},
    "ultrachat": {"id": "7", "data": ["Q", "A"]},
}
_PAIRS = ("preference", "hh", "ranking")


def rows(random: Random, folder: Path, world: World) -> Given:
    layout = random.choice(list(ROWS))
    made = [text_of(spoil(ROWS[layout], random, random.randint(1, 2)), random), dumped(ROWS[layout]).encode()]
    raw = b"\n".join(random.sample([*made, made[-1]], 3)) + b"\n"
    name = random.choice(("rows.jsonl", "rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet"))
    if random.random() < 0.2:
        raw = b"[" + raw.strip().replace(b"\n", b",") + b"]"
    (folder / name).write_bytes(raw)
    if layout not in ("messages", "alpaca", *_PAIRS):
        text = f'name = "x"\n[[sources]]\nname = "a"\npath = "{folder / name}"\nformat = "{layout}"\n'
        (folder / "data.toml").write_text(text)
        out = folder / "out"
        return Given(["data", "build", folder / "data.toml", "--out", out, "--processes", 1], out=out)
    stage = "dpo" if layout in _PAIRS else "sft"
    changes = [f"{stage}.data.0.path={folder / name}", f"{stage}.data.0.format={layout}", f"{stage}.batch_size=1"]
    if random.random() < 0.1:
        return Given(["score", world.tiny / "base", folder / name])
    return Given(["data", "check", world.tiny / "recipe.toml", "--stage", stage, *changes])


def models(random: Random, folder: Path, world: World) -> Given:
    model = shutil.copytree(world.tiny / "base", folder / "model")
    name = random.choice(("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json", "header"))
    if name == "header":
        _spoil_header(model / "model.safetensors", random)
    elif name == "config.json" and random.random() < 0.2:
        _sharded(model, random)
    else:
        tree = json.loads((model / name).read_text())
        if name == "config.json":
            extra = {
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            }
            more = {"rope_parameters": {"rope_theta": 1e4}, "sliding_window": 16, "use_sliding_window": True}
            kind = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
            tree |= random.choice(({}, extra, more, {**more, **kind}))
        (model / name).write_bytes(text_of(spoil(tree, random, random.randint(1, 3)), random))
    return _read(model, random, folder, world)


def _read(model: Path, random: Random, folder: Path, world: World) -> Given:
    choice = random.random()
    if choice < 0.5:
        return Given(["export", model, folder / "out"], out=folder / "out")
    if choice < 0.85:
        return Given(["data", "check", world.tiny / "recipe.toml", f"model.source={model}"])
    return Given(["generate", model, "--prompt", "Hi", "--max-tokens", 2])


def _spoil_header(path: Path, random: Random) -> None:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, body = whole[8 : 8 + length], whole[8 + length :]
    what = random.randrange(4)
    if what == 0:
        path.write_bytes(broken(whole, random))
        return
    if what == 1:
        body = broken(body, random)
    else:
        header = text_of(spoil(json.loads(header), random, random.randint(1, 2)), random)
    sizes = (len(header), len(header), len(header), 0, 2**63, 2**64 - 1, random.randrange(len(whole)))
    path.write_bytes(random.choice(sizes).to_bytes(8, "little") + header + body)


def _sharded(model: Path, random: Random) -> None:
    """The model in two files with an index, which is spoilt."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, model / file)
        weight_map |= dict.fromkeys(part, file)
    index = spoil({"metadata": {"total_size": 1}, "weight_map": weight_map}, random, random.randint(1, 2))
    (model / "model.safetensors.index.json").write_bytes(text_of(index, random))


def gguf_files(random: Random, folder: Path, world: World) -> Given:
    raw = bytearray(world.gguf.read_bytes())
    header = raw.index(b"output_norm.weight")  # of the tensors' names; what is after them is weights
    for _ in range(random.randint(1, 3)):
        keys = [b"llama.", b"tokenizer.ggml.", b"general.", b"weight", b"GGUF"]
        at = raw.find(random.choice(keys), random.randrange(header))
        at = random.randrange(header) if at < 0 or random.random() < 0.4 else at + random.randrange(48)
        size = random.choice((1, 4, 8))
        values = (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, random.getrandbits(63), random.randrange(64))
        junk = (random.choice(values) & (2 ** (8 * size) - 1)).to_bytes(size, "little")
        floats = (math.nan, math.inf, 0.0, -1.0, 1e30)
        raw[at : at + size] = struct.pack("<f", random.choice(floats)) if size == 4 and random.random() < 0.3 else junk
    path = folder / "model.gguf"
    path.write_bytes(broken(bytes(raw), random) if random.random() < 0.2 else raw)
    return _read(path, random, folder, world)


def judgments(random: Random, folder: Path, world: World) -> Given:
    verdict = {
        "question_id": 300,
        "model": "ada",
        "judge": ["gpt-4", "single-v1"],
        "judgment": "Rating: [[7]]",
        "score": 7,
    }
    pair = {
        "question_id": 300,
        "model_1": "ada",
        "model_2": "bob",
        "g1_winner": "model_1",
        "g2_winner": "tie",
        "turn": 1,
    }
    chosen = {"instruction": "Tell.", "output_1": "A", "output_2": "B", "generator_1": "gpt", "generator_2": "bob"}
    family = random.choice(("single", "pair", "annotations", "compare", "answers"))
    if family in ("single", "pair"):
        each = [{**(verdict if family == "single" else pair), "turn": turn} for turn in (1, 2)]
        lines = [text_of(spoil(each[0], random, random.randint(1, 2)), random), dumped(each[1]).encode()]
        (folder / "judgments.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        return Given(["evaluate", "mt-bench", "--judgments", folder / "judgments.jsonl", "--data", world.questions])
    if family == "answers":
        rows = [json.loads(line) for line in (world.questions / "ada.jsonl").read_text().splitlines()]
        (folder / "answers.jsonl").write_bytes(b"\n".join(text_of(row, random) for row in spoil(rows, random) or rows))
        out = folder / "out"
        given = ["evaluate", "mt-bench", folder / "answers.jsonl", "--data", world.questions, "--out", out]
        return Given([*given, "--judge", f"replay:{folder / 'answers.jsonl'}"])
    rows = [{**chosen, "preference": value} for value in (1.0, 2.0, 1.5)]
    (folder / "a.json").write_bytes(text_of(spoil(rows, random, random.randint(1, 3)), random))
    if family == "annotations":
        return Given(
            ["evaluate", "alpaca-eval", "--annotations", folder / "a.json", "--data", world.questions, "--json"]
        )
    (folder / "b.json").write_bytes(text_of(rows, random))
    return Given(["evaluate", "compare", folder / "a.json", folder / "b.json", "--json"])


def requests(random: Random, folder: Path, world: World) -> Given:
    base, path = world.tiny / "base", folder / "prompts.jsonl"
    lines = [dumped(spoil({"prompt": "Hi"}, random)), dumped(spoil({"messages": _TALK[:1]}, random)), "Hi"]
    raw = "\n".join(random.sample(lines, random.randint(1, 2))).encode("utf-8", "surrogatepass")
    path.write_bytes(broken(raw, random) if random.random() < 0.2 else raw)
    settings: Arguments = []
    for name in random.sample(
        ("--max-tokens", "--temperature", "--top-k", "--top-p", "--seed", "--chat", "--dtype"), 2
    ):
        values = (0, 1, 2, -1, 0.5, 1e30, "nan", "inf", 2**31, 2**63, 10**30, "tulu", "float32", "")
        settings += [name, random.choice(values)]
    settings += [] if "--max-tokens" in settings else ["--max-tokens", 2]
    text = written(odd(random)).replace("\0", "")
    choice = random.random()
    if choice < 0.5:
        return Given(["generate", base, "--prompt", text, *settings, *random.choice(([], ["--raw"], ["--json"]))])
    if choice < 0.8:
        return Given(["generate", base, "--file", path, *settings])
    if choice < 0.9:
        return Given(["chat", base, *settings], stdin=text.encode("utf-8", "replace").decode() + "\n")
    row = ROWS[random.choice(("messages", "preference"))]
    path.write_bytes(text_of(spoil(row, random), random) + b"\n")
    beta = random.choice((0, -1, "nan", "inf", 1e300, 0.1))
    return Given(["score", base, path, "--reference", base, "--beta", beta])


# Family → its share of all inputs.
FAMILIES: dict[str, tuple[Callable[[Random, Path, World], Given], float]] = {
    "recipes": (recipes, 0.2),
    "rows": (rows, 0.25),
    "models": (models, 0.2),
    "gguf_files": (gguf_files, 0.2),
    "judgments": (judgments, 0.1),
    "requests": (requests, 0.05),
}
