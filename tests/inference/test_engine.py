import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bactrian.errors import InputError
from bactrian.inference import engine as engines
from bactrian.inference.engine import Engine, Generated, Settings
from bactrian.model import llama, weights
from bactrian.model.attention import Places

CONFIG = llama.Config(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=1200,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
)
PROMPTS = [np.random.default_rng(n).integers(0, 97, n).tolist() for n in (5, 1, 33, 34, 12)]


@pytest.fixture(scope="module")
def parameters() -> llama.Parameters:
    # Ten times the usual deviation, so that the likeliest token is far from the next.
    wide = jax.tree.map(lambda weight: weight * 10, llama.init(CONFIG, jax.random.PRNGKey(0)))
    return {**wide, "final_norm": jnp.ones(32)}


@pytest.fixture(scope="module")
def engine(parameters) -> Engine:
    return Engine(CONFIG, parameters, max_rows=4)


@jax.jit
def _argmaxes(parameters, tokens_1T):
    zeros_1T = jnp.zeros_like(tokens_1T)
    places = Places(zeros_1T + 1, zeros_1T, jnp.arange(tokens_1T.shape[1])[None])
    return llama.logits(parameters, llama.forward(parameters, CONFIG, tokens_1T, places))[0].argmax(-1)


def _by_forward(parameters, prompt: list[int], answer: np.ndarray, length: int = 64) -> list[int]:
    """What the full forward pass would say at each place of the answer, given what stands before it."""
    tokens_T = np.zeros(length, np.int32)
    tokens_T[: len(prompt) + len(answer)] = [*prompt, *answer]
    said_T = np.asarray(_argmaxes(parameters, tokens_T[None]))
    return said_T[len(prompt) - 1 : len(prompt) + len(answer) - 1].tolist()


def _lists(answers: list[Generated]) -> list[list[int]]:
    return [answer.tokens.tolist() for answer in answers]


def test_greedy_is_the_argmax_of_the_full_forward_pass(engine, parameters):
    answers = engine.generate(PROMPTS, Settings(max_tokens=11))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.tokens.tolist() == _by_forward(parameters, prompt, answer.tokens)
    assert {answer.finish for answer in answers} == {"length"}
    assert answers[0].tokens.dtype == np.int32


def test_a_prompt_longer_than_one_prefill_call_is_read_whole(engine, parameters):
    prompt = np.random.default_rng(1).integers(0, 97, 1100).tolist()
    for cut in (1025, 1026):  # two whole calls, and a rest of one token
        answer = engine.generate([prompt[:cut]], Settings(max_tokens=3))[0]
        assert answer.tokens.tolist() == _by_forward(parameters, prompt[:cut], answer.tokens, length=1200)


def test_neighbours_change_nothing(engine, parameters):
    settings = Settings(max_tokens=9, temperature=1.0, seed=3)
    together = engine.generate(PROMPTS, settings)
    by_one = Engine(CONFIG, parameters, max_rows=1).generate(PROMPTS, settings)
    assert _lists(together) == _lists(by_one)


def test_stream_yields_what_generate_returns(engine):
    plain = Settings(max_tokens=9, temperature=0.8, top_k=20, top_p=0.9, seed=1)
    tokens = engine.generate([PROMPTS[2]], plain)[0].tokens.tolist()
    assert list(engine.stream(PROMPTS[2], plain)) == tokens
    stopping = Settings(max_tokens=9, temperature=0.8, top_k=20, top_p=0.9, seed=1, stop_ids=(tokens[4],))
    assert list(engine.stream(PROMPTS[2], stopping)) == tokens[: tokens.index(tokens[4])]


def test_answers_end_at_the_first_stop_id_and_slots_are_given_on(engine):
    prompts = [[n] for n in range(30)]
    whole = _lists(engine.generate(prompts, Settings(max_tokens=20, temperature=1.0)))
    stops = (5, 17, 60, 61, 62)
    answers = engine.generate(prompts, Settings(max_tokens=20, temperature=1.0, stop_ids=stops))
    for tokens, answer in zip(whole, answers, strict=True):
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        assert answer.tokens.tolist() == tokens[:end]
        assert answer.finish == ("length" if end is None else "stop")
    assert {answer.finish for answer in answers} == {"length", "stop"}


def test_a_batch_that_narrows_and_reads_many_at_once_changes_no_answer(monkeypatch, parameters):
    prompts = np.random.default_rng(8).integers(0, 97, (21, 5)).tolist()
    settings = Settings(max_tokens=40, temperature=1.0, stop_ids=(5, 17, 60, 61, 62))
    sizes, narrow = [], engines._narrow

    def narrowed(cache, rows, slots):
        sizes.append((len(rows.tokens_B), len(slots)))
        return narrow(cache, rows, slots)

    monkeypatch.setattr(engines, "_narrow", narrowed)
    together = Engine(CONFIG, parameters).generate(prompts, settings)
    by_one = Engine(CONFIG, parameters, max_rows=1).generate(prompts, settings)
    assert _lists(together) == _lists(by_one)
    assert sizes == [(24, 8)]


def test_a_seed_gives_the_same_tokens_and_another_gives_others(engine):
    first, again, other = (
        _lists(engine.generate(PROMPTS, Settings(max_tokens=8, temperature=1.0, seed=seed))) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_equal_prompts_draw_differently(engine):
    one, two = _lists(engine.generate([PROMPTS[0]] * 2, Settings(max_tokens=8, temperature=1.0)))
    assert one != two


def test_the_answer_may_fill_the_last_position(engine):
    prompt = [3] * 1190
    assert len(engine.generate([prompt], Settings(max_tokens=10))[0].tokens) == 10
    with pytest.raises(InputError, match=r"prompt 0 has 1190 tokens .* 11, .* 1200 positions"):
        engine.generate([prompt], Settings(max_tokens=11))


def test_bad_prompts_fail_at_the_call(engine):
    with pytest.raises(InputError, match="prompt 1 is empty"):
        engine.generate([[1], []], Settings())
    with pytest.raises(InputError, match="prompt 0 is empty"):
        engine.stream([], Settings())
    with pytest.raises(InputError, match="prompt 0 holds id 97"):
        engine.stream([5, 97], Settings())
    assert engine.generate([], Settings()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_settings_refuse_what_cannot_be(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} is "):
        Settings(**wrong)


def test_the_largest_seed_draws(engine):
    assert engine.generate([[1]], Settings(max_tokens=2, temperature=1.0, seed=2**32 - 1))


def test_bfloat16_generates(parameters):
    answer = Engine(CONFIG, parameters, dtype="bfloat16").generate([[1]], Settings(max_tokens=4))[0]
    assert len(answer.tokens) == 4


def test_greedy_equals_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    architecture = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1200,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(architecture).eval()
    theirs.save_pretrained(tmp_path)
    engine = Engine(weights.read_config(tmp_path), weights.load(tmp_path))
    answers = engine.generate(PROMPTS, Settings(max_tokens=16))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([prompt])
        how = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), **how)
        assert answer.tokens.tolist() == out[0, len(prompt) :].tolist()


def test_a_beginning_that_is_read_once_changes_no_answer(monkeypatch, parameters):
    beginning = np.random.default_rng(5).integers(0, 97, 70).tolist()
    prompts = [[*beginning, *prompt] for prompt in PROMPTS] + [PROMPTS[2]]
    answers = []
    for cost in (0, 10**6):  # of a group that shares a beginning
        monkeypatch.setattr(engines, "_GROUP_COST", cost)
        engine = Engine(CONFIG, parameters, max_rows=4)
        answers.append(_lists(engine.generate(prompts, Settings(max_tokens=9))))
        drawn = engine.generate(prompts, Settings(max_tokens=9, temperature=0.9, top_k=20, seed=4))
        answers[-1] += _lists(drawn)
    assert answers[0] == answers[1]


def test_an_answer_ends_when_it_is_said_to(engine):
    whole = _lists(engine.generate(PROMPTS, Settings(max_tokens=30)))
    ended = engine.generate(PROMPTS, Settings(max_tokens=30), lambda _, tokens: len(tokens) >= 10)
    for answer, tokens in zip(ended, whole, strict=True):
        assert answer.finish == "stop"
        assert 10 <= len(answer.tokens) < 30
        assert tokens[: len(answer.tokens)] == answer.tokens.tolist()
