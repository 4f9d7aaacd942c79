"""Laws: each screen drops what it names and nothing else, whatever the case and the punctuation of a text."""

import json

import pytest
from pydantic import TypeAdapter

from bactrian.data import screens
from bactrian.data.records import Conversation, Message, Messages, Preference, Role
from bactrian.data.screens import Screen
from bactrian.data.screens.settings import Kinds
from bactrian.errors import RecipeError

ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant"}
LONG = "The harbour lies below the hill, and every morning the boats come in with the fish of the night before. "
ADAPTER: TypeAdapter = TypeAdapter(Kinds)


def make(**section: object) -> Screen:
    return screens.make(ADAPTER.validate_json(json.dumps(section)))


def chat(*turns: str) -> Conversation:
    """`u: Hi`, `a: Hello.` and the like."""
    return Conversation(messages(*turns), "here")


def messages(*turns: str) -> Messages:
    return tuple(Message(ROLES[turn[0]], turn[3:]) for turn in turns)


def pair(one: str, other: str, ask: str = "Where is it?") -> Preference:
    return Preference((messages(f"u: {ask}", f"a: {one}"), messages(f"u: {ask}", f"a: {other}")), "here")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (("u: Hi", "a: Hello."), None),
        (("s: ", "u: Hi", "a: Hello."), None),
        (("u: Hi", "a: Hello.", "u: Bye", "a: See you.\t\x0c"), None),
        (("u: Hi", "s: Be kind.", "a: Hello."), "wrong_order"),
        (("a: Hello.", "u: Hi"), "wrong_order"),
        (("u: Hi", "u: There?", "a: Yes."), "wrong_order"),
        (("u: Hi", "a: Hello.", "a: Still here."), "wrong_order"),
        (("u: Hi",), "no_answer"),
        (("u: Hi", "a: Hello.", "u: Bye"), "no_answer"),
        (("s: Be kind.",), "no_answer"),
        (("u:   ", "a: Hello."), "empty_turn"),
        (("u: Hi", "a: \n", "u: Hi?", "a: Yes."), "empty_turn"),
        (("u: Hi\x00", "a: Hello."), "malformed_turn"),
    ],
)
def test_turns(turns: tuple[str, ...], reason: str | None):
    screen = make(kind="turns")
    assert screen(chat(*turns)) == reason
    assert screen(Preference((messages("u: Hi", "a: Hello."), messages(*turns)), "here")) == reason


def test_length():
    assert make(kind="length", max_characters=9)(chat("s: abc", "u: d", "a: efghi")) is None
    assert make(kind="length", max_characters=8)(chat("s: abc", "u: d", "a: efghi")) == "too_long"
    assert make(kind="length", max_turns=2)(chat("s: abc", "u: d", "a: e")) is None
    assert make(kind="length", max_turns=2)(chat("u: d", "a: e", "u: f", "a: g")) == "too_long"
    assert make(kind="length", max_characters=14)(pair("a", "abc")) == "too_long"


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ("It is here.", "It is there.", None),
        ("It is here.", "it is  HERE", "identical_answers"),
        (LONG * 3 + "Indeed.", LONG * 3 + "Certainly.", "near_identical_answers"),
        (LONG, LONG.replace("fish", "bread").replace("hill", "rock"), None),
        ("Yes", "No", None),
        ("+", "-", None),
        ("+", " +", "identical_answers"),
    ],
)
def test_alike_answers(one: str, other: str, reason: str | None):
    screen = make(kind="alike_answers", similarity=0.8)
    assert screen(pair(one, other)) == reason
    assert screen(chat("u: Hi", f"a: {one}")) is None
    third = (*pair("Quite another answer.", one).branches, pair(other, one).branches[0])
    assert screen(Preference(third, "here")) == reason


def test_the_first_of_duplicates_stays():
    screen = make(kind="duplicates")
    first, again = chat("u: Where is it?", "a: Here."), chat("u: where is it", "a: HERE!")
    assert [screen(first), screen(again), screen(chat("u: Where is it?", "a: There."))] == [None, "duplicate", None]
    assert screen(chat("u: Where is it? Here.", "a: x")) is None  # the words of `first` by other turns
    assert screen(pair("a", "b")) is None
    assert screen(pair("b", "a")) is None  # the contrary preference
    assert screen(pair("A", "b.")) == "duplicate"


def test_duplicates_of_a_prompt():
    screen = make(kind="duplicates", of="prompt")
    assert screen(chat("u: Where is it?", "a: Here.", "u: Sure?", "a: Yes.")) is None
    assert screen(chat("u: Where is it?", "a: There.")) == "duplicate"
    assert screen(pair("a", "b")) == "duplicate"
    assert screen(pair("a", "b", "When is it?")) is None
    # What has no words is told apart all the same.
    assert [screen(chat(f"u: {sign}", "a: x")) for sign in ("+", "-", "+")] == [None, None, "duplicate"]


def test_near_duplicates():
    screen = make(kind="near_duplicates", similarity=0.8)
    text = " ".join(f"{LONG} number {n}" for n in range(20))
    changed = text.replace("number 7", "figure 7")
    other = " ".join(f"Nobody in town {n} knows who rings the bell at {n} in the evening." for n in range(20))
    assert screen(chat(f"u: {text}", "a: Fine.")) is None
    assert screen(chat(f"u: {other}", "a: Fine.")) is None
    assert screen(chat(f"u: {changed}", "a: Fine.")) == "near_duplicate"
    assert screen(chat("u: Hi", "a: Hello.")) is None
    assert screen(chat("u: Hi", "a: Hallo.")) is None


def test_near_duplicates_are_those_of_an_exact_count(rng_texts: list[str]):
    """Datasketch's estimate against Jaccard similarities counted out, away from the threshold."""
    screen = make(kind="near_duplicates", similarity=0.8)
    kept: list[set[str]] = []
    for text in rng_texts:
        words = f"user {text} assistant ok".split()
        runs = {" ".join(words[at : at + 3]) for at in range(len(words) - 2)}
        nearest = max((len(runs & other) / len(runs | other) for other in kept), default=0.0)
        reason = screen(chat(f"u: {text}", "a: ok"))
        if nearest > 0.92:
            assert reason == "near_duplicate"
        if nearest < 0.68:
            assert reason is None
        if reason is None:
            kept.append(runs)
    assert len(kept) < len(rng_texts)


@pytest.fixture
def rng_texts() -> list[str]:
    """Texts of 200 words, each followed by copies in which ever more words are others."""
    import numpy as np

    rng = np.random.default_rng(3)
    texts = []
    for _ in range(10):
        words = [f"w{n}" for n in rng.integers(0, 5000, 200)]
        for changes in (0, 2, 5, 40, 100):
            copy = list(words)
            for place in rng.choice(200, changes, replace=False):
                copy[place] = f"x{rng.integers(0, 5000)}"
            texts.append(" ".join(copy))
    return texts


def test_language():
    screen = make(kind="language", keep=["en", "de"])
    assert screen(chat("u: Where does the train to Hamburg leave?", "a: From the third platform, at ten.")) is None
    assert screen(chat("u: Wo fährt der Zug nach Hamburg ab?", "a: Um zehn Uhr von Gleis drei.")) is None
    french = chat("u: D'où part le train pour Hambourg, s'il vous plaît ?", "a: Du troisième quai, à dix heures.")
    assert screen(french) == "language_fr"
    assert (
        screen(chat("u: 你好，请问去汉堡的火车从哪里出发，什么时候开？", "a: 十点从三号站台发车，请不要迟到。"))
        == "language_zh"
    )
    assert screen(chat("u: ça va", "a: oui")) is None  # too short to say
    code = "u: What does this do?\n```\n" + "\n".join(f"für{n} = la({n}) // le résultat" for n in range(30)) + "\n```"
    assert screen(chat(code, "a: It assigns the result of a call to each of thirty variables.")) is None


def test_substrings():
    screen = make(kind="substrings", texts=["As an AI "], list="tulu_provenance")
    assert screen(chat("u: Hi", "a: I am a helper.")) is None
    for said in ("I was made by OPENAI.", "GPT-3.5 it was", "in the palm of my hand", "as an ai model"):
        assert screen(chat("u: Hi", "a: Yes.", "u: Who?", f"a: {said}")) == "substring"
    assert screen(chat("s: You are ChatGPT.", "u: Hi", "a: Yes.")) == "substring"
    assert screen(pair("It is here.", "Ask Claude.")) == "substring"


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"kind": "substrings"}, "needs `texts`"),
        ({"kind": "substrings", "texts": ["a", " "]}, "needs `texts`"),
        ({"kind": "language", "keep": ["en", "english"]}, "'english' is not known"),
    ],
)
def test_a_section_that_means_nothing_is_refused(section: dict, says: str):
    with pytest.raises(RecipeError, match=says):
        screens.check(ADAPTER.validate_json(json.dumps(section)))
