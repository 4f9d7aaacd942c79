"""Laws: text is tokenized once; the ledger adds up, each drop under its reason; a build that is cut short leaves
nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as engines
from tokenizers import decoders, models, pre_tokenizers, trainers

from bactrian.data import corpus as corpora
from bactrian.data import packing, sources, tokenizer
from bactrian.data.chat import Chat
from bactrian.data.corpus import Corpus, Limits
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import DataError
from bactrian.recipe import Source

WIDE = Limits(max_length=1000, row_length=1000)
DEAF = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"  # answers are left out


def small_tokenizer(template: str | None = None) -> Tokenizer:
    """Every byte a token."""
    engine = engines.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=257, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator([], trainer)
    return Tokenizer(engine.to_str(), eos_id=0, chat_template=template)


CHAT = Chat(small_tokenizer(), "tulu")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def talk(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]}


def pairs_of(path: Path) -> Source:
    return Source(path=str(path), format="preference")


def build(source: Source | list[Source], root: Path, limits: Limits = WIDE, chat: Chat = CHAT, dropped: float = 1.0):
    return corpora.build(source if isinstance(source, list) else [source], chat, limits, dropped, root)


def assert_same(one: Corpus, other: Corpus) -> None:
    assert len(one) == len(other) and one.ledger == other.ledger
    for index in range(len(one)):
        assert one[index].tokens.tobytes() == other[index].tokens.tobytes()
        assert one[index].learn.tobytes() == other[index].learn.tobytes()
        assert one[index].starts == other[index].starts


@pytest.fixture
def source(tmp_path: Path) -> Source:
    rows = [pair(f"Question {index}?", "Yes" * index, "No, not at all.") for index in range(1, 9)]
    return pairs_of(write(tmp_path / "pairs.jsonl", rows))


def test_a_corpus_is_what_the_format_renders(tmp_path: Path, source: Source):
    corpus = build(source, tmp_path)
    records = list(sources.load(source))
    assert len(corpus) == len(records) == 8 and corpus.branches == 2
    for index, record in enumerate(records):
        expected = corpora.render(record, CHAT)
        assert corpus[index].tokens.tolist() == expected.tokens.tolist()
        assert corpus[index].learn.tolist() == expected.learn.tolist()
        assert corpus[index].starts == expected.starts
        assert corpus.places()[index] == len(packing.lay_out(expected).tokens)
        assert corpus.learned()[index] == packing.lay_out(expected).learn.sum()


def test_conversations_have_one_branch(tmp_path: Path):
    rows = [talk("Hi", "Hello"), talk("Hi", "Hello", "And?", "Bye")]
    corpus = build(Source(path=str(write(tmp_path / "talk.jsonl", rows)), format="messages"), tmp_path)
    assert corpus.branches == 1 and corpus[1].starts == ()
    assert corpus.places().tolist() == [len(corpus[index].tokens) - 1 for index in range(2)]


def test_text_is_tokenized_once(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch):
    first = build(source, tmp_path)

    def refuse(chat, records):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(Chat, "render_many", refuse)
    again = build(source, tmp_path)
    assert again.key == first.key
    assert_same(again, first)
    for change in [
        {"limits": Limits(999, 1000)},
        {"limits": Limits(1000, 999)},
        {"chat": Chat(CHAT.tokenizer, "tulu", "last")},
    ]:
        with pytest.raises(AssertionError, match="tokenized again"):
            build(source, tmp_path, **change)
    path = Path(source.path)
    path.write_text(path.read_text().replace("not at all", "not a bit"))
    with pytest.raises(AssertionError, match="tokenized again"):
        build(source, tmp_path)


def total(ledger: dict[str, Any]) -> int:
    return ledger["kept"] + sum(ledger["dropped"].values())


def test_each_drop_has_its_reason_and_the_ledger_adds_up(tmp_path: Path):
    ask = "x" * 20
    fits = pair(ask, "a", "b")
    record = next(iter(sources.load(pairs_of(write(tmp_path / "one.jsonl", [fits])))))
    example = corpora.render(record, CHAT)
    path = max(len(example.branch(branch)[0]) for branch in (0, 1))
    places = packing.places(len(example.tokens), example.starts)
    rows = [
        fits,
        pair(ask, "a", "a"),
        pair(ask, "", "b"),
        pair(ask + "x", "a", "b"),  # one token too long
        pair(ask, "a", "bb"),  # its worse branch is
        pair(ask[2:], "aaa", "bbb"),  # each path fits, both beside each other do not
    ]
    corpus = build(pairs_of(write(tmp_path / "pairs.jsonl", rows)), tmp_path, Limits(path, places))
    [entry] = corpus.ledger["sources"]
    assert entry["dropped"] == {"identical_answers": 1, "empty_answer": 1, "too_long": 2, "longer_than_a_row": 1}
    assert entry["read"] == total(entry) == 6 and entry["kept"] == len(corpus) == corpus.ledger["examples"] == 1
    assert corpus.ledger["tokens"] == len(corpus[0].tokens)
    assert corpus.ledger["learned_tokens"] == corpus[0].learn.sum()
    # With room for them, those that were too long are kept.
    assert len(build(pairs_of(tmp_path / "pairs.jsonl"), tmp_path, Limits(path + 1, places + 2))) == 4


def test_what_has_nothing_to_learn_is_dropped(tmp_path: Path):
    rows = [talk("Hi", "Hello")] * 3
    source = Source(path=str(write(tmp_path / "talk.jsonl", rows)), format="messages")
    with pytest.raises(DataError, match=r"3 of 3 rows .* 3 nothing_to_learn; repair the data, or raise max_dropped"):
        build(source, tmp_path, chat=Chat(small_tokenizer(DEAF), "model"), dropped=0.5)


def test_nothing_left_is_an_error_that_names_the_ledger(tmp_path: Path, source: Source):
    with pytest.raises(DataError, match="no row can be used; the ledger is in ") as caught:
        build(source, tmp_path, Limits(3, 100))
    folder = Path(str(caught.value).rsplit(" ", 1)[1])
    assert json.loads((folder / "ledger.json").read_text())["sources"][0]["dropped"] == {"too_long": 8}


def test_more_drops_than_allowed_stop_the_run_each_time(tmp_path: Path):
    rows = [pair("Hi", "a", "b")] * 7 + [pair("Hi", "a", "a")] * 2 + [pair("Hi", "", "b")]
    source = pairs_of(write(tmp_path / "pairs.jsonl", rows))
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"3 of 10 rows \(30.0%\) cannot be used: 1 empty_answer, 2 identical_answers"
        ):
            build(source, tmp_path, dropped=0.29)
    assert len(build(source, tmp_path, dropped=0.3)) == 7


def test_the_share_is_counted_for_each_source(tmp_path: Path, source: Source):
    bad = pairs_of(write(tmp_path / "bad.jsonl", [pair("Hi", "a", "a")]))
    with pytest.raises(DataError, match=r"bad.jsonl: 1 of 1 rows"):
        build([source, bad], tmp_path, dropped=0.5)
    corpus = build([source, bad], tmp_path)
    assert [entry["path"] for entry in corpus.ledger["sources"]] == [source.path, bad.path]
    assert [entry["read"] for entry in corpus.ledger["sources"]] == [8, 1]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError, MemoryError])
def test_a_build_that_fails_leaves_nothing(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
):
    save, files = np.save, []

    def failing(path, array):
        files.append(path)
        if len(files) == 2:
            raise fault
        save(path, array)

    monkeypatch.setattr(np, "save", failing)
    with pytest.raises(fault):
        build(source, tmp_path)
    assert all(left.name.startswith(".") for left in (tmp_path / "corpora").iterdir())  # what nobody looks for
    monkeypatch.undo()
    corpus = build(source, tmp_path)
    assert len(corpus) == 8
    assert [left.name for left in (tmp_path / "corpora").iterdir() if left.suffix != ".lock"] == [corpus.key]


def killed_in_the_middle(path: str, root: str) -> None:
    """Begin to build, and die as by `kill -9` when most files are written."""
    import os

    save = np.save

    def dying(path, array):
        save(path, array)
        if path.name == "offsets.npy":
            os._exit(9)

    np.save = dying
    build(pairs_of(Path(path)), Path(root))


def test_a_killed_build_counts_for_nothing(tmp_path: Path, source: Source):
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_corpus as test\n"
    program += f"test.killed_in_the_middle({source.path!r}, {str(tmp_path)!r})"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    assert all(left.name.startswith(".") for left in (tmp_path / "corpora").iterdir())  # what nobody looks for
    corpus = build(source, tmp_path)
    assert len(corpus) == 8
    assert_same(build(source, tmp_path / "elsewhere"), corpus)


def test_real_pairs_have_their_known_faults_and_the_ledger_adds_up(shared_data: Path, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes((shared_data / "llama2_tokenizer" / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    chat = Chat(tokenizer.load(tmp_path), "tulu", "last")
    source = pairs_of(shared_data / "ultrafeedback" / "uf_binarized_train_1000.jsonl")
    corpus = build(source, tmp_path, Limits(2048, 3072), chat)
    [entry] = corpus.ledger["sources"]
    assert entry["read"] == total(entry) == 1000
    assert entry["dropped"]["identical_answers"] == 4 and entry["dropped"]["empty_answer"] == 2
    assert set(entry["dropped"]) <= {"identical_answers", "empty_answer", "too_long", "longer_than_a_row"}
    assert entry["kept"] == len(corpus) == len(corpus.places())
    # Lengths of the whole sequences, counted anew.
    longest = [max(len(corpus[index].branch(branch)[0]) for branch in (0, 1)) for index in range(len(corpus))]
    assert max(longest) <= 2048 and corpus.places().max() <= 3072
    assert (corpus.learned() >= 2).all()
    assert corpus.ledger["tokens"] == sum(len(corpus[index].tokens) for index in range(len(corpus)))
