r"""Layouts `alpaca_templated` and `dolly_templated`: rows of `alpaca` and `dolly`, each written into a prompt template.

Tulu's conversion draws one of some weighted templates for each row. They are read from a copy of the file that holds
them: allenai/open-instruct, open_instruct/instruction_encode_templates.py (at 503407ee8, or scripts/data/sft_v1_v2 and
eval in other commits), whose two lists hold `(prompt, answer, weight)`, for rows with an input and without. As there,
texts are stripped first. Which template a row gets is a function of its text, the same in every build.
"""

import ast
import hashlib
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from bactrian.data.records import Conversation
from bactrian.data.sources import fields
from bactrian.errors import DataError

Template = tuple[str, str, float]  # prompt, answer, weight

_LISTS = ("encoding_templates_w_input", "encoding_templates_wo_input")
_KEYS = {
    "alpaca_templated": ("instruction", "input", "output"),
    "dolly_templated": ("instruction", "context", "response"),
}


@dataclass(frozen=True)
class Templates:
    """Templates for rows with an input, and for those without."""

    with_input: list[Template]
    without_input: list[Template]


def read(path: str) -> Templates:
    """The templates in a Python file, which is read and never run. Raises `DataError`."""
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, SyntaxError) as error:
        why = getattr(error, "strerror", None) or fields.shown(str(error))
        raise DataError(f"{path}: cannot read the templates: {why}; check `templates` in the recipe") from None
    found: dict[str, list[Template]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _LISTS:
            found[node.targets[0].id] = _templates(node.value, path)
    missing = [name for name in _LISTS if not found.get(name)]
    if missing:
        raise DataError(f"{path}: no list {missing[0]} in it; give open-instruct's instruction_encode_templates.py")
    return Templates(*(found[name] for name in _LISTS))


def _templates(node: ast.expr, path: str) -> list[Template]:
    try:
        listed = [(str(prompt), str(answer), float(weight)) for prompt, answer, weight in ast.literal_eval(node)]
    except (ValueError, TypeError):
        raise DataError(f"{path}:{node.lineno}: not a list of (prompt, answer, weight); fetch the file again") from None
    return listed


def parse(
    layout: Literal["alpaca_templated", "dolly_templated"], row: dict[str, Any], where: str, templates: Templates
) -> Conversation:
    """A conversation of two turns. Raises `DataError`."""
    instruction_key, input_key, output_key = _KEYS[layout]
    instruction, output = fields.texts(row, (instruction_key, output_key), layout, where)
    given = row.get(input_key)
    extra = ("" if given is None else fields.text(given, input_key, where)).strip()
    prompt, answer = _choose(templates.with_input if extra else templates.without_input, instruction + extra + output)
    question = _fill(prompt, {"instruction": instruction.strip(), "input": extra})
    return fields.exchange(question, _fill(answer, {"output": output.strip()}), where)


def _choose(templates: list[Template], key: str) -> tuple[str, str]:
    sums = list(accumulate(weight for _, _, weight in templates))
    drawn = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / 2**56 * sums[-1]
    prompt, answer, _ = templates[next((i for i, end in enumerate(sums) if drawn < end), len(templates) - 1)]
    return prompt, answer


def _fill(template: str, values: dict[str, str]) -> str:
    # Piece by piece, not one name after the other: a text may hold a name in braces itself.
    filled, rest = "", template
    while rest:
        places = {rest.find("{" + key + "}"): key for key in values if "{" + key + "}" in rest}
        if not places:
            return filled + rest
        place = min(places)
        key = places[place]
        filled, rest = filled + rest[:place] + values[key], rest[place + len(key) + 2 :]
    return filled
