"""Gives a family's inputs to the command, one after the other, in this process, and writes down what goes wrong.

    python tests/fuzz/child.py FAMILY SEED FIRST COUNT FOLDER     inputs FIRST … FIRST+COUNT-1
    python tests/fuzz/child.py FAMILY SEED INDEX 1 FOLDER         one of them again; its files stay in FOLDER

FOLDER/faults.jsonl has a line for each fault, FOLDER/at the input under way: where this process is dead, that was it.
"""

import faulthandler
import json
import os
import resource
import shutil
import sys
import traceback
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import inputs
import tiny

SECONDS = 20.0  # for one input
MEMORY = 4 << 30  # bytes more than the process has with everything loaded
CODES = {0, 1, 2, 75, 130}
LONGEST = 400  # characters of a line


def world(folder: Path) -> inputs.World:
    """What is spoilt, made once."""
    import question_set

    made = inputs.World(folder / "world", folder / "questions", folder / "tiny.gguf")
    if not made.gguf.exists():
        tiny.make(made.tiny)
        question_set.make(made.questions)
        write_gguf(made.gguf)
    return made


def write_gguf(path: Path) -> None:
    """A model of one layer with a byte-level vocabulary."""
    import gguf
    import numpy as np
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "aa"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    writer.add_token_merges(["a a"])
    writer.add_eos_token_id(1)
    writer.add_chat_template(tiny.TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {"blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fault_of(given: inputs.Given) -> str | None:
    """What is wrong with how the command took an input; None where it did as it promises."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        done = tiny.call(*given.arguments, stdin=given.stdin)
    except BaseException:  # the tokenizers library panics with one
        return traceback.format_exc()[-1500:]
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > MEMORY:
        return f"{grown:,} bytes of memory"
    if done.code not in CODES:
        return f"exit code {done.code}: {done.err[-500:]}"
    last = done.err.rstrip("\n").rpartition("\n")[2]
    said = last.startswith(("error: ", "failed: ", "stopped: ", "Usage: ", "Aborted"))
    if (done.code in (2, 130) and not (said or done.out or "Usage:" in done.err)) or "Traceback" in done.err:
        return f"exit code {done.code}, and no line that says why: {done.err[-500:]!r}"
    if said and (len(last) > LONGEST or not last.isprintable()):
        return f"a line of {len(last)} characters, printable: {last.isprintable()}: {last[:500]!r}"
    return _half_written(given.out, done.code)


def _half_written(out: Path | None, code: int) -> str | None:
    """What a command has left where it may write: all of it or nothing."""
    left = [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")] if out else []
    if left:
        return f"left beside its folder: {left}"
    if out is not None and out.exists() and code == 2 and (out / "config.json").exists():
        return f"exit code 2, and a model in {out.name}"
    return None


def main(family: str, seed: str, first: int, count: int, folder: Path) -> None:
    os.environ["BACTRIAN_CACHE"] = str(folder / "cache")
    make, _ = inputs.FAMILIES[family]
    given_world = world(folder)
    base, rows = given_world.tiny / "base", given_world.tiny / "sft-heldout.jsonl"
    tiny.call("generate", base, "--prompt", "Hi", "--max-tokens", 2)
    tiny.call("score", base, rows)
    tiny.call("data", "check", given_world.tiny / "recipe.toml")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    terminal = sys.stderr
    for index in range(first, first + count):
        (folder / "at").write_text(str(index))
        own = folder / f"{family}-{index}"
        own.mkdir()
        given = make(Random(f"{seed}-{family}-{index}"), own, given_world)
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=terminal)
        fault = fault_of(given)
        faulthandler.cancel_dump_traceback_later()
        if fault is not None:
            about: dict[str, Any] = {"index": index, "arguments": [*map(str, given.arguments)], "fault": fault}
            with (folder / "faults.jsonl").open("a") as file:
                file.write(json.dumps(about) + "\n")
        if count > 1:
            shutil.rmtree(own)
    (folder / "at").write_text("done")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
