"""TRL's side of a comparison: its trainers on examples that are token ids already, timed microbatch by microbatch.

One update is made, over a warm-up microbatch and then those that are timed, so the optimizer's share is that of an
update of the timed examples; the moments are made before. Examples come in the order given.
"""

import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import tokenizers
import torch
import transformers
from transformers import TrainerCallback
from trl.data_utils import pack_dataset
from trl.trainer import dpo_trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bactrian.data.records import Example

PLAIN = {  # what is not measured, and rows in the order given
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
    "train_sampling_strategy": "sequential",
    "dataloader_pin_memory": False,
    "max_steps": 1,
}

# It would hash all weights for the name of a file of reference log-probabilities, which no other process reads.
dpo_trainer.hash_module = lambda module: "of this process"  # pyright: ignore[reportPrivateImportUsage]

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class Timed(NamedTuple):
    """Seconds of the timed microbatches with their update, the tokens learnt in them, the loss of the whole update.

    `mean_reference` is the reference's mean log-probability of an answer where it was computed beforehand.
    """

    seconds: float
    learned: int
    loss: float
    mean_reference: float | None = None


class _Clock(TrainerCallback):
    """When each microbatch ended, the last one with the update."""

    def __init__(self):
        self.ends: list[float] = []

    def on_train_begin(self, args, state, control, model: Any = None, optimizer: Any = None, **more):
        # An update by nothing makes the moments, which the first of a run would else do while it is timed.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()

    def on_substep_end(self, args, state, control, **more):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    on_step_end = on_substep_end


class _Pairs(DPOTrainer):
    def _prepare_dataset(self, dataset, *arguments, **settings):
        return dataset


def dpo(
    model: Any, pairs: Sequence[Example], microbatch: int, warm: int, peft_config: Any = None, **settings: Any
) -> Timed:
    """TRL's DPO over pairs, of which the first `warm` microbatches are not timed."""
    rows = []
    for pair in pairs:
        prompt, answers = pair.starts[0], []
        for branch in (0, 1):
            # What follows the last learnt token, as a line end after EOS, it would learn, and we do not.
            tokens, learn = pair.branch(branch)
            answers.append(tokens[prompt : learn.nonzero()[0][-1] + 1].tolist())
        rows.append(dict(zip(COLUMNS, [pair.tokens[:prompt].tolist(), *answers], strict=True)))
    _check(len(rows), microbatch)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(folder, **_arguments(len(rows), microbatch), **settings)
        data = datasets.Dataset.from_list(rows)
        more: dict[str, Any] = {"processing_class": _words(), "peft_config": peft_config}
        trainer = _Pairs(model, None, arguments, train_dataset=data, **more)
        mean = None
        timed = slice(warm * microbatch, None)
        learned = sum(int(pair.learn[pair.starts[0] :].sum()) for pair in pairs[timed])
        if settings.get("precompute_ref_log_probs"):
            known: Any = trainer.train_dataset
            mean = float(np.mean([known[f"ref_{name}_logps"][timed] for name in ("chosen", "rejected")]))
        return Timed(_train(trainer, warm), learned, _loss(trainer), mean)


def sft(
    model: Any, conversations: Sequence[Example], microbatch: int, warm: int, peft_config: Any = None, **settings: Any
) -> Timed:
    """TRL's SFT over conversations; where it packs them, a microbatch has so many packed rows."""
    columns = [
        {"input_ids": each.tokens.tolist(), "labels": np.where(each.learn, each.tokens, -100).tolist()}
        for each in conversations
    ]
    rows = datasets.Dataset.from_list(columns)
    if settings.get("packing"):
        rows = pack_dataset(rows, settings["max_length"])
    count = len(rows) // microbatch * microbatch
    rows = rows.select(range(count))
    ready = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(folder, **_arguments(count, microbatch), **ready, **settings)
        trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=_words(), peft_config=peft_config)
        seconds = _train(trainer, warm)
    learned = sum(map(_learned, rows.select(range(warm * microbatch, count))))
    return Timed(seconds, learned, _loss(trainer))


def _learned(row: Any) -> int:
    """Learnt tokens of a row of one or more sequences, of which the first token of each is never predicted."""
    labels = np.asarray(row["labels"])
    lengths = row.get("seq_lengths") or [len(labels)]
    labels[np.cumsum([0, *lengths[:-1]])] = -100
    return int((labels != -100).sum())


def _train(trainer: Any, warm: int) -> float:
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.ends[-1] - clock.ends[warm - 1]


def _loss(trainer: Any) -> float:
    return next(float(row["loss"]) for row in trainer.state.log_history if "loss" in row)


def _arguments(rows: int, microbatch: int) -> dict[str, Any]:
    return {
        **PLAIN,
        "per_device_train_batch_size": microbatch,
        "gradient_accumulation_steps": rows // microbatch,
    }


def _check(rows: int, microbatch: int) -> None:
    if rows % microbatch:
        raise ValueError(f"{rows} rows are not whole microbatches of {microbatch}")


def _words() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer with the padding that the trainers ask for; the rows need none, they are ids."""
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=engine, pad_token="<pad>", eos_token="</s>")
