"""The page holds what was written as data, whatever it looks like; pictures are drawn where there is something."""

import json
import re
from pathlib import Path

import pytest

from bactrian.evaluate import page, pictures
from bactrian.evaluate.mt_bench import Answer, Question

NASTY = "</script><script>alert(1)</script> <!-- & \u2028 \ud800 {{ x }} é"


def content(path: Path) -> dict:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)
    assert found and text.count("<script") == 2
    assert "http" not in re.sub(re.escape(found[1]), "", text), "nothing is fetched"
    return json.loads(found[1])


def test_what_others_wrote_is_data(tmp_path: Path):
    rows = [{"instruction": NASTY, "output_1": "a", "output_2": NASTY, "preference": 1.25, "raw_completion": NASTY}]
    page.write_alpaca_eval(tmp_path / "page.html", rows)
    item = content(tmp_path / "page.html")["items"][0]
    assert item["turns"][0]["prompt"] == NASTY.replace("\ud800", "?")
    assert item["turns"][0]["judgments"][0]["label"] == "prefers reference (75.0 %)" and item["mark"] == "lost"


@pytest.mark.parametrize(
    ("preference", "mark"), [(2, "won"), (1, "lost"), (1.5, "draw"), (0, "draw"), (None, "failed")]
)
def test_marks(preference: float | None, mark: str):
    assert page._preferred(preference, ["a", "b"])[1] == mark


def test_rated_and_compared_answers(tmp_path: Path):
    questions = [Question(1, "math", ("q1", "q2"), 0.0)]
    ada, bob = ({1: Answer(name, ("a", "b"))} for name in ("ada", "bob"))
    rows = [{"question_id": 1, "turn": 1, "score": 7.5, "judge": ["j", "p"], "judgment": "good"}]
    page.write_mt_bench(tmp_path / "page.html", rows, questions, [ada])
    found = content(tmp_path / "page.html")
    assert found["items"][0]["mark"] == "7.5 · –"
    rows = [{"question_id": 1, "turn": 1, "g1_winner": "model_2", "g2_winner": "model_2", "g1_judgment": "B"}]
    page.write_mt_bench(tmp_path / "page.html", rows, questions, [ada, bob])
    found = content(tmp_path / "page.html")
    assert found["names"] == ["ada", "bob"] and found["items"][0]["mark"] == "bob · –"
    assert found["items"][0]["turns"][0]["judgments"][0] == {"label": "ada shown first: bob", "text": "B"}


def test_pictures(tmp_path: Path):
    scores = {"m" * 60: {"categories": {"math": 3.0, "writing": None, "stem": 5.0, "coding": 1.0}}}
    assert pictures.radar(tmp_path / "radar.png", scores)
    assert (tmp_path / "radar.png").read_bytes().startswith(b"\x89PNG")
    assert not pictures.radar(tmp_path / "none.png", {"m": {"categories": {"math": 3.0}}})
    part = {"mean": 4.0, "low": 1.0, "high": 9.0, "n": 7}
    assert pictures.bars(tmp_path / "bars.png", {"koala": part}, part, "m")
    assert not pictures.bars(tmp_path / "none.png", {}, part, "m")
