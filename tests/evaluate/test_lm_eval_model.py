"""Laws: lm-eval through our engine says what it says through `transformers`, on a tiny random model."""

import os
from pathlib import Path
from typing import Any

import pytest
import tiny

pytest.importorskip("lm_eval", reason="lm-eval is not installed; it comes with the extra `eval`")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from bactrian import assistant
from bactrian.errors import InputError
from bactrian.evaluate.lm_eval_model import Model
from bactrian.respond import Respondent

# lm-eval's decorators hide what these take.
simple_evaluate: Any = lm_eval.simple_evaluate
Reference: Any = HFLM

WORDS = "Where does Ada find bread? Good day! Boris finds maps at the harbour, and letters at the school tower."
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "open": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        # A letter that is in no special token: lm-eval's own check for stops reads those too.
        "generation_kwargs": {"until": ["h"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{question}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "prefixed": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "gen_prefix": "The answer is",
        "metric_list": [{"metric": "acc"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, and a task of every kind over ten questions."""
    import yaml

    root = tmp_path_factory.mktemp("lm_eval")
    tiny.model(root / "model", WORDS)
    words = WORDS.split()
    rows = [
        {
            "question": f"{' '.join(words[index : index + 5])} {'x' * index}{' ' * (index % 3)}",
            "choices": [words[index], f"{words[index + 1]} {words[3]}", "the", "the school"],
            "answer": index % 4,
        }
        for index in range(10)
    ]
    tiny.write_rows(root / "rows.jsonl", rows)
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(root / "rows.jsonl")}}}
        content = {"task": f"tiny_{name}", "test_split": "test", "num_fewshot": 0, **data, **task}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def respondent(folder) -> Respondent:
    return Respondent(assistant.find(str(folder / "model")), "model")


@pytest.fixture(scope="module")
def reference(folder) -> Any:
    return Reference(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=4)


def responses(model, folder: Path, name: str, chat: bool, shots: int | None) -> list[list[Any]]:
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    found = simple_evaluate(
        model=model,
        tasks=[f"tiny_{name}"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        num_fewshot=shots,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    return [sample["resps"] for sample in found["samples"][f"tiny_{name}"]]


@pytest.mark.parametrize(
    ("name", "chat", "shots"),
    [
        ("choices", False, 0),
        ("choices", False, 3),
        ("choices", True, 2),
        ("prefixed", True, 0),
        ("open", False, 0),
        ("open", True, 0),
        ("rolling", False, 0),
    ],
)
def test_lm_eval_says_the_same_through_transformers(folder, respondent, reference, name, chat, shots):
    ours = responses(Model(respondent, "tiny", respondent.text), folder, name, chat, shots)
    theirs = responses(reference, folder, name, chat, shots)
    assert len(ours) == len(theirs) == 10
    for own, other in zip(ours, theirs, strict=True):
        for [mine], [his] in zip(own, other, strict=True):
            if isinstance(his, str):
                assert mine == his
            elif isinstance(his, tuple):
                assert mine[0] == pytest.approx(his[0], rel=1e-3)
                assert bool(mine[1]) == bool(his[1])
            else:
                assert mine == pytest.approx(his, rel=1e-3)


def test_what_a_conversation_says_never_becomes_a_special_token(respondent):
    model = Model(respondent, "tiny", respondent.text)
    text = model.apply_chat_template([{"role": "user", "content": "a <|im_end|> b"}])
    end = respondent.assistant.tokenizer.special["<|im_end|>"]
    assert list(respondent.ids(model._prompt(text))).count(end) == 1
    assert list(respondent.ids(model._prompt("a <|im_end|> b"))).count(end) == 0


def test_a_request_that_our_engine_cannot_meet_is_refused(respondent):
    asked = Instance("generate_until", {}, ("Good day", {"until": ["."], "num_beams": 4}), 0)
    with pytest.raises(InputError, match="num_beams"):
        Model(respondent, "tiny", respondent.text).generate_until([asked])
