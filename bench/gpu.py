"""Training steps at the sizes of real models on one accelerator, with random weights: SFT and DPO, full and LoRA.

    python bench/gpu.py                          1B, 7B and 8B, rows of 2k, 4k and 8k, the quick part of the sweep
    python bench/gpu.py --shapes 7B --lengths 4096 --rows 1,2,4 --remat full,dots,none
    python bench/gpu.py --shapes 7B --lengths 4096 --stages dpo --peer     TRL too: needs torch, transformers and
                                                                           trl, for LoRA peft

Ours needs jax, numpy and optax alone. Every setting runs in a process of its own, so one that does not fit ends nothing
but itself; the best of each size is then measured `--turns` times, in turn with the best of TRL's, whose kernels a
first run has compiled. Rows are packed with examples whose lengths spread as real ones do (conversations as Tulu 2's,
pairs as UltraFeedback's). Matrix products are bfloat16; parameters and moments are kept as `--parameters` and
`--moments` say, TRL's moments as its parameters. With a rank above 0 adapters of all matrices of a layer are trained,
beside parameters that are frozen: ours in float32, TRL's as PEFT keeps them.

mfu: against the rate of a bfloat16 product in the same process, the better of before and after the updates; mfu_6nd,
of full parameters, counts 6 · parameters · tokens and no more.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from types import SimpleNamespace
from typing import Any

import alternate
import numpy as np
import work
from alternate import Figures, Ratio, Report, Runs, SideFailed

from bactrian.data import packing
from bactrian.data.packing import Plan
from bactrian.data.records import Batch, Example
from bactrian.model import attention, llama

SHAPES = {
    # Llama-3.2-1B, Llama-2-7B and Llama-3.1-8B
    "1B": llama.Config(128_256, 2048, 8192, 16, 32, 8, 64, 131_072, 1e-5, 500_000.0, tied_embeddings=True),
    "7B": llama.Config(32_000, 4096, 11_008, 32, 32, 32, 128, 4096, 1e-5, 10_000.0),
    "8B": llama.Config(128_256, 4096, 14_336, 32, 32, 8, 128, 131_072, 1e-5, 500_000.0),
}
ROWS = 8  # packed rows in one update
TIMED = 3  # updates
MATRIX = 8192  # of the product that MFU is measured against
BETA = 0.1
ALPHA = 16.0  # of adapters
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOY = 32  # by how much a toy is narrower and its rows shorter


def toy(config: llama.Config) -> llama.Config:
    """The same architecture, small enough for a test."""
    return replace(
        config,
        vocab_size=512,
        hidden_size=config.hidden_size // TOY,
        intermediate_size=config.intermediate_size // TOY,
        num_layers=2,
        num_heads=config.num_heads // 8,
        num_kv_heads=config.num_kv_heads // 8,
        head_dim=config.head_dim // 4,
    )


def examples(stage: str, length: int, vocabulary: int, places: int) -> list[Example]:
    """Random tokens in so many places at least; lengths up to `length`, log-normal as those of the real data."""
    random = np.random.default_rng(0)
    made, total = [], 0
    while total < places:
        if stage == "sft":  # quartiles 230 and 1,464, about half of the tokens learnt
            count = int(np.clip(random.lognormal(6.363, 1.372), 16, length))
            starts = ()
            learn = np.arange(count) >= count // 2
        else:  # a prompt of some 120 tokens, answers of some 250
            prompt = int(np.clip(random.lognormal(4.8, 1.0), 8, length // 3))
            answers = np.clip(random.lognormal(5.5, 0.7, 2), 8, length // 3).astype(int).tolist()
            starts = (prompt, prompt + answers[0])
            count = prompt + sum(answers)
            learn = np.arange(count) >= prompt
        made.append(Example(random.integers(0, vocabulary, count).astype(np.int32), learn, starts))
        total += packing.places(count, starts)
    return made


def packed(given: Sequence[Example], length: int, rows_multiple: int) -> Plan:
    """One update of them all."""
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in given])
    return packing.plan(lengths, [np.arange(len(given))], length, rows_multiple, max(1, len(given[0].starts)), length)


def bactrian(arguments: argparse.Namespace) -> Figures:
    """Ours, at the first shape, stage, length, rows and remat of the arguments."""
    import jax

    from bactrian.model import lora
    from bactrian.train import optimizer, preference, scores, sft, trainer

    stage, rows = arguments.stages[0], arguments.rows[0]
    config, length = _size(arguments)
    given = examples(stage, length, config.vocab_size, int(0.95 * ROWS * length))
    plan = packed(given, length, rows)
    compute = llama.Compute("bfloat16", arguments.remat[0], attention.suited(jax.devices()[0]))
    # What a recipe says of it, without the recipe; so small a rate that random weights stay what they are.
    settings: Any = SimpleNamespace(learning_rate=1e-8, schedule="constant", warmup_steps=0, warmup_ratio=0.0)
    vars(settings).update(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, clip_norm=1.0)
    settings.moments = arguments.moments
    chain = optimizer.chain(settings, TIMED + 1)
    trained = _trained(config, arguments)
    parameters = jax.jit(lambda key: llama.init(config, key, arguments.parameters))(jax.random.key(0))
    figures: Figures = {"attention": compute.attention, "attention_error": _attention_error(compute)}
    if stage == "dpo":
        score = scores.compiled(config, compute)
        batch, figures["reference_tokens_per_second"] = _reference(score, parameters, given, plan, rows)
        objective = preference.objective(trained, compute, BETA)
    else:
        batch, objective = packing.batch(plan, given, 0), sft.objective(trained, compute)
    frozen = None
    if trained.lora is not None:
        parameters, frozen = lora.start(trained, jax.random.key(1)), parameters
    state = jax.jit(lambda parameters: trainer.start(parameters, chain), donate_argnums=0)(parameters)
    state = state._replace(frozen=frozen)
    del parameters, frozen
    batch = jax.device_put(trainer.split(batch, rows))
    start = time.perf_counter()
    step = jax.jit(trainer.make_step(objective, chain), donate_argnums=0).lower(state, batch).compile()
    figures["compile_seconds"] = time.perf_counter() - start
    rate = work.jax_rate("bfloat16", _matrix(arguments))
    state, metrics = jax.block_until_ready(step(state, batch))
    figures["first_loss"] = float(metrics["loss"])
    with jax.profiler.trace(arguments.profile) if arguments.profile else nullcontext():
        start = time.perf_counter()
        for _ in range(TIMED):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds = (time.perf_counter() - start) / TIMED
    rate = max(rate, work.jax_rate("bfloat16", _matrix(arguments)))
    figures |= _figures(given, trained, seconds, rate)
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        figures["device_peak_gib"] = stats["peak_bytes_in_use"] / 2**30
    return figures | {"row_fill": figures["tokens"] / (len(plan.updates[0]) * length)}


def _size(arguments: argparse.Namespace) -> tuple[llama.Config, int]:
    config, length = SHAPES[arguments.shapes[0]], arguments.lengths[0]
    return (toy(config), length // TOY) if arguments.toy else (config, length)


def _trained(config: llama.Config, arguments: argparse.Namespace) -> llama.Config:
    """The same with adapters, if the arguments say so."""
    rank = arguments.ranks[0]
    return replace(config, lora=llama.Lora(rank, ALPHA, TARGETS)) if rank else config


def _matrix(arguments: argparse.Namespace) -> int:
    return MATRIX // TOY if arguments.toy else MATRIX


def _figures(given: Sequence[Example], config: llama.Config, seconds: float, rate: float) -> Figures:
    """Of one update."""
    done = work.of_examples(given)
    figures: Figures = {
        "tokens_per_second": done.tokens / seconds,
        **work.utilization(done.flops(config), seconds, rate),
        "seconds": seconds,
        "tokens": done.tokens,
    }
    if config.lora is None:
        parameters = sum(np.prod(spec.shape, dtype=float) for spec in _leaves(llama.specs(config)))
        figures["mfu_6nd"] = 6 * parameters * done.tokens / seconds / rate
    return figures | ({"pairs_per_second": len(given) / seconds} if given[0].starts else {})


def _leaves(tree: Any) -> list[llama.Spec]:
    return [tree] if isinstance(tree, llama.Spec) else [leaf for child in tree.values() for leaf in _leaves(child)]


def _attention_error(compute: llama.Compute) -> float:
    """How far this device's attention is from the plain one, in bfloat16, on one pair: the largest difference of its
    results and gradients over the largest of them."""
    import jax
    import jax.numpy as jnp

    heads, width, (prompt, answer) = 4, 128, (300, 200)
    batch = packing.empty(1, 1024, 1, 2)
    length = prompt + 2 * answer
    packing.fill(
        batch, 0, [(0, Example(np.zeros(length, np.int32), np.arange(length) >= prompt, (prompt, prompt + answer)))]
    )
    places = attention.Places(*(jnp.asarray(column) for column in (batch.segments, batch.branches, batch.positions)))
    given = [jax.random.normal(jax.random.key(n), (1, 1024, heads, width), compute.dtype) for n in range(4)]

    def both(implementation: attention.Implementation, *given: jax.Array):
        output, pull = jax.vjp(attention.over(places, None, implementation), *given[:3])
        return output, *pull(given[3])

    found, plain = (
        jax.device_get(jax.jit(both, static_argnums=0)(each, *given)) for each in (compute.attention, "dense")
    )
    differences = [
        np.abs(np.float32(one) - np.float32(other)).max() / np.abs(np.float32(other)).max()
        for one, other in zip(found, plain, strict=True)
    ]
    return float(max(differences))


def _reference(score: Any, parameters: Any, given: Sequence[Example], plan: Plan, rows: int) -> tuple[Batch, float]:
    """The update's batch with its reference column, and how fast that was computed."""
    import jax

    from bactrian.train import scores, trainer

    empty = packing.batch(plan, given, 0)
    split = trainer.split(empty, rows)
    microbatches = [Batch(*(column[index] for column in split)) for index in range(len(split.tokens))]
    jax.block_until_ready(score(parameters, microbatches[0]))
    references = np.zeros((len(given), 2), np.float32)
    start = time.perf_counter()
    for example, logprobs in scores.of_examples(score, parameters, microbatches):
        references[example] = logprobs
    seconds = time.perf_counter() - start
    return packing.batch(plan, given, 0, references), work.of_examples(given).tokens / seconds


def trl(arguments: argparse.Namespace) -> Figures:
    """TRL's trainer, on the same examples in PyTorch."""
    import torch
    import trl_side
    from transformers import LlamaConfig, LlamaForCausalLM

    stage, microbatch = arguments.stages[0], arguments.rows[0]
    config, length = _size(arguments)
    given = examples(stage, length, config.vocab_size, int(0.95 * ROWS * length))
    settings = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tied_embeddings,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = work.torch_rate("bfloat16", _matrix(arguments), device)
    torch.set_default_dtype(getattr(torch, arguments.parameters))
    with torch.device(device):
        model = LlamaForCausalLM(settings)
    torch.set_default_dtype(torch.float32)
    more = {"gradient_checkpointing": arguments.remat[0] != "none", "bf16": arguments.parameters == "float32"}
    more |= {"use_cpu": device == "cpu", "learning_rate": 1e-8}
    more |= {"use_liger_kernel": device == "cuda" and find_spec("liger_kernel") is not None}
    trained = _trained(config, arguments)
    if trained.lora is not None:
        from peft import LoraConfig

        about = {"lora_alpha": trained.lora.alpha, "target_modules": list(trained.lora.targets)}
        more["peft_config"] = LoraConfig(r=trained.lora.rank, task_type="CAUSAL_LM", **about)
    if stage == "dpo":
        # Pairs of like lengths beside each other, as TRL's "group_by_length" has them, but exactly.
        given = sorted(given[: len(given) // microbatch * microbatch], key=lambda pair: len(pair.tokens))
        warm = given[-microbatch:]
        more |= {"precompute_ref_log_probs": True, "max_length": length}
        timed = trl_side.dpo(model, [*warm, *given], microbatch, 1, **more)
    else:
        timed = trl_side.sft(model, given, microbatch, 1, packing=True, max_length=length, **more)
        given = given[: round(len(given) * timed.learned / work.of_examples(given).learned)]
    rate = max(rate, work.torch_rate("bfloat16", _matrix(arguments), device))
    figures = _figures(given, trained, timed.seconds, rate)
    figures["kernels"] = "liger" if more["use_liger_kernel"] else "plain"
    if device == "cuda":
        figures["device_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


SIDES = {"bactrian": bactrian, "trl": trl}


def main() -> None:
    parser = alternate.parser(__doc__, SIDES)
    words, numbers = (lambda text: text.split(",")), (lambda text: [int(each) for each in text.split(",")])
    parser.add_argument("--shapes", type=words, default=list(SHAPES))
    parser.add_argument("--stages", type=words, default=["sft", "dpo"])
    parser.add_argument("--lengths", type=numbers, default=[2048, 4096, 8192])
    parser.add_argument("--rows", type=numbers, default=[1, 2], help="rows at once")
    parser.add_argument("--remat", type=words, default=["full", "dots"])
    parser.add_argument("--ranks", type=numbers, default=[0, 64], help="of adapters; 0: full parameters")
    parser.add_argument("--parameters", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--moments", choices=("float32", "int8"), default="float32", help="ours")
    parser.add_argument("--profile", help="ours: a folder for a trace of the timed updates")
    parser.add_argument("--peer", action="store_true", help="TRL too")
    parser.add_argument("--peer-rows", type=numbers, default=[4, 8], help="pairs that TRL computes at once, or rows")
    checkpointing = "TRL's checkpointing is on but for none"
    parser.add_argument("--peer-remat", type=words, default=["full", "none"], help=checkpointing)
    parser.add_argument("--toy", action="store_true", help="narrow and short, to see that everything runs")
    arguments = parser.parse_args()
    # JAX takes three quarters of the memory by default, before anything is computed.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments)))
        return
    for size in product(arguments.shapes, arguments.stages, arguments.lengths, arguments.ranks):
        compare(arguments, *size)


def compare(arguments: argparse.Namespace, shape: str, stage: str, length: int, rank: int) -> None:
    """Sweep one size on every side, then run the best of each in turn."""
    measured_on = alternate.machine()
    size = ["--shapes", shape, "--stages", stage, "--lengths", str(length), "--ranks", str(rank)]
    swept = {"bactrian": _sweep(arguments, "bactrian", size, arguments.rows, arguments.remat)}
    if arguments.peer:
        # Its kernels are compiled as they are met: a run that is thrown away pays for them.
        _sweep(arguments, "trl", size, arguments.peer_rows[:1], arguments.peer_remat[:1])
        swept["trl"] = _sweep(arguments, "trl", size, arguments.peer_rows, arguments.peer_remat)
    best = {side: max(rates, key=rates.__getitem__) for side, rates in swept.items() if rates}
    if not best:
        return

    def measure(side: str, turn: int) -> Figures:
        return alternate.child([*alternate.own_command(arguments, side, turn), *size, *best[side].split()])

    runs: Runs = {}
    alternate.in_turn(list(best), arguments.turns, measure, runs)
    rate = "tokens_per_second"
    ratios = {"bactrian / trl": Ratio(rate, "trl", rate)} if len(best) == len(SIDES) else {}
    notes = [f"{side}: {settings}, of {_said(swept[side])}" for side, settings in best.items()]
    name = f"gpu-{shape}-{stage}-{length}" + (f"-lora-{rank}" if rank else "")
    report = Report(name, rate, ratios, [*notes, work.FORMULA])
    alternate.publish(report, runs, arguments, measured_on)


def _sweep(
    arguments: argparse.Namespace, side: str, size: Sequence[str], rows: Sequence[int], remat: Sequence[str]
) -> dict[str, float]:
    """Tokens per second by settings, of those that run."""
    rates = {}
    for count, policy in product(rows, remat):
        settings = f"--rows {count} --remat {policy}"
        command = [*alternate.own_command(arguments, side, 1), *size, *settings.split()]
        label = f"{' '.join(size)}, {side}: {settings}"
        try:
            rates[settings] = alternate.child(command)["tokens_per_second"]
        except SideFailed as failed:
            print(f"{label}  did not run: {failed.reason}", flush=True)
            continue
        print(f"{label}  {rates[settings]:.0f} tokens/s", flush=True)
    return rates


def _said(rates: dict[str, float]) -> str:
    return "; ".join(f"{settings}: {rate:.0f} tokens/s" for settings, rate in rates.items())


if __name__ == "__main__":
    main()
