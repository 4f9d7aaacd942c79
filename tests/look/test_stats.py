"""`bactrian data stats` counts what is there, `bactrian data check` says what training would stumble over."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from bactrian.data import tokenizer as tokenizers
from bactrian.data.chat import Chat
from bactrian.data.records import Message
from bactrian.look import stats

pytestmark = pytest.mark.usefixtures("in_tiny_cache")


def rows_of(recipe: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (recipe.parent / name).read_text().splitlines()]


def asked(verb: str, recipe: Path, *arguments: object) -> dict:
    done = tiny.call("data", verb, recipe, *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_numbers_are_those_of_every_conversation_rendered_alone(tiny_recipe: Path, tmp_path: Path):
    more = rows_of(tiny_recipe, "sft-heldout.jsonl")
    tiny.write_rows(tmp_path / "more.jsonl", [*more, {"messages": [*more[0]["messages"][:-1], said("")]}])
    second = (f"sft.data.1.path={tmp_path / 'more.jsonl'}", "sft.data.1.format=messages")
    summary = asked("stats", tiny_recipe, *second)
    chat = Chat(tokenizers.load(tiny_recipe.parent / "base"), "model")
    lengths, learnt, turns = [], 0, []
    for row in rows_of(tiny_recipe, "sft.jsonl"):
        ids, learn = chat.render(tuple(Message(turn["role"], turn["content"]) for turn in row["messages"]))
        lengths.append(len(ids) - 1)
        learnt += int(learn[1:].sum())
        turns.append(len(row["messages"]))
    first, other = summary["sources"]
    assert (first["name"], first["rows"], first["dropped"]) == ("sft.jsonl", 24, {})
    assert first["turns"] == round(float(np.mean(turns)), 2)
    assert first["tokens"]["total"] == sum(lengths)
    assert first["tokens"]["mean"] == round(sum(lengths) / 24, 1)
    ordered = sorted(lengths)
    # The p-th percentile is the smallest length that at least p % of the conversations do not exceed.
    for percentile, place in ((25, 6), (50, 12), (75, 18), (95, 23)):
        assert first["tokens"][f"p{percentile}"] == ordered[place - 1]
    assert first["learned_share"] == round(learnt / sum(lengths), 4)
    assert (other["rows"], other["dropped"]) == (6, {"empty_answer": 1})
    assert summary["all"]["rows"] == 30
    assert summary["all"]["tokens"]["total"] == first["tokens"]["total"] + other["tokens"]["total"]
    assert "length_bias" not in summary["all"]


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


def test_lengths_of_better_and_worse_answers(tiny_recipe: Path, tmp_path: Path):
    summary = asked("stats", tiny_recipe, "--stage", "dpo")
    chat = Chat(tokenizers.load(tiny_recipe.parent / "base"), "model", "last")
    tokens = []
    for row in rows_of(tiny_recipe, "pairs.jsonl"):
        ask = Message("user", row["prompt"])
        answers = (chat.render((ask, Message("assistant", row[key])))[1].sum() for key in ("chosen", "rejected"))
        tokens.append([int(count) for count in answers])
    bias = summary["all"]["length_bias"]
    assert bias["mean_better"] - bias["mean_worse"] == pytest.approx(np.mean([a - b for a, b in tokens]), abs=0.11)
    assert bias["longer_better"] == round(np.mean([a > b for a, b in tokens]), 4)
    assert bias["longer_better"] + bias["equal"] + bias["longer_worse"] == pytest.approx(1, abs=1e-3)


def test_length_bias():
    bias = stats.length_bias(np.array([[3, 1], [2, 2], [1, 4], [6, 1]]))
    shares = {"longer_better": 0.5, "equal": 0.25, "longer_worse": 0.25}
    assert bias == {**shares, "mean_better": 3.0, "mean_worse": 2.0}


def test_a_table_and_histograms(tiny_recipe: Path, tmp_path: Path):
    done = tiny.call("data", "stats", tiny_recipe, "--stage", "dpo", "--plots", tmp_path / "plots")
    assert done.code == 0, done.err
    assert "pairs.jsonl" in done.out
    assert "the better answer is longer in" in done.out
    for name in ("tokens.png", "answers.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_a_stage_that_is_well(tiny_recipe: Path):
    report = asked("check", tiny_recipe)
    assert report["ok"]
    assert report["steps"] == 18
    assert (report["epochs"], report["steps_per_epoch"], report["examples"]) == (3, 6, 72)
    assert report["tokens"] == 3 * report["tokens_per_epoch"]
    assert 0 < report["packing"] <= 1
    assert report["too_long"]["96"] == 0
    ledger = asked("stats", tiny_recipe)
    assert report["tokens_per_epoch"] == ledger["all"]["tokens"]["total"]


def found(recipe: Path, *arguments: object) -> dict[str, tuple[str, str]]:
    done = tiny.call("data", "check", recipe, *arguments, "--json")
    report = json.loads(done.out)
    assert done.code == (0 if report["ok"] else 2), done.err
    return {each["name"]: (each["level"], each["text"]) for each in report["findings"]}


def test_what_is_too_long(tiny_recipe: Path):
    findings = found(tiny_recipe, "sft.max_length=40", "sft.max_dropped=1.0")
    assert findings["too_long"][0] == "warning"
    lengths = asked("check", tiny_recipe, "sft.max_length=40", "sft.max_dropped=1.0")
    assert lengths["steps"] < 18
    findings = found(tiny_recipe, "sft.max_length=10", "sft.max_dropped=1.0")
    assert findings["cannot_train"][0] == "error"
    findings = found(tiny_recipe, "sft.max_length=600", "sft.row_length=600")
    assert findings["too_few_positions"] == (
        "error",
        "max_length is 600, and the model has 512 positions; lower it",
    )


def test_poor_packing_and_a_batch_that_is_not_full(tiny_recipe: Path):
    findings = found(tiny_recipe, "sft.batch_size=1", "sft.microbatch_rows=1", "sft.row_length=96")
    assert findings["poor_packing"][0] == "warning"
    findings = found(tiny_recipe, "sft.batch_size=7")
    assert findings["left_out"] == (
        "note",
        "9 examples do not fill a batch of 7 at the end of an epoch; each epoch leaves out others",
    )


def with_template(recipe: Path, folder: Path, template: str, **config: object) -> str:
    """An override for the tiny model with another chat template, and other settings of its tokenizer."""
    model = folder / "model"
    model.mkdir()
    for path in (recipe.parent / "base").iterdir():
        (model / path.name).symlink_to(path)
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text(template)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))
    return f"model.source={model}"


PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"


def test_a_template_that_never_ends_a_turn(tiny_recipe: Path, tmp_path: Path):
    template = PLAIN + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    findings = found(tiny_recipe, with_template(tiny_recipe, tmp_path, template))
    assert findings["no_end_of_turn"][0] == findings["end_not_learnt"][0] == "error"


def test_a_bos_of_the_tokenizer_and_one_of_the_template(tiny_recipe: Path, tmp_path: Path):
    template = "{{ bos_token }}{{ bos_token }}" + tiny.TEMPLATE
    override = with_template(tiny_recipe, tmp_path, template, bos_token="<|im_start|>")
    findings = found(tiny_recipe, override)
    assert findings["double_bos"][0] == "error"
    done = tiny.call("data", "check", tiny_recipe, override)
    assert done.code == 2
    assert "error: 24 of 24 examples looked at begin with two BOS tokens" in done.out


def test_rows_without_anything_to_learn(tiny_recipe: Path, tmp_path: Path):
    rows = rows_of(tiny_recipe, "sft.jsonl")
    rows[3]["messages"][-1]["content"] = "  "
    tiny.write_rows(tmp_path / "rows.jsonl", rows)
    findings = found(tiny_recipe, f"sft.data.0.path={tmp_path / 'rows.jsonl'}")
    assert findings["empty_answer"] == ("warning", "1 rows are dropped: empty answer")


def test_dpo_refuses_rankings_and_says_what_to_do(tiny_recipe: Path, tmp_path: Path):
    ask = {"role": "user", "content": "Where?"}
    ranked = [[ask, said(text)] for text in ("At the harbour.", "Here.", "No.")]
    tiny.write_rows(tmp_path / "ranking.jsonl", [{"ranked": ranked}] * 12)
    overrides = ["--stage", "dpo", f"dpo.data.0.path={tmp_path / 'ranking.jsonl'}", "dpo.data.0.format=ranking"]
    level, text = found(tiny_recipe, *overrides)["cannot_train"]
    assert level == "error"
    assert "dpo cannot learn from format 'ranking'; it takes preference or hh; a policy of pairs" in text
    done = tiny.call("dpo", tiny_recipe, *overrides[2:], "--run-dir", tmp_path / "run")
    assert done.code == 2 and "a policy of pairs, as all_pairs, makes pairs of rankings" in done.err
