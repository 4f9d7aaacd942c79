"""Screen `substrings`: what holds one of some texts in any turn, case ignored.

The list `tulu_provenance` is that of open-instruct (scripts/data/sft_v1_v2/reformat_datasets.py at 3047f9a): names of
other models and their makers, so that a model does not take itself for one. It drops palms and Claude Monet too.
"""

from bactrian.data.records import Record
from bactrian.data.screens import words
from bactrian.data.screens.settings import Substrings
from bactrian.errors import RecipeError

# GPT-3.5 and the like are in GPT-3.
LISTS = {
    "tulu_provenance": (
        *("OpenAI", "Open AI", "ChatGPT", "Chat GPT", "GPT-3", "GPT3", "GPT 3", "GPT-4", "GPT4", "GPT 4"),
        *("BingChat", "Bing Chat", "BARD", "Palm", "Anthropic", "Claude", "LAION", "Open Assistant", "OpenAssistant"),
    )
}


def wanted(settings: Substrings) -> tuple[str, ...]:
    """The texts to look for, in lower case. Raises `RecipeError` where there is none, or a blank one."""
    texts = (*settings.texts, *(LISTS[settings.list] if settings.list else ()))
    if not texts or not all(text.strip() for text in texts):
        raise RecipeError("screens: substrings needs `texts`, none of them blank, or a `list`")
    return tuple(text.lower() for text in texts)


def check(texts: tuple[str, ...], record: Record) -> str | None:
    """`substring` if any turn holds any of the texts, which are in lower case."""
    contents = [content.lower() for content in words.contents(record)]
    return "substring" if any(text in content for content in contents for text in texts) else None
