"""The scripts of bench/ import each other by name; so do their tests."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """The models are so small that to compile them well takes longer than to run them badly compiled."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
