"""Laws: a folder's split is the files that `datasets.load_dataset` takes, and what is missing or unclear is named."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bactrian.data.sources import folder, reader
from bactrian.errors import DataError
from bactrian.recipe import File


def lay(root: Path, *names: str) -> Path:
    """Files, each with two rows that say its name."""
    import pyarrow
    from pyarrow import parquet

    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": f"{name} {number}"} for number in range(2)]
        if path.suffix == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif path.suffix in (".jsonl", ".json"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text("")
    return root


def read(root: Path, split: str) -> list[str]:
    return [row["text"] for _, row in reader.read(File(path=str(root), split=split))]


def expected(names: Sequence[str]) -> list[str]:
    return [f"{name} {number}" for name in names for number in range(2)]


LAYOUTS = {
    "shards": ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
    "the hub's": ("README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001-abcdef.parquet"),
    "named splits": ("data/train_sft-00000-of-00001.parquet", "data/train_prefs-00000-of-00001.parquet"),
    "two rooms": ("data/train-00000-of-00001.parquet", "half/train-00000-of-00002.parquet", "run.sh"),
    "files": ("train.jsonl", "validation.jsonl", "test.jsonl"),
    "kin": ("my-training-1.jsonl", "my-training-2.jsonl", "x_dev.jsonl", "eval.jsonl"),
    "folders": ("train/a.jsonl", "train/b.jsonl", "testing/a.jsonl", "train.jsonl"),
    "deep": ("en/train/a.jsonl", "en/val_1/b.jsonl"),
    "one split": ("a.jsonl", "b.jsonl"),
    "parquet": ("b.parquet", "a.parquet"),
    "hidden": (".cache/train.jsonl", "train.jsonl", "__pycache__/test.jsonl"),
}


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_a_split_is_what_load_dataset_reads(tmp_path: Path, names: tuple[str, ...]):
    datasets = pytest.importorskip("datasets")
    root = lay(tmp_path / "set", *names)
    found = datasets.load_dataset_builder(str(root), cache_dir=str(tmp_path / "cache")).config.data_files
    assert found
    for split, paths in found.items():
        theirs = [str(Path(path).relative_to(root.resolve())) for path in paths]
        assert read(root, str(split)) == expected(theirs)
    with pytest.raises(DataError, match=r"no split 'nothing' is in it \(found: .*train"):
        read(root, "nothing")


def card(root: Path, *configs: str) -> Path:
    (root / "README.md").write_text("---\nlicense: mit\nconfigs:\n" + "".join(configs) + "---\n# A set\n")
    return root


def config(name: str, where: str, more: str = "") -> str:
    return f"- config_name: {name}\n{more}  data_files:\n  - split: train\n    path: {where}/train-*\n"


def test_a_card_s_configurations(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    root = lay(tmp_path, "main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet")
    card(root, config("main", "main"), config("socratic", "socratic"))
    with pytest.raises(DataError, match="configurations main, socratic; name the folder of one"):
        read(root, "train")
    assert [path.parent.name for path in folder.files(root / "main", "train")] == ["main"]
    card(root, config("main", "main", "  default: true\n"), config("socratic", "socratic"))
    theirs = datasets.load_dataset_builder(str(root), cache_dir=str(tmp_path / "cache")).config.data_files["train"]
    assert folder.files(root, "train") == [Path(path) for path in theirs]
    card(root, config("default", "gone"))
    with pytest.raises(DataError, match=r"split 'train' of its README.md has no file here"):
        read(root, "train")
    card(root, "- : [\n")
    with pytest.raises(DataError, match="not YAML"):
        read(root, "train")


def test_without_a_card_two_data_sets_are_not_one(tmp_path: Path):
    root = lay(tmp_path, "main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"several data sets with a split 'train' \(main, socratic\); name one"):
        read(root, "train")


def test_a_missing_part_is_named(tmp_path: Path):
    lay(tmp_path, "train-00000-of-00003.parquet", "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"train-00001-of-00003 is missing \(and 1 more\), one of 3 parts; fetch it"):
        read(tmp_path, "train")
    assert read(tmp_path, "test") == expected(["test-00000-of-00001.parquet"])


def test_a_folder_of_the_hub_s_cache_is_its_snapshot(tmp_path: Path):
    root = tmp_path / "datasets--org--set"
    lay(root / "snapshots" / "abc" / "data", "train-00000-of-00001.parquet")
    assert read(root, "train") == expected(["train-00000-of-00001.parquet"])
    lay(root / "snapshots" / "def" / "data", "train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="which snapshot is meant cannot be told"):
        read(root, "train")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("def")
    assert read(root, "test") == expected(["test-00000-of-00001.parquet"])
    assert read(root / "snapshots" / "def", "test") == read(root, "test")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "no .parquet, .jsonl or .json file is in it"),
        (("train.csv",), ".csv is not read"),
        (("train.jsonl", "train.parquet"), "split 'train' has files of different kinds (train.jsonl, train.parquet)"),
        (("dataset_dict.json", "train/data-00000-of-00001.arrow"), "written by save_to_disk"),
    ],
)
def test_what_is_no_data_set_is_one_line(tmp_path: Path, names: tuple[str, ...], expected: str):
    with pytest.raises(DataError) as caught:
        read(lay(tmp_path, *names), "train")
    assert str(caught.value).startswith(f"{tmp_path}: {expected}")


def test_one_file_has_no_splits(tmp_path: Path):
    path = lay(tmp_path, "a.jsonl") / "a.jsonl"
    assert read(path, "train") == expected(["a.jsonl"])
    with pytest.raises(DataError, match="split is 'test', and one file has no splits"):
        read(path, "test")


def test_a_change_of_another_split_is_no_change(tmp_path: Path):
    lay(tmp_path, "train.jsonl", "test.jsonl")
    before = reader.fingerprint(File(path=str(tmp_path)))
    lay(tmp_path, "test.jsonl")
    (tmp_path / "test.jsonl").write_text("{}\n")
    assert reader.fingerprint(File(path=str(tmp_path))) == before
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert reader.fingerprint(File(path=str(tmp_path))) != before
