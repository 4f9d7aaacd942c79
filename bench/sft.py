"""SFT of SmolLM2-135M here and by TRL's SFTTrainer, with packing and without: the same weights, conversations, float32.

    python bench/sft.py                                                        the quickstart's conversations
    python bench/sft.py --data code_alpaca_2k.json --format alpaca --conversations 384 --name sft-codealpaca

Every side trains on all conversations of a turn, here in packed rows; TRL in packed rows ("packed"), in padded batches
("unpacked"), and in padded batches with gradient checkpointing, as its defaults are ("default"). Warm-up (here the
compilation, there a microbatch more) is in no figure. learned_per_second counts the tokens that are learnt; first_loss,
of the model as it is, is equal where both sides learn the same tokens.
"""

import argparse
from pathlib import Path

import alternate
import training_data
import work
from alternate import Figures, Ratio, Report

from bactrian.prepare import Prepared
from bactrian.recipe import SFT, Optimizer, Source

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart" / "sft.jsonl"
MATRIX = 2048  # of the product that MFU is measured against


def prepared(arguments: argparse.Namespace) -> Prepared:
    """One turn's share of the conversations, packed."""
    rows = arguments.conversations + arguments.conversations // 4  # those that are too long are left out, on every side
    settings = SFT(
        data=(Source(path=str(arguments.data), format=arguments.format, limit=rows),),
        batch_size=arguments.conversations // arguments.turns,
        max_dropped=0.2,
        max_length=arguments.max_length,
        row_length=arguments.row_length,
        microbatch_rows=arguments.microbatch_rows,
        optimizer=Optimizer(learning_rate=2e-5),
    )
    return training_data.of_turn("sft", settings, arguments.turn, arguments.turns)


def bactrian(arguments: argparse.Namespace) -> Figures:
    """Training on a turn's conversations, one update."""
    import our_side

    share = prepared(arguments)
    trained = our_side.train(share, arguments.remat)
    counts = share.training.count(0)
    flops = work.of_examples(training_data.examples(share)).flops(trained.config)
    return {
        "learned_per_second": counts["learned_tokens"] / trained.seconds,
        "tokens_per_second": counts["tokens"] / trained.seconds,
        **work.utilization(flops, trained.seconds, work.jax_rate("float32", MATRIX)),
        "learned_share": counts["learned_tokens"] / counts["tokens"],
        "row_length": share.training.plan.row_length,
        "row_fill": trained.row_fill,
        "first_loss": trained.first_loss,
    }


def trl_packed(arguments: argparse.Namespace) -> Figures:
    """Rows of `--peer-row-length`, packed by best fit, one at a time: more at once are one longer row to it."""
    packing = {"packing": True, "max_length": arguments.peer_row_length}
    return _trl(arguments, 1, gradient_checkpointing=False, **packing)


def trl_unpacked(arguments: argparse.Namespace) -> Figures:
    """Padded batches."""
    return _trl(arguments, arguments.peer_microbatch, gradient_checkpointing=False, max_length=arguments.max_length)


def trl_default(arguments: argparse.Namespace) -> Figures:
    """TRL's own defaults but for float32, the CPU, the batch and the length."""
    return _trl(arguments, arguments.peer_microbatch, max_length=arguments.max_length)


def _trl(arguments: argparse.Namespace, microbatch: int, **settings) -> Figures:
    import numpy as np
    import torch
    import trl_side
    from transformers import AutoModelForCausalLM

    share = prepared(arguments)
    given = training_data.examples(share)
    given = [given[index] for index in np.random.default_rng(0).permutation(len(given))]
    model = AutoModelForCausalLM.from_pretrained(training_data.exported(), dtype=torch.float32)
    settings |= {"bf16": False, "use_cpu": True}
    timed = trl_side.sft(model, given, microbatch, 1, **settings)
    counts = share.training.count(0)
    # Its first microbatch is not timed; the learnt share of all stands for what the rest would take.
    part = timed.learned / counts["learned_tokens"]
    rate = work.torch_rate("float32", MATRIX)
    from bactrian.model import weights

    flops = part * work.of_examples(given).flops(weights.read_config(training_data.exported()))
    return {
        "learned_per_second": timed.learned / timed.seconds,
        "tokens_per_second": part * counts["tokens"] / timed.seconds,
        **work.utilization(flops, timed.seconds, rate),
        "learned_share": counts["learned_tokens"] / counts["tokens"],
        "first_loss": timed.loss,
    }


SIDES = {"bactrian": bactrian, "trl, packed": trl_packed, "trl, unpacked": trl_unpacked, "trl, default": trl_default}


def main() -> None:
    parser = alternate.parser(__doc__, SIDES)
    parser.add_argument("--data", type=Path, default=QUICKSTART)
    parser.add_argument("--format", choices=("alpaca", "messages"), default="messages")
    parser.add_argument("--name", default="sft-quickstart", help="of the results")
    parser.add_argument("--conversations", type=int, default=192, help="over all turns")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--microbatch-rows", type=int, default=1)
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="dots")
    parser.add_argument("--peer-row-length", type=int, default=1024, help="of TRL's packed rows")
    parser.add_argument("--peer-microbatch", type=int, default=8, help="conversations that TRL computes at once")
    arguments = parser.parse_args()
    figure = "learned_per_second"
    ratios = {f"bactrian / {peer}": Ratio(figure, peer, figure) for peer in list(SIDES)[1:]}
    ratios["peak memory, bactrian / trl, packed"] = Ratio("peak_gib", "trl, packed", "peak_gib")
    each = arguments.conversations // arguments.turns
    notes = [
        f"float32, one update of {each} conversations in each turn, all of them on every side; {work.FORMULA}",
        f"bactrian: remat {arguments.remat}, {arguments.microbatch_rows} row(s) at once; trl: packed rows of "
        f"{arguments.peer_row_length}, padded batches of {arguments.peer_microbatch}",
    ]
    alternate.run(arguments, SIDES, Report(arguments.name, figure, ratios, notes))


if __name__ == "__main__":
    main()
