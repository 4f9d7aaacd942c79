"""Laws: what is read is bounded and its faults are one line; what is written, any reader of JSON takes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bactrian.errors import DataError, RecipeError, line, printable
from bactrian.files import documents

FAULTS = {
    "[" * 500 + "]" * 500: "nested",
    "[" * 200_000: "nested",
    '{"a": ' * 101 + "1" + "}" * 101: "nested more than 100 levels",
    "1" * 5000: "thousands of digits",
    '{"a": NaN}': "NaN is not a number of JSON",
    "[-Infinity]": "-Infinity is not a number of JSON",
    r'["\ud800"]': "half of a surrogate pair",
    r'{"\udfff": 1}': "half of a surrogate pair",
    '{"a": 1': "Expecting ',' delimiter",
    "": "Expecting value",
}


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_a_fault_of_json_is_one_line(tmp_path: Path, text: str):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"some\.json: not JSON") as caught:
        documents.read_json(path, RecipeError)
    assert FAULTS[text] in str(caught.value)


def test_bytes_that_are_no_text_and_files_that_are_none(tmp_path: Path):
    with pytest.raises(DataError, match="not UTF-8 at byte 1"):
        documents.parse_json(b'"\xff"', "here")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        documents.read_json(tmp_path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        documents.read_json(tmp_path / "none")
    with pytest.raises(DataError, match="cannot read the recipe: Is a directory"):
        documents.read_toml(tmp_path, what="the recipe")


def test_a_byte_order_mark_is_no_content():
    assert documents.parse_json(b"\xef\xbb\xbf[1]", "here") == [1]
    assert documents.parse_toml(b"\xef\xbb\xbfa = 1", "here") == {"a": 1}


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "a = " + "1" * 5000, "a.b = 1\na = 2", "a = " + "[" * 150 + "]" * 150]
)
def test_a_fault_of_toml_is_one_line(text: str):
    with pytest.raises(DataError, match="here: not a TOML file"):
        documents.parse_toml(text, "here")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_what_is_written_can_be_read(value: Any):
    def finite(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {key: finite(each) for key, each in value.items()}
        return [finite(each) for each in value] if isinstance(value, list) else value

    text = documents.dumps(value)
    text.encode()
    assert json.loads(text) == finite(value)


def test_halves_of_surrogate_pairs_are_escaped():
    assert documents.dumps({"a": "é\ud800"}) == '{"a": "\\u00e9\\ud800"}'
    assert documents.dumps({"a": "é"}) == '{"a": "é"}'


@given(st.text(st.characters(), max_size=3000))
def test_a_message_is_one_printable_line(text: str):
    shown = line(DataError(text))
    assert shown.isprintable() and len(shown) <= 400
    assert shown.startswith("error:")


def test_a_long_message_keeps_its_ends():
    shown = printable("where: " + "x" * 100_000 + "; do this")
    assert shown.startswith("where: xxx") and shown.endswith("xxx; do this") and len(shown) == 400
    assert printable("a\x1b[2Jb\nc\td\u202e") == "a\\x1b[2Jb c d\\u202e"
