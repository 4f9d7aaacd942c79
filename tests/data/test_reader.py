"""Laws: a container's rows come out whole, each with its place; what cannot be read is one line that names it."""

import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bactrian.data import sources
from bactrian.data.records import Conversation, Message, Preference
from bactrian.data.sources import json_file, reader
from bactrian.errors import DataError
from bactrian.recipe import File, Layout, Source

Record = Conversation | Preference

USER, ANSWER = Message("user", "Hi"), Message("assistant", "Hello.")
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def turns(*messages: Message) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def load(path: Path | str, layout: Layout = "messages", limit: int | None = None) -> list[Record]:
    return list(sources.load(Source(path=str(path), format=layout, limit=limit)))


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def jsonl(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def refusal(path: Path | str, layout: Layout = "messages") -> str:
    with pytest.raises(DataError) as caught:
        load(path, layout)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


# Files


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
@pytest.mark.parametrize("shape", ["lines", "array", "indented"])
def test_a_json_file_holds_lines_or_an_array(tmp_path: Path, name: str, shape: str):
    # Texts with every kind of line separator, and brackets that are not JSON's.
    rows = [{"messages": turns(USER, Message("assistant", text))} for text in ("a\nb", "\u2028\x85], [", "\r\n", "é😀")]
    text = jsonl(rows) if shape == "lines" else json.dumps(rows, indent=2 if shape == "indented" else None)
    path = write(tmp_path / name, text)
    records = load(path)
    assert [turns(*r.messages) for r in records if isinstance(r, Conversation)] == [row["messages"] for row in rows]
    if shape != "array":
        # A place names the line where the row begins.
        lines = text.split("\n")
        starts = [i for i, line in enumerate(lines, 1) if line == "  {" or line.startswith('{"messages"')]
        assert [record.where for record in records] == [f"{path}:{line}" for line in starts]


def test_parquet_gives_the_same_records_as_json_lines(tmp_path: Path, shared_data: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = shared_data / "ultrafeedback" / "uf_binarized_train_1000.jsonl"
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in map(json.loads, file.open())]
    chats = [{**row, "chosen": turns(USER, Message("assistant", row["chosen"]))} for row in rows[:300]]
    for name, table in (("text", rows[:300]), ("messages", chats)):
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(table), path)
        lines = write(tmp_path / f"{name}.jsonl", jsonl(table))
        expected = [r.branches for r in load(lines, "preference") if isinstance(r, Preference)]
        records = load(path, "preference")
        assert [r.branches for r in records if isinstance(r, Preference)] == expected
        assert records[299].where == f"{path}:300"


def test_limit_reads_no_further(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", jsonl([CHAT] * 3) + "broken\n")
    assert len(load(path, limit=3)) == 3
    assert refusal(path).startswith(":4: not JSON")


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + jsonl([CHAT]).encode() + b"\n  \r\n" + jsonl([CHAT]).encode())
    assert [record.where for record in load(path)] == [f"{path}:1", f"{path}:4"]


GOOD = jsonl([CHAT])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "", ": there is no row"),
        ("a.json", "[]", ": there is no row"),
        ("a.json.gz", "", ": there is no row"),
        ("a.jsonl", GOOD + '{"messages": \n', ":2: not JSON: Expecting value at column 13; fix or remove the line"),
        ("a.jsonl", GOOD + "[" * 100_000, ":2: not JSON: nested too deep"),
        ("a.jsonl", GOOD + "1" * 5000, ":2: not JSON: Exceeds the limit"),
        ("a.jsonl", GOOD + "12\n", ":2: the row is a number, not a JSON object"),
        ("a.jsonl", GOOD + "[]\n", ":2: the row is a list, not a JSON object"),
        ("a.jsonl", GOOD + "null\n", ":2: the row is null, not a JSON object"),
        ("a.jsonl", GOOD.encode() + b'{"a": "\xff"}\n', ":2: not UTF-8 text (byte 8)"),
        ("a.json", f"[\n{GOOD},\n{GOOD}", ":5: not JSON: no comma or ] after a row"),
        ("a.json", f"[\n{GOOD},\n{GOOD}{GOOD}]", ":5: not JSON: no comma or ] after a row"),
        ("a.json", f"\n[{GOOD},\n\nnope]", ":5: not JSON: Expecting value at column 1"),
        ("a.json", f"[{GOOD}]\n[{GOOD}]", ":3: not JSON: something follows the array"),
        ("a.json", f"[{GOOD}, 5]", ":2: the row is a number"),
        ("a.csv", "x", ": the name does not say what the file is"),
        ("a.parquet", "PAR1 is not enough PAR1", ":1: not readable as parquet"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path: Path, name: str, content: str | bytes, expected: str):
    assert refusal(write(tmp_path / name, content)).startswith(expected)


def test_a_missing_file_or_a_folder_is_one_line(tmp_path: Path):
    for name in ("a.jsonl", "a.json.gz", "a.parquet"):
        assert "No such file" in refusal(tmp_path / name)
    (tmp_path / "b.jsonl").mkdir()
    assert "Is a directory" in refusal(tmp_path / "b.jsonl")


def test_a_damaged_gzip_file_is_one_line(tmp_path: Path):
    whole = gzip.compress(jsonl([{**CHAT, "id": i} for i in range(5000)]).encode())
    path = tmp_path / "a.jsonl.gz"
    expected = ": not gzip, or damaged, or cut short; fetch the file again"
    for damaged in (whole[:-200], whole[:-8] + bytes(8), whole[:100] + bytes(50) + whole[150:], GOOD.encode()):
        path.write_bytes(damaged)
        line, message = refusal(path).removeprefix(":").split(":", 1)
        assert line.isdigit()
        assert f":{message}" == expected


def test_reading_json_loads_no_heavy_library(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", GOOD)
    code = (
        "import sys; from bactrian.data import sources; from bactrian.recipe import Source; "
        f"list(sources.load(Source(path={str(path)!r}, format='messages'))); "
        "print({'jax', 'pyarrow', 'datasets', 'huggingface_hub'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# The Hub


def test_a_hub_dataset_is_read_at_its_revision(monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, split: str, revision: str | None) -> Any:
        asked.append((name, split, revision))
        return datasets.Dataset.from_list([CHAT, CHAT, CHAT])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = list(sources.load(Source(path="hf:org/set@v1", format="messages", split="test", limit=2)))
    assert [record.where for record in records] == ["hf:org/set@v1:test:1", "hf:org/set@v1:test:2"]
    assert records[0] == Conversation((USER, ANSWER), "hf:org/set@v1:test:1")
    load("hf:org/set")
    assert asked == [("org/set", "test", "v1"), ("org/set", "train", None)]


def test_the_hub_s_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    missing = datasets.exceptions.DatasetNotFoundError
    cases = [
        (missing("Dataset 'org/set' is a gated dataset on the Hub.\nAsk for access."), "hf auth login"),
        (missing("Dataset 'org/set' doesn't exist on the Hub"), "check ORG/NAME"),
        (ConnectionError("Couldn't reach 'org/set' on the Hub (OfflineModeIsEnabled)"), "go online"),
        (ValueError("Unknown split \"train\". Should be one of ['train_prefs']."), "does it have the split 'train'?"),
        (datasets.exceptions.DatasetGenerationError("An error occurred"), "cannot be loaded"),
    ]
    for error, advice in cases:

        def load_dataset(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        message = refusal("hf:org/set")
        assert advice in message
        assert str(error)[:20] in message


# What is no JSON of one row a line


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
def test_rows_of_a_one_line_array_are_named_by_their_index(tmp_path: Path, name: str):
    path = write(tmp_path / name, json.dumps([CHAT, CHAT, {"messages": 5}]))
    assert refusal(path).startswith("[2]: messages is a number")
    path = write(tmp_path / name, json.dumps([CHAT, CHAT]))
    assert [record.where for record in load(path)] == [f"{path}[0]", f"{path}[1]"]
    path = write(tmp_path / name, f"[{json.dumps(CHAT)},\n{json.dumps(CHAT)}, {json.dumps(CHAT)}]")
    assert [record.where for record in load(path)] == [f"{path}[0]", f"{path}:2", f"{path}[2]"]
    assert [reader.index_of(where) for where in (f"{path}[2]", f"{path}:2")] == [2, 1]


@pytest.mark.parametrize("piece", [3, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_values_over_many_lines_are_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, indent: int | None
):
    rows = [{"messages": turns(USER, Message("assistant", text))} for text in ("a", "}\n{", "\u2028")]
    text = "\n".join(json.dumps(row, indent=indent, ensure_ascii=False) for row in rows)
    monkeypatch.setattr(json_file, "_PIECE", piece)
    path = write(tmp_path / "a.json", text)
    records = load(path)
    assert [turns(*r.messages) for r in records if isinstance(r, Conversation)] == [row["messages"] for row in rows]
    starts = [i for i, line in enumerate(text.split("\n"), 1) if line.startswith("{")]
    assert [record.where for record in records] == [f"{path}:{line}" for line in starts]
    write(path, text + "\n{")
    assert ": not JSON: " in refusal(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz"])
def test_another_encoding_is_named(tmp_path: Path, name: str, encoding: str):
    for text in (jsonl([CHAT]), json.dumps([CHAT])):
        message = refusal(write(tmp_path / name, text.encode(encoding)))
        assert message == f": {'UTF-32' if encoding == 'utf-32' else 'UTF-16'} text; save the file as UTF-8"


def test_numbers_and_days_of_parquet_are_json_s(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    import datetime
    from decimal import Decimal

    from pyarrow import parquet

    columns = {
        "decimal": pyarrow.array([Decimal("9.50")], pyarrow.decimal128(5, 2)),
        "whole": pyarrow.array([Decimal("9")], pyarrow.decimal128(5, 0)),
        "half": pyarrow.array([1.5], pyarrow.float32()).cast(pyarrow.float16()),
        "day": pyarrow.array([datetime.date(2024, 2, 29)]),
        "text": pyarrow.array(["é".encode()], pyarrow.binary()),
        "bytes": pyarrow.array([b"\xff"], pyarrow.binary()),
        "inside": pyarrow.array(
            [[{"score": Decimal("0.5")}]], pyarrow.list_(pyarrow.struct({"score": pyarrow.decimal128(3, 1)}))
        ),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    [(_, row)] = reader.read(File(path=str(tmp_path / "a.parquet")))
    assert row == {
        **{"decimal": 9.5, "whole": 9, "half": 1.5, "day": "2024-02-29", "text": "é", "bytes": b"\xff"},
        "inside": [{"score": 0.5}],
    }
    json.dumps({key: value for key, value in row.items() if key != "bytes"})


def test_decimal_scores_and_bytes_of_pairs(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from decimal import Decimal

    from pyarrow import parquet

    pair = {"prompt": ["Hi"], "chosen": ["a"], "rejected": ["b"]}
    scores = pyarrow.array([Decimal("9.50")], pyarrow.decimal128(5, 2))
    parquet.write_table(
        pyarrow.table({**pair, "score_chosen": scores, "score_rejected": scores}), tmp_path / "a.parquet"
    )
    [record] = load(tmp_path / "a.parquet", "preference")
    assert isinstance(record, Preference) and record.scores == (9.5, 9.5)
    parquet.write_table(pyarrow.table({**pair, "chosen": pyarrow.array([b"\xff"])}), tmp_path / "b.parquet")
    assert refusal(tmp_path / "b.parquet", "preference").startswith(
        ":1: chosen is bytes that are no UTF-8 text, not a list"
    )


# In pieces


@pytest.mark.parametrize("piece", [1, 7, 64])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_the_same_whatever_the_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, indent: int | None
):
    rows = [{"a": text, "n": [12, -1.5e3, None, True]} for text in ('x"\\\n', "é😀", "]", "", "long" * 40)]
    path = write(tmp_path / "a.json", json.dumps(rows, indent=indent, ensure_ascii=False) + "\n")
    whole = list(reader.read(File(path=str(path))))
    assert [row for _, row in whole] == rows
    monkeypatch.setattr(json_file, "_PIECE", piece)
    assert list(reader.read(File(path=str(path)))) == whole
    lines = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + jsonl(rows).encode())
    assert [row for _, row in reader.read(File(path=str(lines)))] == rows
    monkeypatch.undo()


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"a": 1},\n{"a": \xff}]', ":2: not UTF-8 text (byte 7)"),
        (b'[{"a": 1},\n{"a": 01}]', ":2: not JSON: "),
        (b'[{"a": 1},\n\n {"a": 1} {"a": 2}]', ":3: not JSON: no comma or ] after a row at column 11"),
        (b'[{"a": 1},\n{"a": "x', ":2: not JSON: Unterminated string starting at at column 7"),
        (b'[{"a": 1}] []', ":1: not JSON: something follows the array at column 12"),
    ],
)
def test_what_is_wrong_is_found_whatever_the_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, content: bytes, expected: str
):
    path = write(tmp_path / "a.json", content)
    monkeypatch.setattr(json_file, "_PIECE", piece)
    with pytest.raises(DataError) as caught:
        list(reader.read(File(path=str(path))))
    assert str(caught.value).removeprefix(str(path)).startswith(expected)


def test_a_source_is_cut_the_same_way_each_time_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "_CHUNK_BYTES", 400)
    monkeypatch.setattr(reader, "_CHUNK_ROWS", 3)
    rows = [{"n": number, "text": "x" * (number * 13 % 90)} for number in range(40)]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "folder").mkdir()
    for part in (0, 1):
        parquet.write_table(
            pyarrow.Table.from_pylist(rows[part * 20 : part * 20 + 20]), tmp_path / f"folder/{part}.parquet"
        )
    files = [
        write(tmp_path / "a.jsonl", jsonl(rows)),
        write(tmp_path / "a.jsonl.gz", jsonl(rows)),
        write(tmp_path / "a.json", json.dumps(rows)),
        tmp_path / "folder",
    ]
    for path in files:
        cut = list(reader.chunks(File(path=str(path))))
        assert len(cut) > 5 and cut[-1].share == 1.0
        assert [each.share for each in cut] == sorted(each.share for each in cut)
        assert [row for each in cut for _, row in reader.decode(each)] == rows
        again = list(reader.chunks(File(path=str(path))))
        assert [len(each.rows) for each in again] == [len(each.rows) for each in cut]
        assert [row for _, row in reader.read(File(path=str(path), limit=7))] == rows[:7]
    assert reader.fingerprint(File(path=str(files[0]))) == reader.fingerprint(File(path=str(files[0])))
    before = reader.fingerprint(File(path=str(tmp_path / "folder")))
    parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), tmp_path / "folder/2.parquet")
    assert reader.fingerprint(File(path=str(tmp_path / "folder"))) != before


def test_rows_before_a_broken_end_are_read_first(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": broken}\n' * 1000)[:-9])
    with pytest.raises(DataError, match=":2: not JSON"):
        list(reader.read(File(path=str(path))))
