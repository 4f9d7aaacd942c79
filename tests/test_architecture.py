"""The floor plan holds: who may import whom, how large a file may grow, how light the command starts.

Imports are read from the source text, those inside functions too: a wall is a wall wherever the door is.
"""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "bactrian"

# A module imports from its own line or from those above. A name stands for all that is inside it, unless what is
# inside has a place of its own.
ORDER = [
    "errors interrupts cli.options",
    "children masking process",
    "files",
    "cluster notices ends",
    "hosts",
    "data.records sections recipe changes run progress tracking markdown gguf_file",
    "data.plain_text data.words data.tokenizer data.continuation data.tokenizer_schema data.tokenizer_folder "
    "data.gguf_tokenizer data.chat data.tulu data.served data.bounded_template data.template data.binarize "
    "data.sources data.screen data.screens",
    "model.hub model.attention model.hf_schema model.safetensors_file data.sharing",
    "lineage",
    "data.workers data.tokenizing data.corpus data.packing model.prefix model.shards",
    "data.questions model.llama model.logprobs model.likelihood model.rounding train.moments",
    "model.gguf_weights model.hf_config model.mesh",
    "model.tensors",
    "data.mixture model.weights model.lora model.decoding train.optimizer",
    "data.build",
    "train.trainer train.checkpoint inference",
    "train.sft train.preference train.reference train.scores train.gates inference.server assistant",
    "scorer evaluate.protocol",
    "respond",
    "evaluate card report evidence prepare look stage verbs on_policy build_verb",
    "pipeline evaluating benchmarking",
    "plan",
    "cli.benchmarks cli.plan",
    "cli.evaluate",
    "cli __main__",
]
RANKS = {name: rank for rank, line in enumerate(ORDER, 1) for name in line.split()}

# room, what it never imports, itself or through others of the package
WALLS = [
    ("data", "jax"),
    ("model", "bactrian.data"),
    ("model", "bactrian.train"),
    ("inference", "bactrian.train"),
    ("evaluate", "bactrian.model"),
    ("train.trainer", "bactrian.train.sft"),
    ("train.trainer", "bactrian.train.preference"),
    ("train.trainer", "bactrian.train.reference"),
]

# Every other room is given its own section. A card, a report and a tracker show the settings of the run as a whole.
SEE_THE_WHOLE_RECIPE = {"recipe", "changes", "run", "card", "report", "tracking", "pipeline", "plan", "cli"}
WHOLE_RECIPE = {"Recipe", "load", "parse"}

LONGEST_FILE = 420
NAMELESS = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}
HEAVY = {"jax", "jaxlib", "numpy", "pyarrow", "datasets", "torch", "transformers", "matplotlib", "orbax", "optax"}

# Where a package came from, and where a file lay on the machine of whoever wrote it, is no part of the project.
# (Written so that they do not match themselves.)
FOREIGN = re.compile(
    r"pypi[.]org|pythonhosted[.]org|npmjs[.]org|download[.]pytorch[.]org|(?<![\w.-])/(?:work|root|opt/wheels|tmp/w)/"
)


class Module(NamedTuple):
    """One file of the package, by its name without `bactrian.` (the package itself is the empty name)."""

    name: str
    path: Path
    tree: ast.Module


def _read(path: Path) -> Module:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))


MODULES = {module.name: module for module in map(_read, sorted(PACKAGE.rglob("*.py")))}


def imports(module: Module) -> set[str]:
    """Full dotted names of the modules that `module` imports, wherever in it the statement stands."""
    names: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from bactrian.model import attention` is an import of the module, where there is one.
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inside if name.removeprefix("bactrian.") in MODULES}
            names |= modules if modules == inside else modules | {node.module}
    return names


def own_imports(module: Module) -> set[str]:
    """What `module` imports of the package, by names without `bactrian.`."""
    own = {_own(name) for name in imports(module) if is_within(name, "bactrian")}
    return (own & set(MODULES)) - {module.name}


def _own(name: str) -> str:
    return name.removeprefix("bactrian").removeprefix(".")


def reaches(start: Module) -> dict[str, str]:
    """Everything that `start` may import, itself or through others of the package, with the path that leads there."""
    found: dict[str, str] = {}
    waiting = [(start, start.name)]
    while waiting:
        module, path = waiting.pop()
        rooms = {f"bactrian.{parent}" for parent in MODULES if parent and module.name.startswith(f"{parent}.")}
        for name in (imports(module) | rooms) - set(found):
            found[name] = f"{path} -> {name}"
            if is_within(name, "bactrian") and _own(name) in MODULES:
                waiting.append((MODULES[_own(name)], found[name]))
    return found


def is_within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def place(name: str) -> int | None:
    """The line of ORDER that a module stands on, by its longest name there."""
    matches = [known for known in RANKS if is_within(name, known)]
    return RANKS[max(matches, key=len)] if matches else None


def test_every_module_has_a_place_in_the_order():
    # A room's __init__ says what the room is, and imports nothing of the package.
    placeless = [name for name in MODULES if place(name) is None]
    missing = [name for name in placeless if MODULES[name].path.name != "__init__.py" or own_imports(MODULES[name])]
    assert not missing, "give them a line in ORDER"


def test_rooms_import_in_one_direction():
    edges = [(name, other) for name, module in MODULES.items() for other in own_imports(module)]
    upward = [f"{name} imports {other}" for name, other in edges if (place(other) or 0) > (place(name) or len(ORDER))]
    assert not upward, "what they import stands after them"


@pytest.mark.parametrize(("room", "forbidden"), WALLS)
def test_walls_stand(room: str, forbidden: str):
    inside = [module for name, module in MODULES.items() if is_within(name, room)]
    through = [path for module in inside for name, path in reaches(module).items() if is_within(name, forbidden)]
    assert not through, f"{room} never imports {forbidden}"


def test_no_import_cycle():
    try:
        TopologicalSorter({name: own_imports(module) for name, module in MODULES.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_only_those_who_compose_see_a_whole_recipe():
    others = [module for name, module in MODULES.items() if name.split(".")[0] not in SEE_THE_WHOLE_RECIPE]
    taken = {module.name: WHOLE_RECIPE & taken_of(module, "recipe") for module in others}
    assert not {name: whole for name, whole in taken.items() if whole}, "hand them their own sections"


def taken_of(module: Module, other: str) -> set[str]:
    """The names that `module` takes of another module of the package, by `from` or as attributes."""
    taken: set[str] = set()
    called: set[str] = set()
    package, _, last = f"bactrian.{other}".rpartition(".")
    nodes = list(ast.walk(module.tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == f"bactrian.{other}":
            taken |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            called |= {alias.asname or alias.name for alias in node.names if alias.name == last}
    attributes = (node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return taken | {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id in called}


def test_every_module_says_what_it_is():
    assert not [name for name, module in MODULES.items() if not ast.get_docstring(module.tree)], "no docstring"
    assert not [name for name in MODULES if NAMELESS & set(name.split("."))], "name them after what they hold"


def test_no_file_grows_past_its_idea():
    lengths = {name: len(module.path.read_text(encoding="utf-8").splitlines()) for name, module in MODULES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}, "look for the second idea"


def loaded_by(*names: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after importing modules of the package."""
    wanted = ", ".join(["sys", *(f"bactrian.{name}".rstrip(".") for name in names)])
    program = f"import {wanted}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_data_loads_without_jax():
    assert "jax" not in loaded_by(*(name for name in MODULES if is_within(name, "data")))


def test_the_command_starts_light():
    if "cli.app" not in MODULES:
        pytest.skip("the command is not written yet")
    assert not HEAVY & loaded_by("cli.app"), "heavy parts load inside the verb that needs them"


def test_every_dependency_is_pinned_by_name_alone():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    pinned = {_normalized(line.split("==")[0]) for line in pins}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert {_normalized(re.split(r"[\[<>=!~; ]", line)[0]) for line in wanted} <= pinned


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_names_a_registry_or_a_machine():
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git working copy: there is no list of its files")
    found = []
    for path in (REPOSITORY / name for name in listed if name):
        if path.is_file():
            text = path.read_bytes().decode("utf-8", errors="ignore")
            found += [f"{path.relative_to(REPOSITORY)}: {match[0]}" for match in FOREIGN.finditer(text)]
    assert not found
