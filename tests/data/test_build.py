"""Laws: a data set is a function of its recipe and files, on one process or many, killed or not; its ledger adds up."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bactrian.data import build
from bactrian.data.build import recipe as recipes
from bactrian.data.build import shards
from bactrian.data.chat import Chat
from bactrian.data.sources import reader
from bactrian.errors import DataError, RecipeError, RunError
from bactrian.recipe import File

from test_corpus import small_tokenizer  # isort: skip

CHAT = Chat(small_tokenizer(), "tulu")
SOURCE = Path(build.__file__).parents[3]


def rows(count: int, word: str = "row") -> list[dict[str, str]]:
    return [{"instruction": f"{word} {number}?", "output": f"{word} {number}!"} for number in range(count)]


def write(path: Path, content: list[Any]) -> Path:
    lines = (each if isinstance(each, str) else json.dumps(each) for each in content)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def recipe(folder: Path, body: str, head: str = "") -> recipes.Build:
    path = folder / "recipe.toml"
    path.write_text(f'name = "test"\nseed = 3\n{head}\n{body}', encoding="utf-8")
    return recipes.load(path)


def source(name: str, more: str = "", path: str | None = None, format: str = "alpaca") -> str:
    return f'[[sources]]\nname = "{name}"\npath = "{path or name + ".jsonl"}"\nformat = "{format}"\n{more}\n'


def written(out: Path) -> list[dict[str, Any]]:
    return [row for _, row in reader.read(File(path=str(out)))]


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def assert_adds_up(ledger: dict[str, Any], out: Path) -> None:
    found = written(out)
    for entry in ledger["sources"]:
        assert entry["read"] == entry["kept"] + sum(entry["dropped"].values())
        assert entry["written"] == entry["kept"] + entry["repeated"]
        assert all(count > 0 for count in entry["dropped"].values())
    for key in ("read", "kept", "written"):
        assert ledger[key] == sum(entry[key] for entry in ledger["sources"])
    assert ledger["written"] == len(found)
    assert json.loads((out / "ledger.json").read_text()) == ledger


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_CHUNK_BYTES", 400)


def test_rows_are_those_of_the_published_schema(tmp_path: Path):
    write(tmp_path / "a.jsonl", rows(5))
    ledger = build.build(recipe(tmp_path, source("a"), "[mixture]\nshuffle = false\n"), CHAT, tmp_path / "out", 1)
    turns = [{"role": "user", "content": "row 0?"}, {"role": "assistant", "content": "row 0!"}]
    assert written(tmp_path / "out")[0] == {"dataset": "a", "id": "a_0", "messages": turns}
    [entry] = ledger["sources"]
    rendered = [CHAT.render(record) for record in _messages(tmp_path / "out")]
    assert entry["tokens"] == ledger["tokens"] == sum(len(ids) for ids, _ in rendered)
    assert entry["learned_tokens"] == sum(int(learn.sum()) for _, learn in rendered)
    assert_adds_up(ledger, tmp_path / "out")
    assert not (tmp_path / "out" / ".build").exists()
    # What is built is a source: its rows keep their names.
    again = source("b", path=str(tmp_path / "out"), format="messages")
    build.build(recipe(tmp_path, again, "[mixture]\nshuffle = false\n"), None, tmp_path / "again", 1)
    assert written(tmp_path / "again") == written(tmp_path / "out")


def _messages(out: Path) -> list[Any]:
    from bactrian.data import sources
    from bactrian.recipe import Source

    return [record.messages for record in sources.load(Source(path=str(out), format="messages"))]  # pyright: ignore


def test_pairs_are_written_as_pairs(tmp_path: Path):
    pair = {"prompt_id": "p", "prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    write(tmp_path / "a.jsonl", [pair, {**pair, "prompt_id": "q"}])
    ledger = build.build(recipe(tmp_path, source("a", format="preference")), CHAT, tmp_path / "out", 1)
    found = written(tmp_path / "out")
    user = {"role": "user", "content": "Hi"}
    assert {row["id"] for row in found} == {"a_p", "a_q"}
    assert found[0]["prompt"] == "Hi" and found[0]["dataset"] == "a"
    assert found[0]["chosen"] == [user, {"role": "assistant", "content": "Hello."}]
    assert found[0]["rejected"] == [user, {"role": "assistant", "content": "What?"}]
    assert_adds_up(ledger, tmp_path / "out")


def big_recipe(folder: Path) -> recipes.Build:
    write(folder / "a.jsonl", [*rows(150, "café"), {"instruction": "x", "output": " "}])
    write(folder / "b.jsonl", rows(60, "b"))
    body = source("a", "count = 120") + source("b", "epochs = 1.5") + '[[screens]]\nkind = "unusable"\n'
    return recipe(folder, body, "[build]\nshard_rows = 30\n")


def test_processes_change_no_byte(tmp_path: Path, small_chunks: None):
    made = big_recipe(tmp_path)
    ledger = build.build(made, CHAT, tmp_path / "one", 1)
    build.build(made, CHAT, tmp_path / "three", 3)
    assert content(tmp_path / "one") == content(tmp_path / "three")
    assert len(content(tmp_path / "one")) == 9 and ledger["written"] == 210
    assert_adds_up(ledger, tmp_path / "one")
    # Another seed draws other rows, and orders them otherwise.
    other = made.model_copy(update={"seed": 4})
    assert build.build(other, CHAT, tmp_path / "other", 1)["written"] == 210
    assert content(tmp_path / "other") != content(tmp_path / "one")


KILLED = """
import sys
sys.path[:0] = [{source!r}, {here!r}]
import os, test_build as test
from pathlib import Path
from bactrian.data import build
from bactrian.data.build import store, shards
from bactrian.data.sources import reader
reader._CHUNK_BYTES = 400
module, name, after = {module}, {name!r}, {after}
function, calls = getattr(module, name), []
def dying(*arguments):
    calls.append(arguments)
    if len(calls) > after:
        os.kill(os.getpid(), 9)
    return function(*arguments)
setattr(module, name, dying)
made = test.recipes.load(Path({recipe!r}))
build.build(made, test.CHAT, Path({out!r}), 1)
"""


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [("store", "write", 4), ("shards", "_write", 0), ("shards", "_write", 3), ("build.atomic", "write_json", 1)],
)
def test_a_killed_build_goes_on_where_it_was(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch, module: str, name: str, after: int
):
    made = big_recipe(tmp_path)
    build.build(made, CHAT, tmp_path / "whole", 1)
    here = {"source": str(SOURCE), "here": str(Path(__file__).parent)}
    where = {"module": module, "name": name, "after": after}
    paths = {"recipe": str(tmp_path / "recipe.toml"), "out": str(tmp_path / "out")}
    died = subprocess.run([sys.executable, "-c", KILLED.format(**here, **where, **paths)], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not (tmp_path / "out" / "ledger.json").exists()
    whole = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(whole) == (after if module == "shards" else 0 if module == "store" else 7)
    parsed = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".build").rglob("*.records")}
    assert len(parsed) >= 4
    stores: list[Path] = []
    make = shards._write
    monkeypatch.setattr(shards, "_write", lambda path, *of: (stores.append(path), make(path, *of)))
    build.build(made, CHAT, tmp_path / "out", 1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    for name_, time_ in whole.items():
        assert (tmp_path / "out" / name_).stat().st_mtime_ns == time_, "a finished shard was made again"
    assert len(stores) == 7 - len(whole)


def test_a_build_with_processes_is_killed_and_goes_on(tmp_path: Path):
    write(
        tmp_path / "a.jsonl", [{"instruction": "word " * 400, "output": f"{number} " * 300} for number in range(2500)]
    )
    made = recipe(tmp_path, source("a"), "[build]\nshard_rows = 50\n")
    command = [sys.executable, "-m", "bactrian", "data", "build", str(tmp_path / "recipe.toml")]
    command += ["--out", str(tmp_path / "out"), "--processes", "2"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SOURCE)}, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.parquet"))) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert 3 <= len(there) < 50
    ledger = build.build(made, None, tmp_path / "out", 1)
    assert ledger["written"] == 2500 and ledger["tokens"] is None
    build.build(made, None, tmp_path / "whole", 1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    # A shard that was being written when its processes ended may be the only one to be new.
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in there.items())


def test_what_is_complete_is_left_and_what_is_another_is_refused(tmp_path: Path):
    made = recipe(tmp_path, source("a", path=str(write(tmp_path / "a.jsonl", rows(5)))))
    first = build.build(made, None, tmp_path / "out", 1)
    before = content(tmp_path / "out")
    assert build.build(made, None, tmp_path / "out", 1) == first and content(tmp_path / "out") == before
    write(tmp_path / "a.jsonl", rows(6))
    with pytest.raises(RunError, match="another data set is there"):
        build.build(made, None, tmp_path / "out", 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file.txt").write_text("dear")
    with pytest.raises(RunError, match="something else than a data set is there"):
        build.build(made, None, tmp_path / "mine", 1)
    with pytest.raises(RunError, match="something else than a data set is there"):
        build.build(made, None, tmp_path / "a.jsonl", 1)


def test_changed_data_are_not_mixed_with_what_is_half_built(tmp_path: Path, small_chunks: None):
    made = big_recipe(tmp_path)
    here = {"source": str(SOURCE), "here": str(Path(__file__).parent)}
    where = {"module": "shards", "name": "_write", "after": 3}
    paths = {"recipe": str(tmp_path / "recipe.toml"), "out": str(tmp_path / "out")}
    subprocess.run([sys.executable, "-c", KILLED.format(**here, **where, **paths)], capture_output=True)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3
    write(tmp_path / "b.jsonl", rows(60, "changed"))
    build.build(made, CHAT, tmp_path / "out", 1)
    build.build(made, CHAT, tmp_path / "whole", 1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


# Bad rows

GOOD = {"instruction": "a", "output": "b"}
BAD = ["{broken", "[]", {"instruction": "a"}, {"instruction": 3, "output": "b"}]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_stops_or_is_counted(tmp_path: Path, bad: Any):
    path = write(tmp_path / "a.jsonl", [GOOD, GOOD, bad, GOOD])
    with pytest.raises(DataError) as caught:
        build.build(recipe(tmp_path, source("a")), None, tmp_path / "out", 1)
    assert str(caught.value).startswith(f"{path}:3: ") and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "ledger.json").exists()
    dropping = recipe(tmp_path, source("a"), '[build]\non_bad_row = "drop"\n')
    ledger = build.build(dropping, None, tmp_path / "out", 1)
    [entry] = ledger["sources"]
    assert entry["read"] == entry["rows"] == 4 and entry["dropped"] == {"bad_row": 1}
    assert entry["bad_rows"] == [str(caught.value)]
    assert_adds_up(ledger, tmp_path / "out")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_bad_row_is_the_one_named(tmp_path: Path, small_chunks: None, processes: int):
    path = write(tmp_path / "a.jsonl", [*rows(50), "{first", *rows(50), "{second", *rows(50)])
    with pytest.raises(DataError, match=r":51: not JSON"):
        build.build(recipe(tmp_path, source("a")), None, tmp_path / "out", processes)
    assert path.exists()


def refused(folder: Path, body: str, head: str = "") -> str:
    with pytest.raises((DataError, RecipeError)) as caught:
        build.build(recipe(folder, body, head), None, folder / "out", 1)
    message = str(caught.value)
    assert "\n" not in message and not (folder / "out" / "ledger.json").exists()
    return message


def test_what_cannot_be_built_is_one_line_that_says_why(tmp_path: Path):
    write(tmp_path / "a.jsonl", rows(5))
    write(tmp_path / "blank.jsonl", [])
    write(tmp_path / "bad.jsonl", ["{", "["])
    write(tmp_path / "silent.jsonl", [{"instruction": "a", "output": ""}] * 3)
    assert "gone.jsonl: cannot read the data: No such file" in refused(tmp_path, source("gone"))
    assert "blank.jsonl: there is no row in it" in refused(tmp_path, source("a") + source("blank"))
    assert "a: 6 records are wanted and it has 5" in refused(tmp_path, source("a", "count = 6"))
    assert ":1: no 'messages', which the layout 'messages' needs (found: instruction, output)" in refused(
        tmp_path, source("a", format="messages")
    )
    drop = '[build]\non_bad_row = "drop"\n'
    assert "bad.jsonl: no row of it can be used (2 bad_row); the first: " in refused(tmp_path, source("bad"), drop)
    screen = '[[screens]]\nkind = "unusable"\n'
    assert "silent.jsonl: no record of it is left after the screens" in refused(tmp_path, source("silent") + screen)
    assert "a has conversations and p preferences, which cannot be one data set" in refused(
        tmp_path, source("a") + source("p", path=str(_pairs(tmp_path)), format="preference")
    )


def _pairs(folder: Path) -> Path:
    return write(folder / "p.jsonl", [{"prompt": "Hi", "chosen": "a", "rejected": "b"}])


@pytest.mark.parametrize(
    ("body", "head", "expected"),
    [
        (source("a", "cuont = 3"), "", "sources.0.cuont is not a setting; did you mean sources.0.count?"),
        (source("a", "count = 3\nepochs = 2"), "", "sources.0: give one of count, proportion and epochs"),
        (source("a", format="alpca"), "", "sources.0.format is 'alpca'; did you mean 'alpaca'?"),
        (source("a").replace("format", "fromat"), "", "sources.0.format is missing"),
        (source("a", "count = 0"), "", "sources.0.count is 0: input should be greater than or equal to 1"),
        (source("a", "proportion = 0.5") + source("b"), "", "give every source a proportion, or none"),
        (source("a", "proportion = 0.5"), "", "the proportions add up to 0.5, not to 1"),
        (source("a", "count = 5"), "[mixture]\ntemperature = 2.0\n", "mixture.temperature sets the shares"),
        (source("a"), "[mixture]\nsize = 5\n", "mixture.size needs sources with proportions, or a temperature"),
        (source("s", format="sharegpt"), "", "s is cut at max_tokens, which needs a section [tokenizer]"),
        (source("s", "paths = 'bst'", format="oasst"), "", "sources.0.paths is 'bst'"),
        ("", "", "sources is missing"),
        (source("a") + "[[screens]]\nkind = 'unusabel'\n", "", "screens.0"),
        (source("a"), "[biuld]\nshard_rows = 3\n", "biuld is not a setting; did you mean build?"),
    ],
)
def test_a_recipe_that_is_wrong_is_one_line(tmp_path: Path, body: str, head: str, expected: str):
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, body, head)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


# The ledger

FAULTS = [*BAD, {"instruction": "a", "output": "  "}, {"instruction": "a", "output": None}, "", "null"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faulty=st.lists(
        st.lists(st.sampled_from([None, None, None, *range(len(FAULTS))]), max_size=12), min_size=1, max_size=3
    ),
    amount=st.sampled_from(["", "epochs = 0.5", "epochs = 2.3", "count = 4\nrepeat = true", "proportion"]),
    draw=st.sampled_from(["before_screens", "after_screens"]),
    screened=st.booleans(),
)
def test_the_ledger_adds_up_whatever_the_faults(
    tmp_path_factory: pytest.TempPathFactory, faulty: list[list[int | None]], amount: str, draw: str, screened: bool
):
    folder = tmp_path_factory.mktemp("build")
    body = ""
    for number, faults in enumerate(faulty):
        # At least one good row, so that the source gives something.
        listed = [*rows(1, f"s{number}"), *(rows(1)[0] if fault is None else FAULTS[fault] for fault in faults)]
        write(folder / f"s{number}.jsonl", listed)
        share = f"proportion = {1 / len(faulty)!r}" if amount == "proportion" else amount
        body += source(f"s{number}", f"{share}\nscreened = {str(screened).lower()}")
    body += '[[screens]]\nkind = "unusable"\n'
    head = f'[build]\non_bad_row = "drop"\nshard_rows = 5\n[mixture]\ndraw = "{draw}"\n'
    made = recipe(folder, body, head)
    try:
        ledger = build.build(made, CHAT, folder / "out", 1)
    except DataError as error:
        assert "no record is left after the screens" in str(error) and draw == "before_screens"
        return
    assert_adds_up(ledger, folder / "out")
    for number, (entry, faults) in enumerate(zip(ledger["sources"], faulty, strict=True)):
        # A blank line is no row.
        assert entry["rows"] == entry["read"] == 1 + sum(fault != FAULTS.index("") for fault in faults)
        mine = sum(row["dataset"] == f"s{number}" for row in written(folder / "out"))
        assert entry["written"] == mine


def test_drawn_before_screens_the_counts_are_those_of_the_raw_rows(tmp_path: Path):
    write(tmp_path / "a.jsonl", [*rows(30), *({"instruction": f"{n}", "output": ""} for n in range(10))])
    body = source("a", "count = 20") + '[[screens]]\nkind = "unusable"\n'
    before = build.build(recipe(tmp_path, body, '[mixture]\ndraw = "before_screens"\n'), None, tmp_path / "before", 1)
    after = build.build(recipe(tmp_path, body), None, tmp_path / "after", 1)
    [entry] = before["sources"]
    assert entry["dropped"]["not_drawn"] == 20 and entry["kept"] == 20 - entry["dropped"]["empty_answer"] < 20
    assert after["sources"][0]["dropped"] == {"empty_answer": 10, "not_drawn": 10}
    assert after["written"] == 20


def test_identity_rows_are_repeated_and_not_screened(tmp_path: Path):
    write(tmp_path / "h.jsonl", [{"Prompt": "Who?", "Output": "{model_name}"}, {"Prompt": "By?", "Output": ""}])
    write(tmp_path / "a.jsonl", rows(3))
    names = 'model_name = "Camel"\ndevelopers = "us"\nepochs = 10\nscreened = false'
    body = source("h", names, format="hard_coded") + source("a") + '[[screens]]\nkind = "unusable"\n'
    ledger = build.build(recipe(tmp_path, body), None, tmp_path / "out", 1)
    entry = ledger["sources"][0]
    assert (entry["kept"], entry["repeated"], entry["written"], entry["dropped"]) == (2, 18, 20, {})
    answers = [row["messages"][1]["content"] for row in written(tmp_path / "out") if row["dataset"] == "h"]
    assert answers.count("Camel") == 10 and answers.count("") == 10


# As a user builds


def test_the_27_lines_that_do_not_parse_are_the_ones_dropped(shared_data: Path, tmp_path: Path):
    path = shared_data / "sft" / "sharegpt_v3_4797.jsonl.gz"
    body = source("sharegpt", "max_tokens = 0", path=str(path), format="sharegpt")
    made = recipe(tmp_path, body, '[build]\non_bad_row = "drop"\n')
    ledger = build.build(made, None, tmp_path / "out", 2)
    [entry] = ledger["sources"]
    assert entry["rows"] == 4796 and entry["dropped"]["bad_row"] == 27  # of 4,797 lines one is blank
    assert all("not JSON" in line for line in entry["bad_rows"])
    assert_adds_up(ledger, tmp_path / "out")


def test_the_verb_prints_the_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import tiny

    write(tmp_path / "a.jsonl", rows(5))
    recipe(tmp_path, source("a"))
    done = tiny.call("data", "build", tmp_path / "recipe.toml", "seed=5", "--out", tmp_path / "out")
    assert done.code == 0 and "a" in done.out and "5" in done.out
    assert "ledger.json" in done.err
    as_json = tiny.call("data", "build", tmp_path / "recipe.toml", "seed=5", "--out", tmp_path / "out", "--json")
    assert json.loads(as_json.out) == json.loads((tmp_path / "out" / "ledger.json").read_text())
    wrong = tiny.call("data", "build", tmp_path / "recipe.toml", "sources.0.count=9", "--out", tmp_path / "new")
    assert wrong.code == 2 and "error: a: 9 records are wanted and it has 5; ask for fewer" in wrong.err
