"""An address that behaves badly: nothing lost, nothing asked twice, never over the budget, errors in one line."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import question_set
from fake_judge import FAULTS, FakeJudge, answer

from bactrian.data.records import Message
from bactrian.errors import InputError, JudgeError
from bactrian.evaluate import mt_bench
from bactrian.evaluate.address import Address
from bactrian.evaluate.calls import Call, Failure, Reply, Store, chat
from bactrian.evaluate.endpoint import Endpoint
from bactrian.evaluate.pace import Budget, Limits
from bactrian.evaluate.protocol import Settings

QUICK = Limits(timeout=0.5, retry_wait=0.01)
RATE = "Use [[rating]]."


def rated(reply: Reply) -> bool:
    return mt_bench.rating(reply.text) != -1


def calls(count: int) -> list[Call]:
    return [Call(chat(RATE, f"answer {n}"), 64) for n in range(count)]


def endpoint(judge: FakeJudge, folder: Path, limits: Limits = QUICK, budget: Budget | None = None, **more) -> Endpoint:
    return Endpoint(Address(judge.url, "m", **more), Store(folder / "calls.jsonl"), limits, budget)


def expected(asked: list[Call]) -> list[str]:
    return [answer({"messages": [vars(message) for message in call.messages]}) for call in asked]


def test_with_every_fault_the_replies_are_the_faultless_ones(tmp_path: Path):
    # Long enough that no answer of a busy machine comes late, which would be asked for again.
    patient = Limits(timeout=2.0, retry_wait=0.01)
    with FakeJudge(FAULTS, seed=3, rate=0.5, hang=3.0).running() as judge:
        asked = calls(60)
        found = endpoint(judge, tmp_path, patient).ask(asked, rated)
        assert [reply.text for reply in found if isinstance(reply, Reply)] == expected(asked)
        assert set(judge.done) == set(FAULTS), "every fault was met"
        assert set(judge.good.values()) == {1}, "nothing that was answered is asked again"
        assert len(question_set.read(tmp_path / "calls.jsonl")) == judge.sent.total(), "every request is on the record"


def test_equal_calls_are_sent_once_and_kept_ones_never(judge: FakeJudge, tmp_path: Path):
    asked = [*calls(5), *calls(5)]
    first = endpoint(judge, tmp_path)
    found = first.ask(asked, rated)
    assert found[:5] == found[5:]
    first.store.close()
    assert endpoint(judge, tmp_path).ask(asked, rated) == found
    assert judge.sent.total() == 5


def test_a_refusal_that_stays_is_kept_as_it_is(tmp_path: Path):
    with FakeJudge().running() as judge:
        found = endpoint(judge, tmp_path, Limits(reasks=2)).ask([Call(chat(None, "no scale"), 8)], rated)
        assert isinstance(found[0], Reply) and mt_bench.rating(found[0].text) == -1
        assert judge.sent.total() == 3


def test_a_budget_of_calls_is_never_passed(tmp_path: Path):
    with FakeJudge(("500", "cut"), rate=0.5, seed=1).running() as judge:
        asked = calls(40)
        one = endpoint(judge, tmp_path, budget=Budget(max_calls=17))
        found = one.ask(asked, rated)
        assert judge.sent.total() == 17
        left = [outcome for outcome in found if isinstance(outcome, Failure) and not outcome.was_asked]
        assert left and "budget" in left[0].reason
        one.store.close()
        # What was spent before counts after a restart.
        endpoint(judge, tmp_path, budget=Budget(max_calls=20)).ask(asked, rated)
        assert judge.sent.total() == 20


def test_a_budget_of_money_is_never_passed(judge: FakeJudge, tmp_path: Path):
    price = Budget(price_in=1000.0, price_out=2000.0)
    one = endpoint(judge, tmp_path, budget=Budget(max_cost=0.7, price_in=1000.0, price_out=2000.0))
    found = one.ask(calls(40), rated)
    spent = price.cost(*one.store.cost_tokens)
    answered = sum(isinstance(outcome, Reply) for outcome in found)
    worst = price.cost(calls(1)[0].tokens_at_most, 64)
    assert 0 < answered < 40 and spent <= 0.7
    assert spent + worst > 0.7, "it stops only when the next call could pass the budget"
    with pytest.raises(InputError, match="prices"):
        Budget(max_cost=1.0)


def test_rates_are_kept(judge: FakeJudge, tmp_path: Path):
    start = time.monotonic()
    endpoint(judge, tmp_path, Limits(requests_per_minute=600)).ask(calls(6), rated)
    assert time.monotonic() - start >= 0.5, "six requests at ten a second take half a second"


def test_a_wrong_key_stops_at_once_and_is_written_nowhere(judge: FakeJudge, tmp_path: Path):
    judge.key = "sk-right"
    with pytest.raises(InputError, match=r"401: the key in OPENAI_API_KEY is not accepted") as caught:
        endpoint(judge, tmp_path, key="sk-wrong-secret").ask(calls(3), rated)
    assert "sk-wrong-secret" not in str(caught.value)
    assert "sk-wrong-secret" not in (tmp_path / "calls.jsonl").read_text()


def test_a_missing_key_says_which_variable(judge: FakeJudge, tmp_path: Path):
    judge.key = "sk-right"
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        endpoint(judge, tmp_path).ask(calls(1), rated)


def test_an_address_that_nobody_answers(tmp_path: Path):
    one = Endpoint(
        Address("http://127.0.0.1:9/v1", "m"), Store(tmp_path / "c.jsonl"), Limits(retries=1, retry_wait=0.01)
    )
    with pytest.raises(JudgeError, match="cannot be reached"):
        one.ask(calls(3), rated)


def test_a_wrong_path_and_a_wrong_address(judge: FakeJudge, tmp_path: Path):
    with pytest.raises(InputError, match="404"):
        Endpoint(Address(judge.url + "/other", "m"), Store(tmp_path / "c.jsonl"), QUICK).ask(calls(1), rated)
    with pytest.raises(InputError, match="not an address"):
        Endpoint(Address("ftp://x", "m"), Store(tmp_path / "d.jsonl"))


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://a:1", "http://a:1/v1"),
        ("http://a:1/", "http://a:1/v1"),
        ("http://a/v1/", "http://a/v1"),
        ("https://a/x/v1/chat/completions", "https://a/x/v1"),
    ],
)
def test_where_the_protocol_begins(given: str, base: str):
    assert Address(given, "m").base == base
    assert Address("http://me:secret@a/v1", "m").shown == "http://a/v1"


def test_answers_keep_order_and_a_seed_of_their_own(judge: FakeJudge, tmp_path: Path):
    prompts = [(Message("user", f"question {n}"),) for n in range(4)]
    one = endpoint(judge, tmp_path)
    found = one.generate([*prompts, "plain"], Settings(max_tokens=5, temperature=0.5, stop=("x",), seed=7))
    assert [text[:23] for text in found[:2]] == ["An answer to question 0", "An answer to question 1"]
    sent = {body["messages"][-1]["content"]: body for body in judge.bodies}
    assert sent["question 2"]["seed"] == 9 and sent["plain"]["stop"] == ["x"]
    one.generate(prompts[:1], Settings(max_tokens=5))
    assert "seed" not in judge.bodies[-1]


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what is run in the background ignores it
from pathlib import Path
from bactrian.evaluate.calls import Call, Store, chat
from bactrian.evaluate.address import Address
from bactrian.evaluate.endpoint import Endpoint
from bactrian.evaluate.pace import Limits
from bactrian.evaluate import mt_bench
calls = [Call(chat("Use [[rating]].", f"answer {n}"), 64) for n in range(60)]
one = Endpoint(Address(sys.argv[1], "m"), Store(Path(sys.argv[2])), Limits(concurrency=4, retry_wait=0.01, timeout=5))
print(len(one.ask(calls, lambda reply: mt_bench.rating(reply.text) != -1)))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_and_resumed_nothing_that_was_kept_is_asked_again(how: signal.Signals, tmp_path: Path):
    with FakeJudge(delay=0.05).running() as judge:
        command = [sys.executable, "-c", PROGRAM, judge.url, str(tmp_path / "calls.jsonl")]
        child = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ),
        )
        deadline = time.monotonic() + 60
        while judge.good.total() < 15 and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(how)
        child.wait(timeout=30)
        assert child.returncode != 0
        lines = (tmp_path / "calls.jsonl").read_bytes().split(b"\n")
        kept = {row["request"]["messages"][-1]["content"] for row in map(json.loads, lines[:-1])}
        assert 0 < len(kept) < 60
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "60", done.stderr
        again = {content for content, times in judge.sent.items() if times > 1}
        assert not [content for content in again if json.loads(content)["messages"][-1]["content"] in kept]
        # A kill loses at most the replies on their way; an interrupt waits for them.
        assert len(again) <= (4 if how == signal.SIGKILL else 0)


def test_many_workers_hang_at_once_and_all_come_back(tmp_path: Path):
    with FakeJudge(("hang",), rate=1.0, hang=1.0).running() as judge:
        found = endpoint(judge, tmp_path, Limits(concurrency=8, timeout=0.2, retry_wait=0.01)).ask(calls(8), rated)
        assert all(isinstance(outcome, Reply) for outcome in found)
        assert threading.active_count() < 100
