"""A small question set of our own, in the layouts of MT-Bench and AlpacaEval."""

import json
from pathlib import Path
from typing import Any

RATE = "You rate. Use [[rating]].\n\n[Question]\n{question}\n\n[Answer]\n{answer}"
RATE_BY_REFERENCE = "You rate. Use [[rating]].\n{question}\nReference: {ref_answer_1}\n{answer}"
RATE_TALK = "1: {question_1}\n{answer_1}\n2: {question_2}\n{answer_2}"
RATE_TALK_BY_REFERENCE = "{question_1}{ref_answer_1}\n{question_2}{ref_answer_2}\n{answer_1}\n{answer_2}"
PAIR = "{question}\nA: {answer_a}\nB: {answer_b}"
PAIR_BY_REFERENCE = "{question}\nReference: {ref_answer_1}\nA: {answer_a}\nB: {answer_b}"
PAIR_TALK = "{question_1} {question_2}\nA: {answer_a_1} {answer_a_2}\nB: {answer_b_1} {answer_b_2}"
PAIR_TALK_BY_REFERENCE = PAIR_TALK + "\nReference: {ref_answer_1} {ref_answer_2}"

TEMPLATES = [
    ("single-v1", "single", "You help.", RATE, "[[rating]]"),
    ("single-math-v1", "single", "You help.", RATE_BY_REFERENCE, "[[rating]]"),
    ("single-v1-multi-turn", "single", "You rate. Use [[rating]].", RATE_TALK, "[[rating]]"),
    ("single-math-v1-multi-turn", "single", "You rate. Use [[rating]].", RATE_TALK_BY_REFERENCE, "[[rating]]"),
    ("pair-v2", "pairwise", "Say [[A]], [[B]] or [[C]].", PAIR, "[[A]]"),
    ("pair-math-v1", "pairwise", "Say [[A]], [[B]] or [[C]].", PAIR_BY_REFERENCE, "[[A]]"),
    ("pair-v2-multi-turn", "pairwise", "Say [[A]], [[B]] or [[C]].", PAIR_TALK, "[[A]]"),
    ("pair-math-v1-multi-turn", "pairwise", "Say [[A]], [[B]] or [[C]].", PAIR_TALK_BY_REFERENCE, "[[A]]"),
]
RANKING = (
    "<|im_start|>system\nYou rank.\n<|im_end|>\n<|im_start|>user\nPrompt: {instruction}\nmodel_1: {output_1}\n"
    "model_2: {output_2}\nGive each a rank.\n<|im_end|>"
)
CHOOSING = (
    "<|im_start|>system\nYou choose.\n<|im_end|>\n<|im_start|>user\n{instruction}\nm: {output_1}\nM: {output_2}\n"
    "m or M?\n<|im_end|>"
)


def make(folder: Path, questions: int = 6) -> Path:
    """Write everything; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    categories = ("writing", "math", "stem")
    asked = [
        {"question_id": 300 + n, "category": categories[n % 3], "turns": [f"What is {n}?", f"And after {n}?"]}
        for n in range(questions)
    ]
    write(folder / "question.jsonl", asked)
    references = [answer(row["question_id"], "gpt-4", ["One.", "Two."]) for row in asked if row["category"] == "math"]
    write(folder / "reference_answer_gpt-4.jsonl", references)
    names = ("name", "type", "system_prompt", "prompt_template", "output_format")
    write(folder / "judge_prompts.jsonl", [dict(zip(names, each, strict=True)) for each in TEMPLATES])
    for model in ("ada", "bob"):
        turns = [[f"{model} says {n}.", f"{model} says {n + 1}."] for n in range(questions)]
        rows = [answer(row["question_id"], model, said) for row, said in zip(asked, turns, strict=True)]
        write(folder / f"{model}.jsonl", rows)
    for model in ("text_davinci_003", "gpt4_1106_preview", "cleo"):
        rows = [
            {"instruction": f"Tell of {n}.", "output": f"{model} tells of {n}. " * (1 + n % 4), "generator": model}
            for n in range(questions)
        ]
        rows = [{**row, "dataset": categories[n % 3]} for n, row in enumerate(rows)]
        name = "cleo.json" if model == "cleo" else f"{model}_model_outputs.json"
        (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    (folder / "alpaca_eval.txt").write_text(RANKING, encoding="utf-8")
    (folder / "alpaca_eval_clf.txt").write_text(CHOOSING, encoding="utf-8")
    return folder


def answer(question: int, model: str, turns: list[str]) -> dict[str, Any]:
    return {"question_id": question, "model_id": model, "choices": [{"index": 0, "turns": turns}]}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
