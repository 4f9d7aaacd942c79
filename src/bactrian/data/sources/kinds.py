"""The kinds of sources that a data recipe can have: where the rows lie, how they are laid out, how much is wanted.

`format` tells them apart. A layout with settings has a kind of its own; the others share `Plain`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bactrian.recipe import File, Layout, PublishedLayout


class Share(File):
    """A source's part in the mixture. At most one of count, proportion and epochs; none of them: all of it, once."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the `dataset` of its rows")
    count: int | None = Field(default=None, ge=1, description="so many records, drawn at random")
    proportion: float | None = Field(default=None, gt=0, le=1, description="this share of the mixture")
    epochs: float | None = Field(default=None, gt=0, description="each record so many times; 0.5: half of them")
    repeat: bool = Field(default=False, description="records may come more than once where there are not enough")
    screened: bool = Field(default=True, description="whether [[screens]] apply")

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if sum(amount is not None for amount in (self.count, self.proportion, self.epochs)) > 1:
            raise ValueError("give one of count, proportion and epochs")
        return self


class Plain(Share):
    """A source whose layout has no settings."""

    format: Layout | PublishedLayout = Field(description="how a row is laid out")


class Templated(Share):
    """Instructions that are written into one of many prompt templates, as Tulu's are."""

    format: Literal["alpaca_templated", "dolly_templated"]
    templates: str = Field(description="a copy of open-instruct's instruction_encode_templates.py")


class ShareGPT(Share):
    """Chats that users shared, long ones cut between rounds."""

    format: Literal["sharegpt"]
    html: bool = Field(default=False, description="texts are the HTML of the page, to be turned into Markdown")
    max_tokens: int = Field(default=4096, ge=0, description="of a part; needs [tokenizer]; 0: chats stay whole")
    keep_last_round: bool = Field(
        default=True, description="false: a last round that begins a part is lost, as it was in Tulu's own conversion"
    )
    keep_system: bool = Field(
        default=True, description="false: a chat that begins with a system message is left out, as in Tulu's conversion"
    )


class OpenAssistant(Share):
    """Trees of messages."""

    format: Literal["oasst"]
    paths: Literal["best", "all"] = Field(default="best", description="the path of best quality, or each from the root")


class HardCoded(Share):
    """Questions about the assistant itself, in which names are filled in."""

    format: Literal["hard_coded"]
    model_name: str = Field(description="takes the place of {model_name}")
    developers: str = Field(description="takes the place of {developers}")


class UltraFeedback(Share):
    """Prompts with scored answers, of which a policy makes pairs."""

    format: Literal["ultrafeedback"]
    policy: Literal["huggingfaceh4", "cleaned", "best_worst", "all_pairs", "ranking"] = Field(
        description="huggingfaceh4: best overall score with any other at random; cleaned: best mean of aspects with a "
        "lower one at random, TruthfulQA left out; ranking: one record with all answers"
    )
    score: Literal["overall", "mean_of_aspects"] | None = Field(
        default=None, description="what best_worst, all_pairs and ranking go by; overall if not given"
    )
    min_margin: float = Field(default=0.0, ge=0, description="what the scores of two compared answers differ by")
    tens: Literal["as_published", "repaired"] = Field(
        default="as_published", description="overall scores of 10 that should be 1, before December 2023"
    )
    leave_out: tuple[str, ...] | None = Field(
        default=None, description="prompts of these `source`s; if not given truthful_qa for cleaned, else none"
    )
    seed: int = Field(default=0, ge=0, description="of the answers taken at random")

    @model_validator(mode="after")
    def _score_of_its_own(self) -> Self:
        if self.score is not None and self.policy in ("huggingfaceh4", "cleaned"):
            raise ValueError(f"policy {self.policy} has a score of its own; leave `score` out")
        return self

    @property
    def scores(self) -> Literal["overall", "mean_of_aspects"]:
        """What answers are compared by."""
        return "mean_of_aspects" if self.policy == "cleaned" else self.score or "overall"

    @property
    def left_out(self) -> tuple[str, ...]:
        """The `source`s whose prompts are left out."""
        if self.leave_out is None:
            return ("truthful_qa",) if self.policy == "cleaned" else ()
        return self.leave_out


SourceSection = Annotated[
    Plain | Templated | ShareGPT | OpenAssistant | HardCoded | UltraFeedback, Field(discriminator="format")
]
