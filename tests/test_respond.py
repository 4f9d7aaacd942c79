"""Laws: prompts become the ids that training and serving see; text is cut as lm-eval cuts it."""

from itertools import pairwise

import numpy as np
import pytest
import tiny

from bactrian import assistant, progress
from bactrian.data.records import Message
from bactrian.errors import InputError
from bactrian.evaluate.protocol import Settings
from bactrian.respond import Respondent

TALK = (Message("user", "Where does Ada find bread?"),)


@pytest.fixture(scope="module")
def respondent(tmp_path_factory) -> Respondent:
    folder = tmp_path_factory.mktemp("respond") / "model"
    tiny.model(folder, "Good day! Where does Ada find bread and letters? At the harbour, at the school.")
    return Respondent(assistant.find(str(folder)), "model")


def text_ids(respondent: Respondent, text: str) -> list[int]:
    return respondent.assistant.tokenizer.encode_text(text, add_bos=True).tolist()


def test_a_conversation_becomes_the_ids_of_the_template(respondent):
    chat = respondent.assistant.chat("model")
    assert respondent.ids(TALK).tolist() == chat.prompt(TALK).tolist()
    begun = (*TALK, Message("assistant", "Ada finds"))
    assert respondent.text(begun) == f"{respondent.text(TALK)}Ada finds"


def test_a_begun_answer_is_continued_where_it_stands(respondent):
    begun = (*TALK, Message("assistant", "Good day! At"))
    first, rest, whole = respondent.score(
        [TALK, begun, TALK], ["Good day! At", " the school", "Good day! At the school"]
    )
    assert whole.logprob == pytest.approx(first.logprob + rest.logprob, rel=1e-4)
    assert first.logprob < 0 and rest.logprob < 0


def test_trailing_spaces_of_a_context_belong_to_the_continuation(respondent):
    with_space, without = respondent.score(["Where does ", "Where does"], ["Ada", " Ada"])
    assert with_space == without


def test_scores_add_up_over_a_continuation(respondent):
    tokenizer = respondent.assistant.tokenizer
    ids = text_ids(respondent, "Good day! At the harbour")
    pieces = [tokenizer.decode(ids[: at + 1]) for at in range(len(ids))]
    if any(text_ids(respondent, piece) != ids[: at + 1] for at, piece in enumerate(pieces)):
        pytest.fail("choose a text whose beginnings are cut as the whole is")
    steps = [
        respondent.score([before], [after[len(before) :]])[0].logprob
        for before, after in pairwise(pieces)
        if not before.endswith(" ")
    ]
    [whole] = respondent.score([pieces[0]], [pieces[-1][len(pieces[0]) :]])
    assert whole.logprob == pytest.approx(sum(steps), rel=1e-3)


def test_after_an_empty_context_comes_the_token_that_begins_a_document(respondent):
    [score] = respondent.score([""], ["Good day"])
    assert score.logprob < 0
    assert respondent.score(["", "Good"], ["", ""]) == [(0.0, True), (0.0, True)]


def test_a_document_longer_than_the_model_is_scored_in_windows(respondent):
    positions = respondent.assistant.config.max_positions
    text = "Where does Ada find bread? " * 200
    ids = text_ids(respondent, text)
    assert len(ids) > 2 * positions
    [whole] = respondent.score([""], [text])
    parts = []
    first = np.array([respondent.assistant.tokenizer.eos_id])
    for start in range(0, len(ids), positions):
        end = min(start + positions, len(ids))
        path = np.concatenate([first, ids])[end - positions : end + 1] if start else np.concatenate([first, ids[:end]])
        parts.append((path, end - start))
    total = sum(_direct(respondent, path, count) for path, count in parts)
    assert whole.logprob == pytest.approx(total, rel=1e-4)


def _direct(respondent: Respondent, path: np.ndarray, count: int) -> float:
    import jax

    from bactrian.model import llama
    from bactrian.model.attention import Places

    config = respondent.assistant.config
    tokens = jax.numpy.array(path[None, :-1])
    places = Places(tokens * 0 + 1, tokens * 0, jax.numpy.arange(tokens.shape[1])[None])
    parameters = respondent.assistant.parameters()
    hidden = llama.forward(parameters, config, tokens, places)
    logprobs = jax.nn.log_softmax(llama.logits(parameters, hidden)[0])
    return float(logprobs[np.arange(len(path) - 1), path[1:]][-count:].sum())


def test_a_context_too_long_loses_its_beginning_and_says_so(respondent, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "say", said.append)
    long = "Where does Ada find bread? " * 200
    [cut] = respondent.score([long], [" Good"])
    ids = text_ids(respondent, f"{long.rstrip()}  Good")[-respondent.assistant.config.max_positions - 1 :]
    assert cut.logprob == pytest.approx(
        _direct(respondent, np.array(ids), len(text_ids(respondent, "  Good"))), rel=1e-3
    )
    assert "1 prompts lost their beginning" in said[0]
    assert len(respondent.generate([long], Settings(max_tokens=4))) == 1
    assert len(said) == 2


def test_what_cannot_fit_is_refused(respondent):
    with pytest.raises(InputError, match="max_tokens is 512, and the model has 512 positions"):
        respondent.generate(["Good"], Settings(max_tokens=512))
    with pytest.raises(InputError, match=r"a continuation of .* tokens cannot be scored"):
        respondent.score(["Good"], [" day" * 600])


def test_an_answer_ends_before_the_first_stop(respondent):
    settings = Settings(max_tokens=40)
    [whole] = respondent.generate([TALK], settings)
    stop = whole[len(whole) // 2 :][:2]
    [cut] = respondent.generate([TALK], Settings(max_tokens=40, stop=("never said", stop)))
    assert cut == whole[: whole.index(stop)]


def test_texts_and_conversations_are_answered_in_their_order(respondent):
    settings = Settings(max_tokens=8)
    mixed = ["Good day! ", TALK, "At the"]
    assert respondent.generate(mixed, settings) == [respondent.generate([each], settings)[0] for each in mixed]


def test_clip(respondent):
    text = "Good day! Where does Ada find bread?"
    ids = text_ids(respondent, text)
    assert respondent.clip(text, len(ids)) == text
    assert text.startswith(respondent.clip(text, 5)) and len(text_ids(respondent, respondent.clip(text, 5))) == 5
