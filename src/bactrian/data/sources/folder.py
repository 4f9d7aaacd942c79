"""Which files of a folder are a split of a data set: by the rules of `datasets.load_dataset(folder, split=…)`.

The first of these that finds something:

    README.md's `configs`, of which one must be the default      as the Hub's data sets have it
    data/SPLIT-00000-of-00002.parquet                            as `push_to_hub` writes
    SPLIT-00000-of-00002.parquet                                 as `bactrian data build` writes
    train/…, my-test/…                                           folders, or
    train.jsonl, my_test_1.parquet                               files whose names say train, validation or test
    everything                                                   then it is the split train

A folder of the Hub's cache stands for its snapshot. Where the names say that a part is missing, it is named.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bactrian.data.sources import fields
from bactrian.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
_OTHER_SUFFIXES = (".csv", ".tsv", ".arrow", ".txt", ".zip", ".xlsx", ".parquet.gz", ".csv.gz", ".jsonl.zst")
# What lies beside data: of the Hub, of a library, of ours.
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json", "state.json")
_OURS = ("ledger.json", "contamination.jsonl", "settings.json")
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PART = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})(?P<rest>[^/]*\..*)")


def files(folder: Path, split: str) -> list[Path]:
    """The files of a split, in their order. Raises `DataError`."""
    folder = _snapshot(folder)
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        raise DataError(f"{folder}: written by save_to_disk, as Arrow; write it with to_parquet or to_json instead")
    splits = _configured(folder) or _splits(folder)
    if not splits:
        others = sorted({path.suffix for path in _below(folder, _OTHER_SUFFIXES)})
        found = f"{', '.join(others)} is not read" if others else "no .parquet, .jsonl or .json file is in it"
        raise DataError(f"{folder}: {found}; name a file, or the folder of a data set")
    if split not in splits:
        found = ", ".join(sorted(splits))
        raise DataError(f"{folder}: no split {fields.shown(repr(split))} is in it (found: {found}); set `split` to one")
    chosen = splits[split]
    kinds = {_kind(path) for path in chosen}
    if len(kinds) > 1:
        names = ", ".join(next(path.name for path in chosen if _kind(path) == kind) for kind in sorted(kinds))
        raise DataError(f"{folder}: split {split!r} has files of different kinds ({names}); leave one kind")
    _refuse_missing(chosen)
    return chosen


def _snapshot(folder: Path) -> Path:
    """The newest snapshot of a folder of the Hub's cache; any other folder itself."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    revisions = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
    revision = main.read_text(encoding="utf-8").strip() if main.is_file() else revisions[0] if revisions else ""
    if revision not in revisions or (len(revisions) > 1 and not main.is_file()):
        shown = ", ".join(revisions) or "none"
        raise DataError(f"{folder}: which snapshot is meant cannot be told (found: {shown}); name one: snapshots/…")
    return snapshots / revision


def _below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files at any depth with one of the suffixes, hidden ones left out, in the order of their names."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith((".", "__")) for part in parts)
        if not hidden and path.name.endswith(tuple(suffixes)) and path.name not in _NO_DATA and path.is_file():
            found.append(path)
    return found


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, by their names."""
    every = [path for path in _below(folder, SUFFIXES) if path.name not in _OURS]
    sharded = _by_part([path for path in every if path.parent == folder / "data"])
    if sharded:
        return sharded
    in_folders = _by_keyword(every, lambda path: path.relative_to(folder).parts[:-1], "(.*[-._ 0-9])?{}([-._ 0-9].*)?")
    if in_folders:
        return in_folders
    by_name = _by_keyword(every, lambda path: (path.name,), "(.*[-._ 0-9])?{}[-._ 0-9].*")
    for where in {path.parent for path in every}:
        # `train_prefs` is a split of its own, wherever names count parts.
        for split, paths in _by_part([path for path in every if path.parent == where]).items():
            others = [path for path in by_name.get(split, ()) if path not in paths and _part_of(path) == split]
            if others:
                shown = ", ".join(sorted({str(path.parent.relative_to(folder)) for path in (*paths, *others)}))
                raise DataError(f"{folder}: holds several data sets with a split {split!r} ({shown}); name one of them")
            by_name[split] = paths
    if by_name:
        return by_name
    parquet = [path for path in every if path.suffix == ".parquet"]
    return {"train": parquet or every} if every else {}


def _by_part(paths: Iterable[Path]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for path in paths:
        if (split := _part_of(path)) is not None:
            splits.setdefault(split, []).append(path)
    return splits


def _part_of(path: Path) -> str | None:
    match = _PART.fullmatch(path.name)
    return match["split"] if match else None


def _by_keyword(paths: Sequence[Path], names: Any, pattern: str) -> dict[str, list[Path]]:
    """The files of which some name matches a pattern with a keyword of a split."""
    splits: dict[str, list[Path]] = {}
    for split, keywords in _KEYWORDS.items():
        looked_for = re.compile(pattern.format(f"({'|'.join(keywords)})"))
        found = [path for path in paths if any(looked_for.fullmatch(name) for name in names(path))]
        if found:
            splits[split] = found
    return splits


def _kind(path: Path) -> str:
    return "parquet" if path.suffix == ".parquet" else "json"


def _refuse_missing(paths: Sequence[Path]) -> None:
    """Raise `DataError` where names say that there are more parts than there are."""
    sets: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if match := _PART.fullmatch(path.name):
            sets.setdefault((path.parent, match["split"], int(match["of"])), set()).add(int(match["number"]))
    for (parent, split, of), numbers in sets.items():
        missing = [number for number in range(of) if number not in numbers]
        if missing:
            more = "" if len(missing) == 1 else f" (and {len(missing) - 1} more)"
            raise DataError(
                f"{parent}: {split}-{missing[0]:05}-of-{of:05} is missing{more}, one of {of} parts; fetch it again"
            )


# What a card says


def _configured(folder: Path) -> dict[str, list[Path]]:
    """The files of each split of the default configuration in README.md; nothing where it has none."""
    configs = _configs(folder / "README.md")
    if not configs:
        return {}
    names = [str(config.get("config_name", "default")) for config in configs]
    default = [
        config for config, name in zip(configs, names, strict=True) if config.get("default") or name == "default"
    ]
    if len(configs) > 1 and len(default) != 1:
        raise DataError(
            f"{folder}: its README.md has the configurations {', '.join(names)}; name the folder of one of them"
        )
    config = default[0] if default else configs[0]
    base = folder / str(config.get("data_dir") or "")
    if config.get("data_files") is None:
        return _splits(base)
    splits = {split: _matching(base, patterns) for split, patterns in _patterns(config["data_files"]).items()}
    for split, paths in splits.items():
        if not paths:
            raise DataError(f"{folder}: split {split!r} of its README.md has no file here; fetch the data set again")
    return splits


def _configs(card: Path) -> list[dict[str, Any]]:
    import yaml

    if not card.is_file():
        return []
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card.read_text(encoding="utf-8-sig", errors="replace"), re.DOTALL)
    if head is None:
        return []
    try:
        tree = yaml.safe_load(head[1])
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{card}: not YAML ({fields.shown(str(error), 100)}); correct or remove the file") from None
    configs = tree.get("configs") if isinstance(tree, dict) else None
    listed = [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []
    return [each for each in listed if each.get("data_files") is not None or each.get("data_dir")]


def _patterns(files: Any) -> dict[str, list[str]]:
    """The patterns of each split, from any of the forms that a card may have."""
    if isinstance(files, dict):
        return {str(split): _strings(paths) for split, paths in files.items()}
    if isinstance(files, list) and files and all(isinstance(each, dict) for each in files):
        return {str(each.get("split", "train")): _strings(each.get("path")) for each in files}
    return {"train": _strings(files)}


def _strings(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _matching(base: Path, patterns: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        pattern = f"{pattern}/*" if pattern.endswith("**") else pattern
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise DataError(f"{base}: {fields.shown(pattern)} in its README.md leads out of the folder; correct it")
        found += [path for path in sorted(base.glob(pattern)) if path.is_file() and path.name.endswith(SUFFIXES)]
    return list(dict.fromkeys(found))
