"""A reply without a verdict is `Missing`, with its reason and how it ended, whatever the protocol and the reply."""

import json
from pathlib import Path
from typing import Any

import pytest
import question_set
from fake_judge import FakeJudge
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as some

from bactrian.data.records import Message
from bactrian.errors import DataError, JudgeError
from bactrian.evaluate import alpaca_eval, mt_bench, mt_bench_job, verdicts
from bactrian.evaluate import calls as kept_calls
from bactrian.evaluate import judge as judges
from bactrian.evaluate.artifacts import Folder
from bactrian.evaluate.calls import Call, Failure, Reply, Store, chat
from bactrian.evaluate.endpoint import Address, Endpoint, _parse, _Passing
from bactrian.evaluate.pace import Limits
from bactrian.evaluate.protocol import Settings
from bactrian.evaluate.reading import Missing

RATING = "Good. Rating: [[7]]"
TOKENS = {"prompt_tokens": 10, "completion_tokens": 5}


def body(content: Any = RATING, finish: Any = "stop", usage: Any = TOKENS, choice: dict | None = None, **message: Any):
    inner = {"finish_reason": finish, "message": {"role": "assistant", "content": content, **message}, **(choice or {})}
    return json.dumps({"choices": [inner], "usage": usage})


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (body(None), "content is null"),
        (body(None, "length"), "truncated before it said anything"),
        (body(""), "the reply is empty"),
        (body(" \n", "length"), "truncated before its verdict"),
        (body("I think that", "length"), "truncated before its verdict"),
        (body("as [1] says", "length"), "truncated before its verdict"),
        (body("seven of ten"), "no rating"),
        (body("Rating: [[8/10]]"), "no rating"),
        (body("Rating: [[15]]"), "not from 1 to 10"),
        (body("Rating: [[0]]"), "not from 1 to 10"),
        (body(f"[[{'9' * 5000}]]"), "not from 1 to 10"),
        (body(f"[[{'1' * 400}]]"), "not from 1 to 10"),
        (body(RATING, "content_filter"), "content filter"),
        (body(None, refusal="I will not."), "the judge refused"),
        (body(None, refusal={"why": "no"}), "refused"),
        (body("\ud800 " + RATING), "half of a surrogate pair"),
        (body(5), "a number, not text"),
        (body(True), "true or false, not text"),
        (body({"text": RATING}), "an object, not text"),
        (body([{"type": "text", "text": None}]), "null, not text"),
        (body([{"type": "thinking", "thinking": []}]), "the reply is empty"),
        (body(usage={"prompt_tokens": "10", "completion_tokens": "5"}), "usage"),
        (body(usage={"prompt_tokens": -5, "completion_tokens": 5}), "usage"),
        (body(usage={"prompt_tokens": 10**30, "completion_tokens": 5}), "usage"),
        (body(usage={"prompt_tokens": 1.5, "completion_tokens": float("nan")}), "usage"),
        (body(usage=[1]), "usage"),
        (body(choice={"x": json.loads("[" * 200 + "]" * 200)}), "nested more than"),
        (body()[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        (body()[:-1] + ', "x": ' + "9" * 10_000 + "}", "thousands of digits"),
    ],
)
def test_replies_without_a_rating(sent: str, reason: str):
    found = mt_bench.rated(_parse(sent))
    assert isinstance(found, Missing) and reason in found.reason, found
    row = found.as_row()
    assert row["was_asked"] and row["finish_reason"] in ("stop", "length", "content_filter")
    assert "I will not" not in sent or row["reply"] == "I will not."
    assert len(row["reply"]) <= 100 and row["reply"].isprintable()


@pytest.mark.parametrize(
    "sent",
    [
        body(),
        body(finish=None),
        body(finish=5),
        body(finish="length"),
        body([{"type": "text", "text": "Good. "}, {"type": "text", "text": "[[7]]"}]),
        body(["[[7]]"]),
        body("\0\x1b[2J " + RATING),
        body("[[" * 10_000 + RATING),
        body(usage=None),
        body(usage={"prompt_tokens": 10.0, "completion_tokens": None}),
        body(choice={"logprobs": "x"}),
        body(choice={"logprobs": {"content": [{"token": "m", "logprob": None, "top_logprobs": None}]}}),
        body("[[07]]"),
    ],
)
def test_replies_with_one(sent: str):
    assert mt_bench.rated(_parse(sent)) == 7


def test_a_request_without_a_reply():
    assert mt_bench.rated(Failure("status 500")) == Missing("status 500")
    unasked = mt_bench.compared(Failure("the budget is spent", was_asked=False))
    assert isinstance(unasked, Missing)
    assert unasked.as_row() == {"error": "the budget is spent", "was_asked": False}


def test_pairs():
    assert mt_bench.compared(Reply("so [[C]]")) == "tie"
    for text, output in (("A wins", "[[A]]"), ("[[12, 3]]", "[[rating_a,rating_b]]"), ("", "[[A]]")):
        assert isinstance(mt_bench.compared(Reply(text), output), Missing), text
    assert mt_bench.compared(Reply("[[9, 3]]"), "[[rating_a,rating_b]]") == "A"


def test_ranks():
    ranks = "[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]"
    assert alpaca_eval.preferred(Reply(ranks), 1) == 2
    for text in (f"```python\n{ranks}\n```", ranks.replace("2", "3"), ranks.replace("2", "True"), "", "(" * 5000):
        found = alpaca_eval.preferred(Reply(text), 1)
        assert isinstance(found, Missing) and ("rank" in found.reason or "empty" in found.reason), text


def alternatives(*listed: Any) -> dict[str, Any]:
    return {"logprobs": {"content": [{"token": "m", "logprob": -1.0, "top_logprobs": list(listed)}]}}


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"logprobs": None}, "no log-probabilities"),
        ({}, "no log-probabilities"),
        (alternatives(), "no log-probabilities"),
        (alternatives({"token": "m", "logprob": float("nan")}), "no log-probabilities"),
        (alternatives({"token": "m", "logprob": None}, {"token": "M", "logprob": "-1"}), "no log-probabilities"),
        (alternatives({"token": [], "logprob": 0}), "no log-probabilities"),
        (alternatives({"token": "m", "logprob": -(10**400)}), "a whole number of more than"),
        (alternatives({"token": "The", "logprob": -0.1}), "neither m nor M"),
    ],
)
def test_probabilities_that_are_not_there(choice: dict[str, Any], reason: str):
    found = alpaca_eval.preferred(_parse(body("m", "length", choice=choice)), 2)
    assert isinstance(found, Missing) and reason in found.reason


def test_probabilities_that_are():
    choice = alternatives({"token": "M", "logprob": -0.1}, {"token": "x", "logprob": None})
    assert alpaca_eval.preferred(_parse(body("M", "length", choice=choice)), 2) == 2.0


json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@how(deadline=None)
@given(json_values, json_values, json_values, json_values, json_values)
def test_whatever_a_server_sends_is_read_or_refused(content: Any, finish: Any, usage: Any, refusal: Any, more: Any):
    for sent in (
        body(content, finish, usage, {"logprobs": more}, refusal=refusal),
        body(choice=alternatives({"token": "m", "logprob": more}, {"token": more, "logprob": -1})),
        json.dumps(more),
        json.dumps({"choices": more}),
        json.dumps({"choices": [more]}),
        json.dumps({"choices": [{"message": more}]}),
    ):
        try:
            reply = _parse(sent)
        except _Passing:
            continue
        assert isinstance(mt_bench.rated(reply), int | float | Missing)
        for version in (1, 2):
            assert isinstance(alpaca_eval.preferred(reply, version), int | float | Missing)


# What was kept


CALL = Call(chat("Rate.", "Hello?"), 16)


@pytest.mark.parametrize(
    "reply",
    [
        {"text": 5},
        {"text": None, "finish": None, "refusal": None},
        {"text": [{"text": None}], "logprobs": [1]},
        {"text": RATING, "input_tokens": "10", "output_tokens": "5"},
        {"text": RATING, "input_tokens": -1, "output_tokens": float("nan")},
        {"text": "\ud800", "logprobs": {"m": None}},
        {"text": RATING, "refusal": 5},
    ],
)
def test_an_odd_reply_that_was_kept_is_a_failed_judgment_again(tmp_path: Path, reply: dict[str, Any]):
    path = tmp_path / "calls.jsonl"
    row = {"key": CALL.key("m"), "request": {"messages": [{"role": "user", "content": "Hello?"}]}, "reply": reply}
    path.write_text(json.dumps(row | {"usable": False}) + "\n", encoding="utf-8")
    store = Store(path)
    found = store.find(CALL.key("m"), 0)
    assert found is not None and isinstance(mt_bench.rated(found), Missing)
    assert all(isinstance(count, int) and count >= 0 for count in store.cost_tokens)
    store.close()
    (answer,) = judges.replay(path).ask([CALL], bool)
    assert answer == found


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "[]",
        "{}",
        '{"key": 5}',
        '{"key": "k", "reply": {}}',
        '{"key": "k", "reply": 5}',
        '{"key": "k", "reply": {"text": "a"}, "usable": "no"}',
        '{"key": "k", "billed": "12"}',
        '{"key": "k", "billed": [1, -2]}',
        '{"key": "k", "billed": [1, 2, 3]}',
        "[" * 100_000,
        "not JSON",
    ],
)
def test_a_line_that_is_no_call_is_named(tmp_path: Path, line: str):
    (tmp_path / "calls.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"calls.jsonl:1: not a line of calls") as caught:
        Store(tmp_path / "calls.jsonl")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_call_that_cannot_be_replayed_is_named():
    rows = [{"request": {"messages": [{"content": "a"}]}}, {"request": {"messages": []}, "reply": {"text": "x"}}]
    with pytest.raises(DataError, match=r"f:2: not a line of calls \(request.messages"):
        kept_calls.kept(rows, ["f:1", "f:2"])


def test_what_is_kept_holds_no_nan(tmp_path: Path):
    store = Store(tmp_path / "calls.jsonl")
    store.add("k", CALL, Reply("m", logprobs={"m": float("nan"), "M": -1.0}), True)
    store.close()
    assert "NaN" not in (tmp_path / "calls.jsonl").read_text()
    assert Store(tmp_path / "calls.jsonl").find("k", 0) == Reply("m", logprobs={"M": -1.0})


# How many may fail


class Told:
    name = "told"

    def __init__(self, replies: list[Reply | Failure]):
        self.replies = replies

    def ask(self, calls: list[Call], usable: Any) -> list[Reply | Failure]:
        return [self.replies[place % len(self.replies)] for place in range(len(calls))]


def test_rows_say_why_and_how_the_reply_ended(questions: Path):
    bench = mt_bench_job.read(mt_bench_job.Files(data=questions))[0]
    ada = mt_bench.read_answers(questions / "ada.jsonl")["ada"]
    row = mt_bench.judge_single(bench, ada, Told([Reply("[[15]] \ud800", "stop")]))[0]
    assert (row["score"], row["judgment"]) == (-1, "[[15]] ?")
    row = mt_bench.judge_single(bench, ada, Told([Reply("[[15]]", "stop")]))[0]
    assert (row["score"], row["finish_reason"], row["reply"]) == (-1, "stop", "[[15]]")
    row = mt_bench.judge_pairs(bench, ada, ada, Told([Reply("[[A]]"), Reply("", "length")]))[0]
    assert (row["g1_winner"], row["g2_winner"], row["finish_reason"]) == ("model_1", "error", "length")
    template = question_set.CHOOSING
    pair = {"instruction": "i", "output_1": "a", "output_2": "b"}
    (row,) = alpaca_eval.judge([pair], template, Told([Reply("m")]), 2)
    assert row["preference"] is None and row["raw_completion"] == "m" and "log-probabilities" in row["error"]


def failed(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"error": "there is no rating", **more} for _ in range(count)]


def test_a_tenth_may_fail_and_no_more():
    verdicts.enough(failed(1), 10, "")
    verdicts.enough([], 0, "")
    with pytest.raises(JudgeError, match=r"2 of 19 judgments failed .*too many for a score"):
        verdicts.enough(failed(2), 19, "")


def test_the_line_quotes_a_reply_with_its_finish_reason():
    rows = [*failed(3, reply="Eight\nof " + "ten" * 50, finish_reason="stop"), {"error": "status 500"}]
    said = verdicts.why(rows)
    assert said.startswith('3: there is no rating; one reply: "Eight of ten') and said.endswith("finish reason stop")
    assert len(said) < 150
    assert verdicts.why(rows[3:]) == "status 500"


def test_an_odd_reply_as_an_answer_is_asked_again_and_then_said_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with FakeJudge().running() as judge:
        monkeypatch.setattr(
            "fake_judge.answer", lambda body: 5 if "a" in body["messages"][-1]["content"] else "\ud800!"
        )
        store = Store(tmp_path / "calls.jsonl")
        one = Endpoint(Address(judge.url, "m"), store, Limits(reasks=1, retry_wait=0.01))
        assert one.generate([(Message("user", "a"),), (Message("user", "b"),)], Settings()) == ["", "?!"]
        assert judge.sent.total() == 4
        one.generate([(Message("user", "a"),), (Message("user", "b"),)], Settings())
        assert judge.sent.total() == 4


def test_a_reply_that_was_usable_under_another_rule_is_asked_for_again(tmp_path: Path):
    store = Store(tmp_path / "calls.jsonl")
    store.add("k", CALL, Reply("[[15]]"), True)

    def usable(reply: Reply) -> bool:
        return not isinstance(mt_bench.rated(reply), Missing)

    assert store.find("k", 2) == Reply("[[15]]") and store.find("k", 2, usable) is None
    assert store.find("k", 0, usable) == Reply("[[15]]"), "it was asked for often enough"
    store.add("k", CALL, Reply("[[5]]"), True)
    assert store.find("k", 2, usable) == Reply("[[5]]")


def test_a_judge_that_runs_out_of_tokens_is_given_more(tmp_path: Path):
    limits = Limits(reasks=0, retry_wait=0.01)
    judge = Endpoint(Address("http://127.0.0.1:9", "m"), Store(tmp_path / "calls.jsonl"), limits)
    for content, advice in ((None, "--judge-max-completion"), ("I think", "--judge-max-completion")):
        found = mt_bench.rated(_parse(body(content, "length")))
        assert isinstance(found, Missing)
        with pytest.raises(JudgeError, match=advice):
            verdicts.check([found.as_row()], Folder(tmp_path), judge)
    found = mt_bench.rated(_parse(body("no")))
    assert isinstance(found, Missing)
    with pytest.raises(JudgeError, match="larger --reasks"):
        verdicts.check([found.as_row()], Folder(tmp_path), judge)
    with pytest.raises(JudgeError, match="the same command asks for them again"):
        verdicts.check([{"error": "status 500", "was_asked": True}], Folder(tmp_path), judge)
