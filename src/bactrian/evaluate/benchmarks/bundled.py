"""Worked examples of others that lm-eval brings along: those of GSM8K, and the prompts of BIG-Bench Hard."""

from pathlib import Path
from typing import Any

import yaml

from bactrian.evaluate import needs

# One task's published prompts go on in the line in which they begin to think.
_ON_THE_SAME_LINE = "sports_understanding"
_THINKING = "A: Let's think step by step."


def worked_examples() -> list[dict[str, str]]:
    """The eight `question`s and `answer`s of Wei et al. 2022, which say "So the answer is", as in the paper."""
    samples = _task("gsm8k", "gsm8k-cot.yaml")["fewshot_config"]["samples"]
    return [
        {"question": sample["question"], "answer": sample["target"].replace("The answer is", "So the answer is")}
        for sample in samples
    ]


def bbh_prompts() -> dict[str, str]:
    """Of each task of BIG-Bench Hard what comes before the question, as its authors' cot-prompts have it."""
    found = {}
    for path in sorted(_folder("bbh", "cot_fewshot").glob("[a-z]*.yaml")):
        task = _task("bbh", "cot_fewshot", path.name)
        between = " " if path.stem == _ON_THE_SAME_LINE else "\n"
        samples = task["fewshot_config"]["samples"]
        shots = [f"Q: {each['input']}\n{_THINKING}{between}{each['target']}" for each in samples]
        found[path.stem] = (task["description"] + "\n\n".join(shots)).strip()
    return found


def _folder(*parts: str) -> Path:
    tasks = needs.load("lm_eval.tasks")
    assert tasks.__file__
    return Path(tasks.__file__).parent.joinpath(*parts)


def _task(*parts: str) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """Takes lm-eval's `!function` for the text it is."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    return yaml.load(_folder(*parts).read_text(encoding="utf-8"), Loader)
