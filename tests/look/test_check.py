"""Laws: what is wrong with rows is all said before training, and what is called an error stops a run."""

import json
from pathlib import Path
from typing import Any

import tiny


def checked(recipe: Path, *arguments: object) -> dict[str, Any]:
    done = tiny.call("data", "check", recipe, *arguments, "--json")
    report = json.loads(done.out)
    assert done.code == (0 if report["ok"] else 2), done.err
    return report


def level(report: dict[str, Any], name: str) -> tuple[str, str]:
    [found] = [(each["level"], each["text"]) for each in report["findings"] if each["name"] == name]
    return found


def rows_with_faults(recipe: Path, path: Path) -> str:
    """The tiny conversations with 25 rows that do not fit, of three kinds, put between them."""
    rows: list[Any] = [json.loads(line) for line in (recipe.parent / "sft.jsonl").read_text().splitlines()]
    turns = rows[0]["messages"]
    bad = [
        {"messages": [{"role": "user"}]},
        {"messages": [{**turns[0], "role": "who"}]},
        {"messages": turns, "tools": [1]},
    ]
    lines = [json.dumps(row) for row in rows[:10] + bad * 8 + rows[10:]]
    path.write_text("\n".join([*lines, "{broken"]) + "\n")
    return f"sft.data.0.path={path}"


def test_all_bad_rows_are_listed_with_their_kinds(tiny_recipe: Path, tmp_path: Path):
    override = rows_with_faults(tiny_recipe, tmp_path / "a.jsonl")
    report = checked(tiny_recipe, override)
    kinds = {"missing_key": 8, "unknown_role": 8, "not_carried": 8, "not_json": 1}
    assert report["bad_rows"]["kinds"] == kinds
    assert len(report["bad_rows"]["first"]) == 20
    assert report["bad_rows"]["first"][0].startswith(f"{tmp_path}/a.jsonl:11: messages[0] has no 'content'")
    grave, text = level(report, "bad_rows")
    assert grave == "error" and text.startswith("25 of 55 rows do not fit: 8 missing_key, 8 not_carried, 1 not_json")
    done = tiny.call("data", "check", tiny_recipe, override)
    assert f"{tmp_path}/a.jsonl:13: tools is not carried" in done.out and "… and 5 more" in done.out
    done = tiny.call("sft", tiny_recipe, override, "--run-dir", tmp_path / "run")
    assert done.code == 2 and f"{tmp_path}/a.jsonl:11: messages[0] has no 'content'" in done.err


def test_a_run_drops_bad_rows_under_max_dropped(tiny_recipe: Path, tmp_path: Path):
    override = rows_with_faults(tiny_recipe, tmp_path / "a.jsonl")
    drop = (override, "sft.on_bad_row=drop")
    done = tiny.call("data", "show", tiny_recipe, *drop)
    assert done.code == 2 and "25 of 49 rows (51.0%) cannot be used: 25 bad_row (8 missing_key" in done.err
    report = checked(tiny_recipe, *drop, "sft.max_dropped=0.6")
    assert level(report, "bad_rows")[0] == "warning" and report["examples"] == 72
    # What is tokenized for a run that drops them does not serve one that stops.
    assert tiny.call("data", "show", tiny_recipe, *drop, "sft.max_dropped=0.6").code == 0
    done = tiny.call("data", "show", tiny_recipe, override, "sft.max_dropped=0.6")
    assert done.code == 2 and f"{tmp_path}/a.jsonl:11: messages[0] has no 'content'" in done.err


def test_a_row_that_the_template_refuses_is_a_bad_row(tiny_recipe: Path, tmp_path: Path):
    rows = [json.loads(line) for line in (tiny_recipe.parent / "sft.jsonl").read_text().splitlines()]
    tiny.write_rows(
        tmp_path / "a.jsonl", [*rows, {"messages": [{"role": "system", "content": "Be"}, *rows[0]["messages"]]}]
    )
    model = tmp_path / "model"
    model.mkdir()
    for path in (tiny_recipe.parent / "base").iterdir():
        (model / path.name).symlink_to(path)
    (model / "chat_template.jinja").unlink()
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (model / "chat_template.jinja").write_text(refusal + tiny.TEMPLATE)
    report = checked(
        tiny_recipe, f"model.source={model}", f"sft.data.0.path={tmp_path / 'a.jsonl'}", "sft.on_bad_row=drop"
    )
    assert report["bad_rows"]["kinds"] == {"chat_format": 1} and report["examples"] == 72


def test_columns_that_nobody_reads_are_listed_once(tiny_recipe: Path, tmp_path: Path):
    rows = [json.loads(line) for line in (tiny_recipe.parent / "sft.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        row |= {"category": "talk", "id": index, "empty": None, "tools": []}
        row["messages"][0]["name"] = "Ada" if index < 5 else ""
    tiny.write_rows(tmp_path / "a.jsonl", rows)
    report = checked(tiny_recipe, f"sft.data.0.path={tmp_path / 'a.jsonl'}")
    assert report["unread_columns"] == {"category": 24, "messages[].name": 5}
    expected = "columns that are not read: category (24 rows), messages[].name (5 rows)"
    assert level(report, "unread_columns") == ("note", expected)


def test_what_the_check_calls_an_error_stops_a_run(tiny_recipe: Path, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    for path in (tiny_recipe.parent / "base").iterdir():
        (model / path.name).symlink_to(path)
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    grave, text = level(checked(tiny_recipe, f"model.source={model}"), "no_end_of_turn")
    done = tiny.call("sft", tiny_recipe, f"model.source={model}", "--run-dir", tmp_path / "run")
    assert grave == "error" and done.code == 2 and f"error: sft: {text}" in done.err


def test_a_conversation_that_goes_on_after_its_last_answer_is_well(tiny_recipe: Path, tmp_path: Path):
    rows = [json.loads(line) for line in (tiny_recipe.parent / "sft.jsonl").read_text().splitlines()]
    for row in rows:
        row["messages"] += [{"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "No.", "weight": 0}]
    tiny.write_rows(tmp_path / "a.jsonl", rows)
    for chat in ("tulu", "model"):
        report = checked(
            tiny_recipe, f"sft.data.0.path={tmp_path / 'a.jsonl'}", f"model.chat={chat}", "sft.max_length=128"
        )
        assert [each["name"] for each in report["findings"] if each["level"] == "error"] == []
        assert level(report, "noted") == ("note", "counted in the ledger: 24 masked turns")
