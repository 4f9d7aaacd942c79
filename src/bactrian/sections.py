"""What every recipe file has in common: typed, frozen sections of a TOML file, `key=value` changes to it, and one line
about whatever is wrong, with the nearest known name.
"""

import difflib
import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from bactrian.errors import RecipeError
from bactrian.files import documents

_LISTS = ("data", "heldout", "rules", "sources", "screens")  # settings that are lists of sections


class Section(BaseModel):
    """Frozen, and strict: no key beyond those declared, no value quietly turned into another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Whole = TypeVar("Whole", bound=Section)


def read(path: Path, overrides: Sequence[str], resolve_paths: Callable[[dict[str, Any], Path], None]) -> dict[str, Any]:
    """The tree of a recipe file with its overrides. `resolve_paths` makes a tree's paths absolute: those of the file
    are relative to its folder, those of overrides to the working folder. Raises `RecipeError`.
    """
    tree = documents.read_toml(path, RecipeError, "the recipe")
    resolve_paths(tree, path.resolve().parent)
    for override in overrides:
        _override(tree, override)
    resolve_paths(tree, Path.cwd())
    return tree


def validate(kind: type[Whole], tree: dict[str, Any], where: str) -> Whole:
    """A recipe of some kind from its tree of plain values; `where` names the file. Raises `RecipeError`."""
    try:
        return kind.model_validate_json(json.dumps(tree, default=_refuse))
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error, kind)}") from None


def _refuse(value: Any) -> NoReturn:
    """A date or a time of day, which TOML has and no setting is."""
    raise RecipeError(f"{value} is a date or a time, and no setting is; put text in quotes")


def resolve(section: Any, key: str, folder: Path) -> None:
    """Make the path under a key absolute, in place; names of the Hub and of packages stay. Raises `RecipeError`."""
    value = section.get(key) if isinstance(section, dict) else None
    if isinstance(value, str) and not value.startswith(("hf:", "pypi:")):
        try:
            path = folder / Path(value).expanduser()
            whole = path.resolve()
            # A link's own name says what the file is: in the Hub's cache what it leads to is a hash.
            renamed = path.is_file() and whole.suffix != path.suffix
            section[key] = str(path.parent.resolve() / path.name if renamed else whole)
        except (RuntimeError, ValueError) as error:  # ~nobody/rows.jsonl, or a NUL
            raise RecipeError(f"{key} = {value!r} is not a path: {error}") from None


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override}: an override is key=value, for example dpo.beta=0.2")
    value = _value(key, text)
    *path, last = key.split(".")
    if len(path) > documents.DEEPEST:
        raise RecipeError(f"{key}: an override of {len(path) + 1:,} names; sections are not nested so deep")
    node: Any = tree
    for part in path:
        node = _child(node, part, key)
    if isinstance(node, list):
        if not last.isdecimal() or int(last) >= len(node):
            raise RecipeError(f"{override}: {last} is not an index of a list with {len(node)} entries")
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"{override}: {'.'.join(path)} is a value, not a section")


def _value(key: str, text: str) -> Any:
    """An override's value: TOML, or plain text where it is not."""
    document = f"value = {text}"
    try:
        is_toml = len(tomllib.loads(document)) == 1  # what follows a line end would be another setting
    except tomllib.TOMLDecodeError:
        is_toml = False
    except (ValueError, RecursionError):
        is_toml = True  # beyond its limits, as the next line says
    if is_toml:
        return documents.parse_toml(document, key, RecipeError, "a value")["value"]
    if not documents.is_text(text):
        raise RecipeError(f"{key}: not UTF-8")
    return text


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list) and part.isdecimal() and int(part) <= len(node):
        if int(part) == len(node):
            node.append({})
        return node[int(part)]
    if isinstance(node, dict):
        # An index makes a list, so that `sft.data.0.path=…` works where the recipe names no data.
        return node.setdefault(part, [] if part in _LISTS else {})
    raise RecipeError(f"{key}: {part} does not lead to a section of the recipe")


def _explain(error: ValidationError, kind: type[Section]) -> str:
    """One thing that is wrong, in a line: a name that is not a setting, which explains one that is missing, or the
    first thing found; what is wrong further down often follows from it."""
    # A list with a faulty entry counts as too short as well.
    errors = [each for each in error.errors() if each["type"] != "too_short"] or error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    key = ".".join(map(str, _places(kind, first["loc"])[0]))
    more = "" if len(errors) == 1 else f" (and {len(errors) - 1} more)"
    if first["type"] == "extra_forbidden":
        return f"{key} is not a setting{_nearest(kind, first['loc'])}{more}"
    if first["type"] == "missing":
        return f"{key} is missing{more}"
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{key}.{_no_kind(first.get('ctx', {}))}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    return f"{key} is {first['input']!r}: {message[0].lower() + message[1:]}{more}"


def _no_kind(context: dict[str, Any]) -> str:
    """What is wrong with the setting that tells kinds of sections apart."""
    setting = context["discriminator"].strip("'")
    if "tag" not in context:
        return f"{setting} is missing"
    known = [name.strip("' ") for name in context["expected_tags"].split(",")]
    close = difflib.get_close_matches(context["tag"], known, n=1, cutoff=0.6)
    advice = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    return f"{setting} is {context['tag']!r}; {advice}"


def _nearest(kind: type[Section], location: Sequence[int | str]) -> str:
    places, sections = _places(kind, location[:-1])
    names = [name for section in sections for name in section.model_fields]
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {'.'.join(map(str, [*places, close[0]]))}?"
    return f"; the settings there are {', '.join(names)}"


def _places(kind: type[Section], location: Sequence[int | str]) -> tuple[list[int | str], list[type[Section]]]:
    """A location as a person writes it, and the sections it leads to.

    Of a section that is one of several kinds pydantic says which: `screens.0.substrings.any_of` is `screens.0.any_of`.
    """
    places: list[int | str] = []
    sections = [kind]
    for part in location:
        chosen = [section for section in sections if part in section.model_fields]
        if isinstance(part, int) or chosen or len(sections) < 2:
            places.append(part)
        if isinstance(part, str) and chosen:
            sections = [found for section in chosen for found in _sections_of(section.model_fields[part].annotation)]
        elif isinstance(part, str):
            sections = [section for section in sections if _is_kind(section, part)] or sections
    return places, sections


def _is_kind(section: type[Section], tag: str) -> bool:
    return any(tag in _literals(field.annotation) for field in section.model_fields.values())


def _literals(annotation: Any) -> list[str]:
    """The values that a literal, or a union of literals, allows."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in _literals(part)]


def _sections_of(annotation: Any) -> list[type[Section]]:
    """The section types inside `X`, `X | None`, `X | Y` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections_of(part)]
