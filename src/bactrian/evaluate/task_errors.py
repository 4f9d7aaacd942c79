"""What lm-eval, and what it loads data with, say when something is missing: one line, what, and what to do.

These libraries raise whatever their many parts raise; the kind is told by the whole chain of an error.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from bactrian.errors import BactrianError, InputError, printable
from bactrian.evaluate import needs
from bactrian.masking import mask_line

_LIBRARIES = (
    *("lm_eval", "lm-eval", "datasets", "evaluate", "huggingface_hub", "transformers", "fsspec", "filelock", "absl"),
    *("httpx", "httpx2", "httpcore", "urllib3", "requests", "nltk", "sacrebleu", "rouge_score"),
)
_LONGEST = 160  # characters of what a library says
_OFFLINE = ("offline", "connection", "connect", "timeout", "timedout", "urlerror", "gaierror", "localentrynotfound")
_OFFLINE_TEXT = (
    "couldn't reach",
    "cannot reach",
    "offline mode",
    "max retries exceeded",
    "name resolution",
    "module script",
)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns what goes wrong within into an `InputError` that begins with `what`, unless it is ours or our engine's."""
    try:
        with quiet(), _no_metric_from_here():
            yield
    except (BactrianError, MemoryError):
        raise
    except Exception as error:
        if _is_of_the_engine(error.__traceback__):
            raise
        raise InputError(f"{what}: {_said(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines, warnings and bars of these libraries."""
    import datasets
    import tqdm

    bars: Any = tqdm.tqdm
    draw = bars.__init__

    def draw_nothing(bar: Any, *arguments: Any, **more: Any) -> None:
        draw(bar, *arguments, **{**more, "disable": True})

    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    had_bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    bars.__init__ = draw_nothing
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        bars.__init__ = draw
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not had_bars:
            datasets.enable_progress_bars()


@contextmanager
def _no_metric_from_here() -> Iterator[None]:
    """With the library `evaluate` kept from running NAME/NAME.py of the working folder as the metric NAME."""
    evaluate: Any = needs.load("evaluate")
    load = evaluate.load

    def checked(path: str, *arguments: Any, **more: Any) -> Any:
        if (Path(path) / f"{Path(path).name}.py").is_file():
            raise InputError(
                f"{path}: a metric of that name lies in the working folder, and its code would be run; run the command "
                f"in another folder"
            )
        return load(path, *arguments, **more)

    evaluate.load = checked
    try:
        yield
    finally:
        evaluate.load = load


def _is_of_the_engine(trace: TracebackType | None) -> bool:
    """Whether an error came up while our engine answered; then it is a bug, and keeps its traceback."""
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "bactrian.evaluate.lm_eval_model":
            return True
        trace = trace.tb_next
    return False


def _said(error: Exception) -> str:
    """What a library's error means, and what to do."""
    chain = list(_chain(error))
    for each in chain:
        if isinstance(each, ModuleNotFoundError) and each.name:
            package = each.name.partition(".")[0]
            return f"it needs the package {package}, which is not installed; pip install {package}, or leave it out"
    quoted = _quoted(chain[0])
    if any("unsafe" in str(each).lower() or "HF_ALLOW_CODE_EVAL" in str(each) for each in chain):
        return (
            "it runs code that the model writes, and not in a sandbox; take HumanEval of --suite tulu2 with "
            "--run-code, or leave it out"
        )
    if any(isinstance(each, ImportError) for each in chain):
        return f"a package that it needs is not installed ({quoted}); install that, or leave it out"
    if any(_is_yaml(each) for each in chain):
        return f"its task file is not YAML ({quoted}); correct it"
    if any(_is_offline(each) for each in chain):
        return (
            f"its data or metric is not in the cache and cannot be fetched ({quoted}); go online, without "
            f"HF_HUB_OFFLINE, or name local data in a task file of your own with --tasks-folder"
        )
    if any(isinstance(each, FileNotFoundError) or "NotFound" in type(each).__name__ for each in chain):
        return f"its data is not there ({quoted}); correct dataset_path or data_files in its task file"
    return f"{type(chain[0]).__name__}: {quoted}; correct its task file, or leave it out"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _quoted(error: BaseException) -> str:
    lines = [line for line in mask_line(str(error)).splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__, _LONGEST)


def _is_yaml(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] == "yaml" for kind in type(error).__mro__)


def _is_offline(error: BaseException) -> bool:
    names = [kind.__name__.lower() for kind in type(error).__mro__]
    text = str(error).lower()
    return any(word in name for name in names for word in _OFFLINE) or any(each in text for each in _OFFLINE_TEXT)
