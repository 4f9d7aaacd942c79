"""Laws: what cannot be learnt from has one named reason, and the ledger adds up."""

from collections import Counter
from pathlib import Path

import pytest

from bactrian.data import screen, sources
from bactrian.data.records import Conversation, Message, Messages, Preference
from bactrian.errors import DataError
from bactrian.recipe import Layout, Source

USER = Message("user", "Hi")


def says(text: str) -> Messages:
    return USER, Message("assistant", text)


@pytest.mark.parametrize(
    ("branches", "reason"),
    [
        ((says("a"), says("b")), None),
        ((says("a"), says("A")), None),
        ((says("a"), says("a")), "identical_answers"),
        ((says("a"), says(" a\n")), "identical_answers"),
        ((says("a"), says("b"), says("a ")), "identical_answers"),
        ((says("a"), says("")), "empty_answer"),
        ((says(" \n"), says("b")), "empty_answer"),
        ((says(""), says("")), "empty_answer"),
        # The same last answer after different conversations is a preference all the same.
        ((says("a"), (USER, Message("user", "You there?"), Message("assistant", "a"))), None),
    ],
)
def test_a_preference_needs_answers_that_differ(branches: tuple[Messages, ...], reason: str | None):
    assert screen.unusable(Preference(branches, "here")) == reason


def test_a_conversation_needs_a_last_answer():
    assert screen.unusable(Conversation(says("a"), "here")) is None
    assert screen.unusable(Conversation((*says("a"), USER), "here")) is None
    assert screen.unusable(Conversation((*says("a"), *says(" ")), "here")) == "empty_answer"


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        (
            "ultrafeedback/uf_binarized_train_1000.jsonl",
            "preference",
            {None: 994, "identical_answers": 4, "empty_answer": 2},
        ),
        ("hh-rlhf/test.jsonl.gz", "hh", {None: 2308, "empty_answer": 4}),
        ("codealpaca/code_alpaca_2k.json", "alpaca", {None: 2015, "empty_answer": 2}),
    ],
)
def test_real_files_have_their_known_faults(
    shared_data: Path, name: str, layout: Layout, expected: dict[str | None, int]
):
    records = sources.load(Source(path=str(shared_data / name), format=layout))
    assert Counter(screen.unusable(record) for record in records) == expected


def ledger(kept: int, *reasons: str) -> screen.Ledger:
    account = screen.Ledger()
    for _ in range(kept):
        account.keep()
    for reason in reasons:
        account.drop(reason)
    assert account.read == account.kept + sum(account.dropped.values())
    return account


def test_a_ledger_adds_up_and_survives_json():
    account = ledger(2, "too_long", "empty_answer", "too_long")
    assert account.to_json() == {"read": 5, "kept": 2, "dropped": {"too_long": 2, "empty_answer": 1}}
    assert screen.Ledger(**account.to_json()) == account
    assert screen.Ledger().dropped is not screen.Ledger().dropped


def test_too_many_dropped_rows_stop_the_run():
    account = ledger(7, "too_long", "too_long", "empty_answer")
    account.check(0.3, "rows.jsonl")
    with pytest.raises(DataError) as caught:
        account.check(0.29, "rows.jsonl")
    assert str(caught.value) == (
        "rows.jsonl: 3 of 10 rows (30.0%) cannot be used: 1 empty_answer, 2 too_long; "
        "repair the data, or raise max_dropped (now 0.29)"
    )
    screen.Ledger().check(0.0, "rows.jsonl")
