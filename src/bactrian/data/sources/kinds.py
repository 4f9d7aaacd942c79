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


class OpenAssistant(Share):
    """Trees of messages."""

    format: Literal["oasst"]
    paths: Literal["best", "all"] = Field(default="best", description="the path of best quality, or each from the root")


class HardCoded(Share):
    """Questions about the assistant itself, in which names are filled in."""

    format: Literal["hard_coded"]
    model_name: str = Field(description="takes the place of {model_name}")
    developers: str = Field(description="takes the place of {developers}")


SourceSection = Annotated[Plain | Templated | ShareGPT | OpenAssistant | HardCoded, Field(discriminator="format")]
