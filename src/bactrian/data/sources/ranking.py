"""Layout `ranking`: k answers to one prompt, best first, as `bactrian data build` and `data sample` write them.

    {"ranked": [[user, assistant], [user, assistant], …], "scores": [9.0, 4.5, …]}

Each of `ranked` is a whole conversation; `scores` may be missing.
"""

from typing import Any

from bactrian.data.records import Preference
from bactrian.data.sources import fields, messages
from bactrian.errors import DataError


def parse(row: dict[str, Any], where: str) -> Preference:
    """A ranking of two answers or more. Raises `DataError`."""
    ranked = fields.required(row, "ranked", "ranking", where)
    if not isinstance(ranked, list) or len(ranked) < 2:
        found = f"{len(ranked)} of them" if isinstance(ranked, list) else fields.kind(ranked)
        raise DataError(f"{where}: ranked is not two conversations or more ({found}); repair or remove the row")
    branches = tuple(messages.parse_list(turns, f"ranked[{index}]", where) for index, turns in enumerate(ranked))
    for index, turns in enumerate(branches):
        if turns[-1].role != "assistant":
            raise DataError(f"{where}: ranked[{index}] does not end in an assistant's turn; repair or remove the row")
    listed = row.get("scores") or [None] * len(branches)
    if not isinstance(listed, list) or len(listed) != len(branches):
        raise DataError(f"{where}: scores is not a list of {len(branches)} numbers; repair or remove the row")
    given = {f"scores[{index}]": score for index, score in enumerate(listed)}
    name, dataset = fields.name(row, where, "id", "prompt_id"), fields.name(row, where, "dataset")
    return Preference(branches, where, name, dataset, fields.scores(given, list(given), where))
