"""Laws: every data recipe that is shipped can be read, and says of its sources what their publishers say."""

from pathlib import Path

import pytest

from bactrian.data.build import recipe as recipes
from bactrian.data.sources import hard_coded, reader
from bactrian.data.sources.kinds import HardCoded, ShareGPT
from bactrian.recipe import File

FOLDER = Path(__file__).parents[2] / "recipes" / "data"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_read(path: Path):
    made = recipes.load(path)
    assert made.name == path.stem
    local = [Path(source.path) for source in made.sources if not source.path.startswith("hf:")]
    assert all(FOLDER in each.parents for each in local), "paths are relative to the recipe"


def test_tulu_v2_asks_for_the_published_counts():
    made = recipes.load(FOLDER / "tulu-v2.toml")
    drawn = {source.name: 0 for source in made.sources}
    for source in made.sources:
        drawn[source.name] += source.count or 0
    # The others are taken whole.
    assert {name: count for name, count in drawn.items() if count} == {
        "cot": 50_000,
        "gpt4_alpaca": 20_000,
        "wizardlm": 30_000,
        "open_orca": 30_000,
    }
    assert made.seed == 42 and made.mixture.draw == "before_screens"
    assert [screen.kind for screen in made.screens] == ["substrings"]
    assert {source.max_tokens for source in made.sources if isinstance(source, ShareGPT)} == {4096}


def test_identity_questions_are_140_rows_with_every_name_filled_in():
    made = recipes.load(FOLDER / "tulu-v2.toml")
    [source] = [source for source in made.sources if isinstance(source, HardCoded)]
    rows = list(reader.read(File(path=source.path)))
    assert source.epochs is not None and len(rows) * source.epochs == 140 and not source.screened
    names = {"model_name": source.model_name, "developers": source.developers}
    for where, row in rows:
        record = hard_coded.parse(row, where, names)
        assert not any("{" in turn.content for turn in record.messages)
