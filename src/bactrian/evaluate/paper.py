"""What the Tulu 2 paper reports on its benchmarks, to be set beside one's own scores.

Ivison et al. 2023, "Camels in a Changing Climate", https://arxiv.org/abs/2311.10702v2, tables 1 and 3; in percent.
"""

from bactrian.errors import InputError

_NAMES = ("mmlu", "gsm8k", "bbh", "tydiqa", "humaneval")
_TABLE = {
    "tulu-2-7b": (50.4, 34.0, 48.5, 46.4, 36.9),
    "tulu-2-dpo-7b": (50.7, 34.5, 45.5, 44.5, 40.0),
    "tulu-2-13b": (55.4, 46.0, 49.5, 53.2, 49.0),
    "tulu-2-dpo-13b": (55.3, 49.5, 49.4, 39.7, 48.9),
    "tulu-2-70b": (67.3, 73.0, 68.4, 53.6, 68.5),
    "tulu-2-dpo-70b": (67.8, 71.5, 66.0, 35.8, 68.9),
}


def expected(model: str) -> dict[str, float]:
    """The paper's scores of one of its models, by benchmark. Raises `InputError`."""
    if model not in _TABLE:
        raise InputError(f"{model}: the paper has no scores of it; known are {', '.join(_TABLE)}")
    return dict(zip(_NAMES, _TABLE[model], strict=True))
