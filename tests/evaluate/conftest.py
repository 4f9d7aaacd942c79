"""A small question set, made once, and a server for whoever asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import question_set
from fake_judge import FakeJudge


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small question set's files. Nothing writes there."""
    return question_set.make(tmp_path_factory.mktemp("questions"))


@pytest.fixture
def judge() -> Iterator[FakeJudge]:
    """A judge without faults, running."""
    with FakeJudge().running() as running:
        yield running
