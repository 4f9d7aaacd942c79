"""Screen `language`: what is surely in another language, counted by language as `language_fr`.

py3langid names the language. Its model of 4.6 MB is part of the package, so that nothing is fetched; on 1,500 real
conversations it and lingua (96 MB, the most accurate on short text) named the same language 1,494 times, at a fifteenth
of the time. It is sure of itself (0.9 and more) where they differ on pasted code alone, so code in fences is left out.
"""

import re
from functools import lru_cache
from typing import Any

from bactrian.data.records import Record
from bactrian.data.screens import words
from bactrian.data.screens.settings import Language
from bactrian.errors import RecipeError

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_LETTERS = 20  # a text of fewer says nothing certain
_READ = 2000  # characters of a record
_NO_LANGUAGE = "zxx"


def check(settings: Language, record: Record) -> str | None:
    """`language_xx` if the record is surely in a language xx that is not to be kept."""
    text = _CODE.sub(" ", "\n".join(words.contents(record)))[:_READ]
    if sum(map(str.isalpha, text)) < _LETTERS:
        return None
    language, certainty = _identifier().classify(text)
    if language == _NO_LANGUAGE or language in settings.keep or certainty < settings.certainty:
        return None
    return f"language_{language}"


def check_known(settings: Language) -> None:
    """Raise `RecipeError` for a code that names no language known here."""
    unknown = [code for code in settings.keep if code not in _identifier().labels]
    if unknown:
        raise RecipeError(f"screens: language {unknown[0]!r} is not known; give ISO 639-1 codes, as en, de, zh")


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
