"""Our two methods as a model of lm-eval, which brings the tasks. Needs the extra `eval`.

lm_eval.simple_evaluate(model=Model(respondent, name, respondent.text), tasks=["gsm8k"])
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM

from bactrian.data.records import Message, Messages
from bactrian.errors import InputError
from bactrian.evaluate.protocol import Prompt, Responder, Settings

_DEFAULT_TOKENS = 256  # of an answer, where a task does not say: lm-eval's own default
_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # what tasks call it, first counts
_UNDERSTOOD = {"until", "do_sample", "temperature", "top_k", "top_p", *_TOKENS}
# Arguments of `transformers` that change nothing at these values; None is one for each.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "n", "best_of", "num_beam_groups"), (1,)),
    **dict.fromkeys(("repetition_penalty", "typical_p", "encoder_repetition_penalty"), (1.0,)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "diversity_penalty", "penalty_alpha", "min_p"), (0.0,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "top_a", "min_tokens"), (0,)),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values", "return_full_text", "ignore_eos"), (False,)),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "suppress_tokens", "logit_bias", "stop_token_ids"), ([], {})),
}
# Of beams alone, of speed, or of how an answer is handed over: whatever they say.
_WITHOUT_EFFECT = {
    *("length_penalty", "early_stopping", "use_cache", "cache_implementation", "pad_token_id", "low_memory"),
    *("output_scores", "output_attentions", "output_hidden_states", "return_dict_in_generate", "skip_special_tokens"),
    *("spaces_between_special_tokens", "clean_up_tokenization_spaces"),
}


class Model(LM):
    """A responder under lm-eval's interface.

    name: of the model and its chat template, for lm-eval's records. render: how a conversation reads, for them too;
    what is answered and scored is the conversation itself, so that no text is ever cut into special tokens.
    """

    def __init__(self, responder: Responder, name: str, render: Callable[[Prompt], str]):
        super().__init__()
        self._responder = responder
        self._name = name
        self._render = render
        self._conversations: dict[str, Messages] = {}

    @property
    def tokenizer_name(self) -> str:
        return self._name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What lm-eval keys and records the use of a chat template by."""
        return self._name if chat_template else ""

    def apply_chat_template(self, chat_history: Sequence[Any], add_generation_prompt: bool = True) -> str:
        """A text that stands for the conversation; without a generation prompt its last turn is to be continued."""
        turns = [turn if isinstance(turn, dict) else vars(turn) for turn in chat_history]
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        if add_generation_prompt and messages and messages[-1].role == "assistant":
            raise InputError("a task's conversation ends in an assistant's turn; there is nothing to answer")
        text = self._render(messages)
        self._conversations[text] = messages
        return text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        contexts, continuations = zip(*(request.args for request in requests), strict=True)
        scores = self._responder.score([*map(self._prompt, contexts)], continuations)
        return [(score.logprob, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        texts = [text for (text,) in (request.args for request in requests)]
        return [score.logprob for score in self._responder.score([""] * len(texts), texts)]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        answers = [""] * len(requests)
        for wanted, indices in alike.items():
            prompts = [self._prompt(requests[index].args[0]) for index in indices]
            for index, answer in zip(
                indices, self._responder.generate(prompts, _settings(json.loads(wanted))), strict=True
            ):
                answers[index] = answer
        return answers

    def _prompt(self, text: str) -> Prompt:
        return self._conversations.get(text, text)


def _settings(wanted: dict[str, Any]) -> Settings:
    """A task's generation arguments as ours; without `do_sample` a temperature above 0 asks to draw, as in lm-eval."""
    unknown = [
        f"{name}: {value!r}"
        for name, value in sorted(wanted.items())
        if name not in _UNDERSTOOD | _WITHOUT_EFFECT and value is not None and value not in _NEUTRAL.get(name, ())
    ]
    if unknown:
        raise InputError(
            f"a task asks to generate with {', '.join(unknown)}, which our engine does not have; take it out of the "
            f"task's generation_kwargs, or leave the task out"
        )
    until = wanted.get("until") or []
    temperature = float(wanted.get("temperature") or 0.0)
    draws = wanted.get("do_sample", temperature > 0)
    return Settings(
        max_tokens=int(next((wanted[name] for name in _TOKENS if wanted.get(name) is not None), _DEFAULT_TOKENS)),
        temperature=(temperature or 1.0) if draws else 0.0,
        top_k=int(wanted.get("top_k") or 0) if draws else 0,
        top_p=float(wanted.get("top_p") or 1.0) if draws else 1.0,
        stop=tuple(each for each in ([until] if isinstance(until, str) else until) if each),
    )
