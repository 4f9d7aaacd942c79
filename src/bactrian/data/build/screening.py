"""The screens that a build can have: which recipe section makes which.

A screen is `record -> reason | None`: why the record is dropped, by its name in the ledger. A section whose class says
`in_order` makes a screen that remembers what it has seen: it sees the records of all sources in the build's order, in
one process. The others may run in many.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bactrian.data import screen, screens
from bactrian.data.chat import Chat
from bactrian.data.screens import Screen
from bactrian.data.screens.settings import Kinds
from bactrian.sections import Section


class Unusable(Section):
    """Records with nothing to learn from: no last answer, or answers that do not differ."""

    kind: Literal["unusable"]
    in_order: ClassVar[bool] = False


ScreenSection = Annotated[Unusable | Kinds, Field(discriminator="kind")]


def fingerprint(section: ScreenSection) -> str:
    """Equal for two sections only if what they read is; what is wrong with a section is raised here, in good time."""
    return "" if isinstance(section, Unusable) else screens.check(section)


def make(section: ScreenSection, chat: Chat | None) -> Screen:
    """The screen of a section. `chat` is the recipe's [tokenizer], where it has one. Raises `RecipeError`."""
    return screen.unusable if isinstance(section, Unusable) else screens.make(section)
