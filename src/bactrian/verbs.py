"""What the smaller verbs do: generate, score and export, each on any MODEL."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np

from bactrian import assistant as assistants
from bactrian.assistant import Assistant, ChatFormat
from bactrian.data import continuation, corpus, packing, sources
from bactrian.data.chat import Chat
from bactrian.data.records import Conversation, Example, Message, Preference, Role
from bactrian.data.sources import beside, fields, messages, reader
from bactrian.errors import DataError, InputError
from bactrian.files import documents
from bactrian.inference.engine import Settings
from bactrian.model import attention, llama
from bactrian.model.llama import Dtype
from bactrian.recipe import Source
from bactrian.train import preference, reference, scores

_ROW_LENGTH = 2048  # places in a row that scores are computed in, unless an example is longer
_SCORED_AT_ONCE = 64

Prompt = str | tuple[Message, ...]


def read_prompts(texts: Sequence[str], file: Path | None, raw: bool) -> list[Prompt]:
    """Prompts from the command line, then those of a file: rows with `prompt` or `messages`, or plain lines."""
    prompts: list[Prompt] = list(texts)
    if file is not None and file.suffix in (".jsonl", ".json", ".parquet", ".gz"):
        for where, row in reader.read(Source(path=str(file), format="messages")):
            prompts.append(_row_prompt(row, where))
    elif file is not None:
        # Not splitlines: a prompt may hold the other separators of Unicode.
        lines = documents.read_text(file, "prompts").replace("\r\n", "\n").split("\n")
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise InputError("nothing to answer; give --prompt TEXT or --file FILE")
    if raw and not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"{file}: --raw continues text; its rows need `prompt`, not `messages` nor `system`")
    return prompts


def prompter(chat: Chat) -> Callable[[Sequence[tuple[str, str]]], np.ndarray]:
    """What asks for the next answer: (role, content) turns → ids; what the model said is its text as it came."""

    def message(role: str, text: str) -> Message:
        return Message(cast(Role, role), chat.content(text) if role == "assistant" else text)

    return lambda turns: chat.prompt(tuple(message(role, text) for role, text in turns))


def generate(
    model: str, prompts: Sequence[Prompt], settings: Settings, format: ChatFormat | None, dtype: Dtype
) -> Iterator[dict[str, Any]]:
    """An answer for each prompt: `prompt`, `text`, `tokens`, `finish`. Without a format the text is continued."""
    found = assistants.find(model)
    if format is None:
        ids = [found.tokenizer.encode_text(str(prompt), add_bos=True) for prompt in prompts]
        settings = replace(settings, stop_ids=found.tokenizer.stop_ids)
    else:
        chat = found.chat(format)
        turns = [(Message("user", prompt),) if isinstance(prompt, str) else prompt for prompt in prompts]
        ids = [chat.prompt(turn) for turn in turns]
        settings = replace(settings, stop_ids=chat.stop_ids)
    answers = found.engine(dtype).generate(ids, settings)
    for prompt, before, generated in zip(prompts, ids, answers, strict=True):
        shown = prompt if isinstance(prompt, str) else [{"role": turn.role, "content": turn.content} for turn in prompt]
        text = continuation.after(found.tokenizer, before, generated.tokens)
        yield {"prompt": shown, "text": text, "tokens": len(generated.tokens), "finish": generated.finish}


@dataclass(frozen=True)
class Scoring:
    """How `score` reads and computes. `learn` is by default every turn of a conversation, the last of a pair."""

    chat: ChatFormat = "model"
    learn: Literal["all", "last"] | None = None
    reference: str | None = None
    beta: float = 0.1
    dtype: Dtype = "float32"


def score(model: str, file: Path, scoring: Scoring) -> Iterator[dict[str, Any]]:
    """Log-probabilities of a file's conversations or pairs, in its order, by the packed path that training uses."""
    source = Source(path=str(file), format=sources.layout_of(file))
    records = list(sources.load(source))
    found = assistants.find(model)
    judge = None if scoring.reference is None else assistants.find(scoring.reference)
    # Not the fingerprint: the ids are made once, so the judge's chat template may be another.
    if judge is not None and judge.tokenizer.definition != found.tokenizer.definition:
        raise InputError(
            f"{scoring.reference}: its tokenizer differs from that of {model}; a margin needs one tokenizer"
        )
    positions = min(each.config.max_positions for each in (found, judge) if each is not None)
    examples = _render(found, records, scoring, positions)
    values = _logprobs(found, examples, scoring.dtype)
    over = None if judge is None else _logprobs(judge, examples, scoring.dtype)
    for index, (record, example) in enumerate(zip(records, examples, strict=True)):
        yield _scored(record, example, values[index], None if over is None else over[index], scoring.beta)


def export(model: str, folder: Path, format: ChatFormat, dtype: Dtype) -> None:
    """Write a MODEL as a Hugging Face folder, which must not be there yet."""
    if folder.exists():
        raise InputError(f"{folder}: already exists; choose another folder")
    found = assistants.find(model)
    assistants.save(folder, found, found.parameters(dtype), found.chat(format), dtype)


def _row_prompt(row: dict[str, Any], where: str) -> Prompt:
    if isinstance(row.get("prompt"), str):
        text = fields.text(row["prompt"], "prompt", where)
        turns = beside.asked((Message("user", text),), row, where)
        return turns if len(turns) > 1 else text
    key = "prompt" if isinstance(row.get("prompt"), list) else "messages"
    if key in row:
        return beside.asked(messages.parse_list(row[key], key, where), row, where)
    raise DataError(f"{where}: a row to answer needs `prompt` (text) or `messages`")


def _render(
    found: Assistant, records: Sequence[Conversation | Preference], scoring: Scoring, positions: int
) -> list[Example]:
    examples = []
    for record in records:
        learn = scoring.learn or ("last" if isinstance(record, Preference) else "all")
        example = corpus.render(record, found.chat(scoring.chat, learn))
        paths = [example.branch(index)[0] for index in range(len(example.starts))] or [example.tokens]
        longest = max(map(len, paths))
        if longest > positions:
            raise DataError(
                f"{record.where}: {longest} tokens, and the model has {positions} positions; shorten the row"
            )
        examples.append(example)
    return examples


def _logprobs(found: Assistant, examples: list[Example], dtype: Dtype) -> list[np.ndarray]:
    """Log-probability of each branch of each example, [K] each."""
    lengths = np.array([packing.places(len(example.tokens), example.starts) for example in examples])
    groups = np.split(np.arange(len(examples)), range(_SCORED_AT_ONCE, len(examples), _SCORED_AT_ONCE))
    branches = max(len(example.starts) for example in examples) or 1
    plan = packing.plan(lengths, groups, max(_ROW_LENGTH, int(lengths.max())), 1, branches)
    compute = llama.Compute(dtype, attention=attention.suited(jax.devices()[0]))
    compiled = scores.compiled(found.config, compute)
    parameters = found.parameters()
    values: dict[int, np.ndarray] = {}
    for update in range(len(plan.updates)):
        values |= dict(scores.of_examples(compiled, parameters, reference.microbatches(plan, examples, update, 1)))
    return [values[index] for index in range(len(examples))]


def _scored(
    record: Conversation | Preference, example: Example, values: np.ndarray, over: np.ndarray | None, beta: float
) -> dict[str, Any]:
    if isinstance(record, Conversation):
        return {"logprob": float(values[0]), "tokens": int(example.learn[1:].sum())}
    counts = [int(example.branch(index)[1][1:].sum()) for index in range(2)]
    row = {
        "chosen_logprob": float(values[0]),
        "rejected_logprob": float(values[1]),
        "chosen_tokens": counts[0],
        "rejected_tokens": counts[1],
    }
    if over is not None:
        row["margin"] = float(preference.dpo(values, over, beta)[1])
    return row
