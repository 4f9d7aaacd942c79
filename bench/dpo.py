"""DPO of SmolLM2-135M here and by TRL's DPOTrainer: the same weights, pairs and float32.

    python bench/dpo.py                                                       the quickstart's pairs, a few minutes
    python bench/dpo.py --data test.jsonl.gz --format hh --pairs 256 --turns 4 --name dpo-hh-rlhf

Here every turn trains on its own share of the pairs, the reference pass timed apart. TRL takes `--peer-pairs` of that
share, as many of every length, in one update. Warm-up (here the compilation, there a microbatch) is in no figure. TRL
"default" is its defaults: gradient checkpointing, the reference model run beside the policy, padded batches. TRL "best"
is the fastest that worked of what it has: references beforehand, no checkpointing, batches of like lengths. Its
padding-free batches do not work: TRL 1.16 switches them off with a warning. It packs no pairs, and Liger's kernels need
a GPU.

tokens_per_second: tokens of both answers' sequences, the prompt in each, without padding.
pairs_per_second: these over the tokens of a pair, on the average of all pairs of the turn, whichever of them a side
took. References are cached; …_one_epoch, …_three_epochs: with the reference pass in it.
mean_reference: the reference's mean log-probability of an answer of TRL's pairs, which both sides compute.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import alternate
import training_data
import work
from alternate import Figures, Ratio, Report

from bactrian.data.records import Example
from bactrian.prepare import Prepared
from bactrian.recipe import DPO, Optimizer, Source

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart" / "pairs.jsonl"
MATRIX = 2048  # of the product that MFU is measured against
BETA = 0.1


def prepared(arguments: argparse.Namespace) -> Prepared:
    """One turn's share of the pairs, packed."""
    rows = arguments.pairs + arguments.pairs // 4  # those that are too long are left out, on every side
    settings = DPO(
        data=(Source(path=str(arguments.data), format=arguments.format, limit=rows),),
        batch_size=arguments.batch_size,
        max_dropped=0.2,
        max_length=arguments.max_length,
        row_length=arguments.row_length,
        microbatch_rows=arguments.microbatch_rows,
        beta=BETA,
        optimizer=Optimizer(learning_rate=5e-7),
    )
    return training_data.of_turn("dpo", settings, arguments.turn, arguments.turns)


def bactrian(arguments: argparse.Namespace) -> Figures:
    """Reference column and training of all of a turn's pairs."""
    import our_side

    share = prepared(arguments)
    trained = our_side.train(share, arguments.remat)
    pairs = training_data.examples(share)
    rate = len(pairs) / trained.seconds
    per_pair = trained.reference_seconds / len(pairs)
    flops = work.of_examples(pairs).flops(trained.config)
    taken = _taken(pairs, arguments.peer_pairs, arguments.peer_best_microbatch, alike=True)
    return {
        "pairs_per_second": rate,
        "pairs_per_second_one_epoch": 1 / (1 / rate + per_pair),
        "pairs_per_second_three_epochs": 1 / (1 / rate + per_pair / 3),
        **_token_rate(pairs, trained.seconds),
        **work.utilization(flops, trained.seconds, work.jax_rate("float32", MATRIX)),
        "row_length": share.training.plan.row_length,
        "row_fill": trained.row_fill,
        "first_loss": trained.first_loss,
        "mean_reference": float(trained.references[taken].mean()),
    }


def trl_default(arguments: argparse.Namespace) -> Figures:
    """TRL's own defaults but for float32, the CPU, and the batch and the length that are compared."""
    return _trl(arguments, arguments.peer_microbatch, alike=False)


def trl_best(arguments: argparse.Namespace) -> Figures:
    """The fastest of what worked."""
    faster = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
    return _trl(arguments, arguments.peer_best_microbatch, alike=True, **faster)


def _trl(arguments: argparse.Namespace, microbatch: int, alike: bool, **settings) -> Figures:
    import torch
    import trl_side
    from transformers import AutoModelForCausalLM

    given = training_data.examples(prepared(arguments))
    taken = _taken(given, arguments.peer_pairs, microbatch, alike)
    pairs = [given[index] for index in taken]
    middle = len(pairs) // 2 // microbatch * microbatch
    warm = pairs[middle : middle + microbatch]
    model = AutoModelForCausalLM.from_pretrained(training_data.exported(), dtype=torch.float32)
    settings |= {"bf16": False, "use_cpu": True, "beta": BETA, "max_length": arguments.max_length}
    timed = trl_side.dpo(model, [*warm, *pairs], microbatch, 1, **settings)
    rate = work.torch_rate("float32", MATRIX)
    from bactrian.model import weights

    flops = work.of_examples(pairs).flops(weights.read_config(training_data.exported()))
    figures = {
        "pairs_per_second": _tokens(pairs) / timed.seconds / (_tokens(given) / len(given)),
        **_token_rate(pairs, timed.seconds),
        **work.utilization(flops, timed.seconds, rate),
    }
    return figures | ({"mean_reference": timed.mean_reference} if timed.mean_reference is not None else {})


def _taken(pairs: Sequence[Example], count: int, microbatch: int, alike: bool) -> list[int]:
    """Which of a turn's pairs TRL takes, microbatch after microbatch."""
    groups = training_data.stratified([len(pair.tokens) for pair in pairs], count // microbatch, microbatch, alike)
    return [index for group in groups for index in group]


def _tokens(pairs: Sequence[Example]) -> int:
    return sum(len(pair.branch(branch)[0]) for pair in pairs for branch in (0, 1))


def _token_rate(pairs: Sequence[Example], seconds: float) -> Figures:
    tokens = _tokens(pairs)
    return {"tokens_per_second": tokens / seconds, "tokens_per_pair": tokens / len(pairs), "pairs": len(pairs)}


SIDES = {"bactrian": bactrian, "trl, default": trl_default, "trl, best": trl_best}


def main() -> None:
    parser = alternate.parser(__doc__, SIDES)
    parser.add_argument("--data", type=Path, default=QUICKSTART)
    parser.add_argument("--format", choices=("hh", "preference"), default="preference")
    parser.add_argument("--name", default="dpo-quickstart", help="of the results")
    parser.add_argument("--pairs", type=int, default=96, help="over all turns")
    parser.add_argument("--batch-size", type=int, default=32, help="pairs in an update")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--microbatch-rows", type=int, default=1)
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="dots")
    parser.add_argument("--peer-pairs", type=int, default=24, help="that TRL takes of a turn's pairs")
    parser.add_argument("--peer-microbatch", type=int, default=4, help="pairs that TRL computes at once")
    parser.add_argument("--peer-best-microbatch", type=int, default=4)
    arguments = parser.parse_args()
    default, best, plain = "trl, default", "trl, best", "pairs_per_second"
    ratios = {
        "bactrian, one epoch's reference pass in it / trl, default": Ratio(f"{plain}_one_epoch", default, plain),
        "bactrian, three epochs, reference pass in it / trl, default": Ratio(f"{plain}_three_epochs", default, plain),
        "bactrian / trl, best, references of both beforehand": Ratio(plain, best, plain),
        "peak memory, bactrian / trl, default": Ratio("peak_gib", default, "peak_gib"),
        "peak memory, bactrian / trl, best": Ratio("peak_gib", best, "peak_gib"),
    }
    notes = [
        f"float32, our updates of {arguments.batch_size} pairs, of up to {arguments.max_length} tokens; {work.FORMULA}",
        f"bactrian: all pairs of a turn, remat {arguments.remat}, {arguments.microbatch_rows} row(s) at once; trl: "
        f"one update of {arguments.peer_pairs} of them, of every length, default {arguments.peer_microbatch} at once, "
        f"best {arguments.peer_best_microbatch}",
    ]
    alternate.run(arguments, SIDES, Report(arguments.name, plain, ratios, notes))


if __name__ == "__main__":
    main()
