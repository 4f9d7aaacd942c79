"""lm-eval through our engine equals its own `hf` model: SmolLM2-135M, real weights, real benchmarks.

Log-likelihoods to 1e-3 relative, the same choice where the best two differ by more than 1e-3, the same greedy text.
"""

from pathlib import Path
from typing import Any

import local_tasks
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed; it comes with the extra `eval`")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from bactrian import assistant, verbs
from bactrian.evaluate.lm_eval_model import Model
from bactrian.respond import Respondent

# lm-eval's decorators hide what these take.
simple_evaluate: Any = lm_eval.simple_evaluate
Reference: Any = HFLM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def exported(smollm2, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    verbs.export(str(smollm2), folder, "model", "float32")
    return folder


@pytest.fixture(scope="module")
def ours(exported) -> Model:
    respondent = Respondent(assistant.find(str(exported)), "model")
    return Model(respondent, "smollm2", respondent.text)


@pytest.fixture(scope="module")
def theirs(exported) -> Any:
    return Reference(pretrained=str(exported), device="cpu", dtype="float32", batch_size=8)


def responses(model: Any, folder: Path, name: str, chat: bool = False) -> list[list[Any]]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=manager,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    firsts = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    return [[response[0] for response in sample["resps"]] for sample in firsts]


def assert_same_likelihoods(own: list[list[Any]], other: list[list[Any]], count: int) -> None:
    assert len(own) == len(other) == count
    for mine, his in zip(own, other, strict=True):
        np.testing.assert_allclose([value for value, _ in mine], [value for value, _ in his], rtol=1e-3)
        first, second = np.sort([value for value, _ in his])[::-1][:2]
        if first - second > 1e-3:
            assert np.argmax([value for value, _ in mine]) == np.argmax([value for value, _ in his])


@pytest.mark.parametrize("chat", [False, True])
def test_mmlu(shared_data, tmp_path, ours, theirs, chat):
    count = 100 if chat else 500
    name = local_tasks.mmlu(tmp_path, shared_data, count)
    own, other = (responses(model, tmp_path, name, chat) for model in (ours, theirs))
    assert_same_likelihoods(own, other, count)


def test_truthfulqa(shared_data, tmp_path, ours, theirs):
    name = local_tasks.truthfulqa(tmp_path, shared_data, 200)
    own, other = (responses(model, tmp_path, name) for model in (ours, theirs))
    assert_same_likelihoods(own, other, 200)


@pytest.mark.parametrize("task", ["gsm8k", "bbh"])
def test_greedy_text(shared_data, tmp_path, ours, theirs, task):
    name = getattr(local_tasks, task)(tmp_path, shared_data, 50)
    own, other = (responses(model, tmp_path, name) for model in (ours, theirs))
    assert len(own) == len(other) == 50
    assert own == other
