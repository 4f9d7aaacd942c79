"""Laws: what is wrong with a recipe is one line that names the key; what is right means the same from anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from bactrian import recipe as recipes
from bactrian.errors import RecipeError, line

GOOD = """
name = "tiny"
[model]
source = "base"
[sft]
batch_size = 2
max_length = 16
row_length = 32
optimizer = { learning_rate = 2e-5 }
data = [{ path = "chats.jsonl", format = "messages" }, { path = "hf:org/set@v1", format = "messages" }]
[dpo]
batch_size = 2
max_length = 16
row_length = 32
optimizer = { learning_rate = 5e-7 }
data = [{ path = "../pairs.jsonl", format = "preference" }]
[evaluation]
prompts = "prompts.jsonl"
rules = [{ name = "pirate", any_of = ["arr"] }]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipes" / "tiny.toml"
    path.parent.mkdir()
    path.write_text(GOOD)
    return path


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipes.load(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # Unknown keys
        ("dpo.bta=0.2", "dpo.bta is not a setting; did you mean dpo.beta?"),
        ("sft.optimizer.epsilom=1e-8", "sft.optimizer.epsilom is not a setting; did you mean sft.optimizer.epsilon?"),
        ("sft.data.0.formt=hh", "sft.data.0.formt is not a setting; did you mean sft.data.0.format?"),
        ("evaluation.rules.1.nme=x", "evaluation.rules.1.nme is not a setting; did you mean evaluation.rules.1.name?"),
        ("sft.beta=0.1", "sft.beta is not a setting; the settings there are data, heldout, epochs"),
        ("zzz=1", "zzz is not a setting; the settings there are name, seed, model, sft, dpo"),
        # Wrong types and values
        ("dpo.beta=high", "dpo.beta is 'high': input should be a valid number"),
        ("sft.epochs=1.0", "sft.epochs is 1.0: input should be a valid integer"),
        ("sft.epochs=true", "sft.epochs is True: input should be a valid integer"),
        ("name=5", "name is 5: input should be a valid string"),
        ("dpo.beta=inf", "dpo.beta is inf: input should be a finite number"),
        ("dpo.beta=nan", "dpo.beta is nan: input should be a finite number"),
        ("dpo.beta=0", "dpo.beta is 0: input should be greater than 0"),
        ("dpo=5", "dpo is 5: input should be an object"),
        ("sft.data=5", "sft.data is 5: input should be a valid array"),
        ("sft.data=chats.jsonl", "sft.data is 'chats.jsonl': input should be a valid array"),
        ("sft.data=[]", "sft.data is []: "),
        ("sft.data=[5]", "sft.data.0 is 5: input should be an object"),
        ("sft.data.0.path=5", "sft.data.0.path is 5: input should be a valid string"),
        (
            "sft.data.0.format=chat",
            "sft.data.0.format is 'chat': input should be 'messages', 'preference', 'hh', 'alpaca', 'prompt",
        ),
        ("model.compute_dtype=float16", "model.compute_dtype is 'float16': input should be 'float32' or 'bfloat16'"),
        # Contradictions
        ("sft.optimizer={learning_rate=1, warmup_ratio=0.1, warmup_steps=5}", "sft.optimizer: give warmup_ratio or"),
        ("dpo.keep_best=true", "dpo: keep_best and patience need heldout data and evaluate_every"),
        ("sft.mean_over=3", "sft: mean_over is 3, which does not divide batch_size 2"),
        ("evaluation.rules.0.column=words", "evaluation.rules.0: give any_of or column"),
        # Overrides that lead nowhere
        ("dpo.beta", "dpo.beta: an override is key=value"),
        ("=5", "=5: an override is key=value"),
        ("sft.data.5.path=x", "sft.data.5.path: 5 does not lead to a section"),
        ("sft.data.9=x", "sft.data.9=x: 9 is not an index of a list with 2 entries"),
        ("sft.data.²=x", "sft.data.²=x: ² is not an index"),
        ("sft.epochs.x=1", "sft.epochs is {'x': 1}: input should be a valid integer"),
        ("name.x=1", "name.x=1: name is a value, not a section"),
        ("name.x.y=1", "name.x.y: x does not lead to a section"),
        ("sft.data.1.format.x=1", "sft.data.1.format.x=1: sft.data.1.format is a value, not a section"),
        ("model.source=~nobody-by-that-name/x", "source = '~nobody-by-that-name/x' is not a path"),
    ],
)
def test_a_fault_is_one_line_with_its_key(file: Path, override: str, expected: str):
    message = refusal(file, override)
    assert message.startswith(expected)
    assert "more)" not in message or override.startswith("evaluation.rules.1")


def test_a_missing_key_and_the_number_of_other_faults_are_named(file: Path):
    file.write_text('name = "tiny"\n[model]\nsource = "base"\n[sft]\n')
    assert refusal(file) == "sft.data is missing (and 4 more)"
    file.write_text('name = "tiny"\n[model]\nsource = "base"\n')
    assert refusal(file) == "a recipe needs a section [sft] or [dpo]"


def test_what_is_not_a_recipe_file_is_one_line(file: Path, tmp_path: Path):
    assert refusal(tmp_path / "none.toml").endswith("cannot read the recipe: No such file or directory")
    assert refusal(tmp_path).endswith("cannot read the recipe: Is a directory")
    file.write_text("name = [")
    assert refusal(file).startswith("not a TOML file")
    file.write_bytes(b'name = "\xff"')
    assert refusal(file).startswith("not a TOML file")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=" + "[" * 500 + "]" * 500, "seed: not a value"),
        ("seed=" + "{a=" * 5000 + "1" + "}" * 5000, "seed: not a value"),
        ("a." * 3000 + "b=1", "a.a.a."),
        ("seed=" + "9" * 5000, "seed: not a value: a number of thousands of digits"),
        ("seed=0x" + "f" * 5000, "seed: not a value that can be used: a whole number of more than 256 bits"),
        ("seed=" + "9" * 60, "seed is 9999"),
        ("sft.epochs=1e300", "sft.epochs is 1e+300: input should be a valid integer"),
        ("sft.epochs=1000000", "sft.epochs is 1000000: input should be less than or equal to 10000"),
        ("sft.batch_size=1000000000000000000", "sft.batch_size is 1000000000000000000: input should be less than"),
        ("sft.row_length=1000000000000", "sft.row_length is 1000000000000: input should be less than"),
        ("sft.microbatch_rows=1000000000", "sft.microbatch_rows is 1000000000: input should be less than"),
        ("sft.optimizer.learning_rate=1e300", "sft.optimizer.learning_rate is 1e+300: input should be less than"),
        ("sft.optimizer.learning_rate=inf", "sft.optimizer.learning_rate is"),
        ("sft.optimizer.epsilon=nan", "sft.optimizer.epsilon is"),
        ("sft.epochs='3'", "sft.epochs is '3': input should be a valid integer"),
        ("sft.epochs=3.0", "sft.epochs is 3.0: input should be a valid integer"),
        ("sft.keep_best='false'", "sft.keep_best is 'false': input should be a valid boolean"),
        ("sft.keep_best=0", "sft.keep_best is 0: input should be a valid boolean"),
        ("name=2026-12-01", "2026-12-01 is a date or a time, and no setting is"),
        ("name=" + "n" * 201, "name is "),
        ("mesh.fsdp=10000000000", "mesh.fsdp is 10000000000: input should be less than"),
        ("evaluation.max_tokens=10000000000", "evaluation.max_tokens is 10000000000: input should be less than"),
    ],
)
def test_what_is_nested_huge_or_of_another_type_is_one_line(file: Path, override: str, expected: str):
    with pytest.raises(RecipeError) as raised:
        recipes.load(file, [override])
    said = line(raised.value)
    assert said.startswith(("error: " + expected, f"error: {file}: {expected}")), said
    assert len(said) <= 400 and "\n" not in said


@pytest.mark.parametrize(
    "more",
    [
        "x = " + "[" * 500 + "]" * 500,
        "x = " + "{a=" * 500 + "1" + "}" * 500,
        "a." * 5000 + "b = 1",
        "x = 0x" + "f" * 5000,
    ],
    ids=["arrays", "tables", "key", "number"],
)
def test_a_recipe_file_is_bounded(file: Path, more: str):
    file.write_text(f"{more}\n{file.read_text()}")
    with pytest.raises(RecipeError) as raised:
        recipes.load(file)
    assert line(raised.value).startswith(f"error: {file}: not a TOML file")


def test_a_list_of_a_million_entries_is_refused_in_a_line(file: Path):
    with pytest.raises(RecipeError) as raised:
        recipes.load(file, ["evaluation.rules=[" + "0," * 100_000 + "]"])
    assert len(line(raised.value)) <= 400


def test_overrides_reach_every_kind_of_place(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    overrides = (
        "dpo.beta=0.2",
        "dpo.optimizer.learning_rate=3e-7",
        "sft.data.1.limit=10",
        "sft.data.2.path=more.jsonl",
        "sft.data.2.format=hh",
        'dpo.data=[{path="hf:a/b", format="preference"}]',
        "dpo.heldout.0.path=held.jsonl",
        "dpo.heldout.0.format=preference",
        "tracking.wandb=my project = mine",
        "model.compute_dtype=float32",
        "seed=1",
        "seed=2",
    )
    recipe = recipes.load(file, overrides)
    assert recipe.sft is not None and recipe.dpo is not None
    assert (recipe.dpo.beta, recipe.dpo.optimizer.learning_rate, recipe.seed) == (0.2, 3e-7, 2)
    assert [source.limit for source in recipe.sft.data] == [None, 10, None]
    assert [source.path for source in recipe.dpo.data] == ["hf:a/b"]
    assert recipe.tracking.wandb == "my project = mine"
    # A path in an override is relative to the working folder, one in the file to the file's.
    assert recipe.sft.data[2].path == str(tmp_path / "more.jsonl")
    assert recipe.dpo.heldout[0].path == str(tmp_path / "held.jsonl")


def test_a_small_float_is_a_number_and_an_integer_will_do_for_one(file: Path):
    recipe = recipes.load(file, ["sft.optimizer.learning_rate=1"])
    assert recipe.sft is not None and recipe.dpo is not None
    assert recipe.dpo.optimizer.learning_rate == 5e-7
    assert recipe.sft.optimizer.learning_rate == 1.0


def test_paths_are_relative_to_the_recipe_s_folder(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(file.parent)
    recipe = recipes.load(Path("tiny.toml"))
    assert recipe.sft is not None and recipe.dpo is not None
    assert [source.path for source in recipe.sft.data] == [str(file.parent / "chats.jsonl"), "hf:org/set@v1"]
    assert recipe.dpo.data[0].path == str(file.parent.parent / "pairs.jsonl")
    assert recipe.model.source == str(file.parent / "base")
    assert recipe.evaluation.prompts == str(file.parent / "prompts.jsonl")
    for source in ("hf:org/model", "pypi:wheel==1.0", "/models/base"):
        assert recipes.load(file, [f"model.source={source}"]).model.source == source
    monkeypatch.setenv("HOME", "/home/me")
    assert recipes.load(file, ["model.source=~/base"]).model.source == "/home/me/base"


def test_saved_as_json_it_is_the_same_recipe(file: Path):
    recipe = recipes.load(file, ["dpo.optimizer.clip_norm=0.1", "sft.heldout.0.path=a", "sft.heldout.0.format=hh"])
    saved = json.loads(json.dumps(recipe.model_dump(mode="json")))
    assert recipes.parse(saved, "recipe.json") == recipe
    assert recipes.differences(recipe, recipes.parse(saved, "recipe.json")) == []


def test_differences_name_every_key_that_differs(file: Path):
    old = recipes.load(file)
    overrides = ["dpo.beta=0.2", "sft.data.0.limit=5", "dpo.heldout.0.path=/h.jsonl", "dpo.heldout.0.format=hh"]
    changed = recipes.differences(old, recipes.load(file, overrides))
    assert "dpo.beta: 0.1 -> 0.2" in changed
    assert "sft.data.0.limit: None -> 5" in changed
    assert "dpo.heldout.0.path: None -> /h.jsonl" in changed
    sections = {change.partition(":")[0].rpartition(".")[0] for change in changed}
    assert sections == {"dpo", "sft.data.0", "dpo.heldout.0"}


def test_stages_come_in_the_order_they_run(file: Path):
    assert list(recipes.load(file).stages()) == ["sft", "dpo"]
    file.write_text(GOOD.replace("[sft]", "[later]").replace("[dpo]", "[sft]").replace("[later]", "[dpo]"))
    assert list(recipes.load(file).stages()) == ["sft", "dpo"]


def test_a_recipe_cannot_change(file: Path):
    recipe = recipes.load(file)
    sections: list[Any] = [recipe, recipe.model, recipe.sft, recipe.dpo, recipe.evaluation, recipe.export]
    for section in sections:
        name = next(iter(type(section).model_fields))
        with pytest.raises(ValueError, match="frozen"):
            setattr(section, name, None)


def test_a_link_keeps_the_name_that_says_what_the_file_is(file: Path):
    blob = file.parent / "blobs" / "0a1b2c"
    blob.parent.mkdir()
    blob.write_text("{}\n")
    (file.parent / "chats.jsonl").symlink_to(blob)
    sft = recipes.load(file).sft
    assert sft is not None and sft.data[0].path == str(file.parent.resolve() / "chats.jsonl")
