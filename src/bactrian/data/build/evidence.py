"""What the screen `contamination` found, to be looked at: `contamination.jsonl` beside the shards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bactrian.data.build import store
from bactrian.data.build.account import Records
from bactrian.data.build.recipe import Build
from bactrian.data.screens import contamination
from bactrian.data.screens.settings import Contamination
from bactrian.files.atomic import write_jsonl

NAME = "contamination.jsonl"


def write(recipe: Build, records: Sequence[Records], parts: Path, out: Path) -> None:
    """A line for each record that the ledger counts as contaminated: `where`, its `id`, the `set`, the row of the
    `question`, and the `span` of words that both hold. Nothing is written where no screen looks for it.
    """
    # Dropped somewhere in many processes; the few are found again here.
    screens = [contamination.Screen(section) for section in recipe.screens if isinstance(section, Contamination)]
    if not screens:
        return
    reader = store.Reader(parts)
    rows = []
    for each in records:
        marked = [number for number, name in enumerate(each.names) if name.startswith("contaminated_")]
        seen = each.times > 0 if recipe.mixture.draw == "before_screens" else np.ones(len(each.times), bool)
        for index in np.flatnonzero(np.isin(each.reasons, marked) & seen).tolist():
            record = reader.record(*each.places[index].tolist())
            match = next(match for screen in screens if (match := screen.find(record)) is not None)
            rows.append({"where": record.where, "id": record.id, **match._asdict()})
    reader.close()
    write_jsonl(out / NAME, rows)
