"""What a recipe says about screens: one section per kind, told apart by `kind`.

`in_order`: the screen remembers what it has seen, and so sees the records of a build in order, in one process.
"""

from typing import ClassVar, Literal

from pydantic import Field

from bactrian.sections import Section

EvaluationLayout = Literal["mt_bench", "alpaca_eval", "gsm8k", "mmlu", "humaneval", "truthfulqa", "prompts"]


class Turns(Section):
    """Drops what is no well-formed conversation: blank turns, roles out of order, no answer at the end."""

    kind: Literal["turns"]
    in_order: ClassVar[bool] = False


class Length(Section):
    """Drops what is too long, before it is paid for in tokens."""

    kind: Literal["length"]
    in_order: ClassVar[bool] = False
    max_characters: int | None = Field(
        default=None, ge=1, le=10**12, description="of all turns; of the longest branch of a pair"
    )
    max_turns: int | None = Field(default=None, ge=1, le=10**9, description="a system message is no turn")


class AlikeAnswers(Section):
    """Drops preferences two of whose answers say the same."""

    kind: Literal["alike_answers"]
    in_order: ClassVar[bool] = False
    similarity: float = Field(default=0.95, gt=0, le=1, description="share of three-word runs in common to be alike")


class Duplicates(Section):
    """Drops what came before, but for case, spaces and punctuation."""

    kind: Literal["duplicates"]
    in_order: ClassVar[bool] = True
    of: Literal["record", "prompt"] = Field(default="record", description="the prompt: what comes before any answer")


class NearDuplicates(Section):
    """Drops what nearly came before, by MinHash signatures of three-word runs (Broder 1997)."""

    kind: Literal["near_duplicates"]
    in_order: ClassVar[bool] = True
    of: Literal["record", "prompt"] = "record"
    similarity: float = Field(default=0.8, gt=0, lt=1, description="share of three-word runs in common to be a copy")


class Language(Section):
    """Drops what is surely in another language."""

    kind: Literal["language"]
    in_order: ClassVar[bool] = False
    keep: tuple[str, ...] = Field(min_length=1, description="ISO 639-1 codes, as en")
    certainty: float = Field(default=0.9, gt=0, lt=1, description="what is less surely another language stays")


class Substrings(Section):
    """Drops what holds one of some texts in any turn, case ignored."""

    kind: Literal["substrings"]
    in_order: ClassVar[bool] = False
    texts: tuple[str, ...] = ()
    list: Literal["tulu_provenance"] | None = Field(default=None, description="a named list, beside `texts`")


class EvaluationSet(Section):
    """An evaluation set in a file of the user's."""

    path: str
    layout: EvaluationLayout = Field(description="prompts: rows with `prompt`")
    name: str | None = Field(
        default=None, pattern=r"^[a-z0-9_]+$", description="in the ledger; the layout if not given"
    )


class Contamination(Section):
    """Drops what shares a run of words with an evaluation set."""

    kind: Literal["contamination"]
    in_order: ClassVar[bool] = False
    against: tuple[EvaluationSet, ...] = Field(min_length=1)
    words: int = Field(default=13, ge=8, le=10_000, description="length of the run; GPT-3's paper takes 13")


Kinds = Turns | Length | AlikeAnswers | Duplicates | NearDuplicates | Language | Substrings | Contamination
