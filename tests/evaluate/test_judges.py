"""Judges that are no address: kept judgments in every layout, a model at hand, a function that rewards."""

import json
from pathlib import Path

import pytest
import question_set

from bactrian.errors import DataError, InputError
from bactrian.evaluate import judge as judges
from bactrian.evaluate.calls import Call, Failure, Reply, Store, chat
from bactrian.evaluate.protocol import Score


class Model:
    """Says how long the prompt is; finds the first choice twice as likely as the second."""

    def __init__(self):
        self.prompts: list = []
        self.settings: list = []

    def generate(self, prompts, settings) -> list[str]:
        self.prompts += prompts
        self.settings.append(settings)
        return [f"[[{len(prompt[-1].content) % 10}]]" for prompt in prompts]

    def score(self, contexts, continuations) -> list[Score]:
        self.prompts += contexts
        return [Score(-1.0 if continuation == "m" else -2.0, False) for continuation in continuations]


def test_a_model_at_hand_is_asked_once_and_kept(tmp_path: Path):
    calls = [Call(chat("Rate.", "x" * n), 8) for n in (3, 4, 3)] + [Call(chat("Rate.", "x" * 5), 9)]
    store = Store(tmp_path / "calls.jsonl")
    found = judges.Local("own", "own@1", model := Model(), store).ask(calls, lambda reply: True)
    assert [reply.text for reply in found if isinstance(reply, Reply)] == ["[[3]]", "[[4]]", "[[3]]", "[[5]]"]
    assert len(model.prompts) == 3 and {each.max_tokens for each in model.settings} == {8, 9}
    store.close()
    again = judges.Local("own", "own@1", other := Model(), Store(tmp_path / "calls.jsonl"))
    assert again.ask(calls, lambda reply: True) == found and not other.prompts


def test_a_model_at_hand_chooses_by_log_probability(tmp_path: Path):
    call = Call(chat(None, "m or M?"), 1, choices=("m", "M"))
    found = judges.Local("own", "own@1", Model(), Store(tmp_path / "calls.jsonl")).ask([call], lambda reply: True)
    assert found == [Reply("m", logprobs={"m": -1.0, "M": -2.0})]


def test_replay_reads_every_layout(tmp_path: Path):
    question_set.write(tmp_path / "single.jsonl", [{"user_prompt": "a", "judgment": "[[3]]", "judge": ["gpt-4", "x"]}])
    pairs = {"g1_user_prompt": "a", "g1_judgment": "[[A]]", "g2_user_prompt": "b", "g2_judgment": "[[B]]"}
    question_set.write(tmp_path / "pair.jsonl", [pairs])
    store = Store(tmp_path / "calls.jsonl")
    store.add("k", Call(chat("s", "a"), 3), Reply("[[7]]"), True, model="judge-7")
    store.close()
    asked = [Call(chat("s", "a"), 3), Call(chat("s", "b"), 3)]
    single = judges.replay(tmp_path / "single.jsonl")
    missing = Failure("there is no kept judgment of this")
    assert (single.name, single.ask(asked, bool)) == ("gpt-4", [Reply("[[3]]"), missing])
    assert judges.replay(tmp_path / "pair.jsonl").ask(asked, bool) == [Reply("[[A]]"), Reply("[[B]]")]
    own = judges.replay(tmp_path / "calls.jsonl")
    assert (own.name, own.ask(asked, bool)) == ("judge-7", [Reply("[[7]]"), missing])
    question_set.write(tmp_path / "other.jsonl", [{"prompt": "a"}])
    with pytest.raises(DataError, match="not a kept judgment"):
        judges.replay(tmp_path / "other.jsonl")


def test_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    program = "def length(talks): return [len(t[-1]['content']) / 10 for t in talks]\ndef none(talks): return []\n"
    Path("lengths_of_test.py").write_text(program, encoding="utf-8")
    reward = judges.reward("lengths_of_test:length")
    shares = reward.compare([chat(None, "a" * 10), chat(None, "a" * 10)], [chat(None, "b" * 20), chat(None, "b" * 10)])
    assert shares == [pytest.approx(1 / (1 + 2.718281828**-1)), 0.5]
    with pytest.raises(InputError, match="0 rewards for 1"):
        judges.reward("lengths_of_test:none").compare([chat(None, "a")], [chat(None, "b")])
    for name in ("lengths_of_test", "lengths_of_test:nothing", "no_such_module:f"):
        with pytest.raises(InputError, match="reward"):
            judges.reward(name)


def test_kept_calls_hold_no_key(tmp_path: Path):
    store = Store(tmp_path / "calls.jsonl")
    store.add("k", Call(chat("s", "a"), 3), Reply("x"), True, model="m", address="http://a/v1")
    row = json.loads((tmp_path / "calls.jsonl").read_text())
    assert set(row) == {"key", "at", "model", "address", "request", "reply", "usable"}
