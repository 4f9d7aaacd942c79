"""The process that a command runs in: streams that are there and say when they are lost, no words of other libraries,
and no devices that are not here.

Some libraries speak as soon as they are imported, so `prepare` comes first. With `BACTRIAN_LOGS=1` they may speak.
"""

import contextlib
import glob
import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

from bactrian.errors import OutputLost
from bactrian.masking import mask

_LOGS = "BACTRIAN_LOGS"  # set to anything: other libraries' log lines are shown
_PLATFORMS = "JAX_PLATFORMS"

# What each library calls its quietest; what the user has set stays.
_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "NONE",
    "GLOG_minloglevel": "3",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}
# Bars that other libraries draw, where nothing can be redrawn.
_NO_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}

# As the drivers of NVIDIA's GPUs (WSL's and Jetson's too), AMD's GPUs and Google's TPUs show their devices.
_DEVICES = (
    "/dev/nvidia[0-9c]*",
    "/dev/nvhost-*",
    "/dev/dxg",
    "/proc/driver/nvidia/version",
    "/dev/kfd",
    "/dev/accel*",
    "/dev/vfio/[0-9]*",
)
_PLUGINS = re.compile(r"jax_plugins\.xla_(cuda|rocm)\d*|(jax|jaxlib)[_.](cuda|rocm)\d*(_plugin)?")


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook` that shows no secret."""
    sys.stderr.write(mask("".join(traceback.format_exception(kind, error, trace))))


def prepare() -> None:
    """Make this process a command's: its streams, its quiet, its devices."""
    sys.excepthook = _show_bug
    _open_streams()
    if not os.environ.get(_LOGS):
        _silence()
    if sys.platform == "linux" and not has_accelerator():
        leave_out_devices()


def has_accelerator() -> bool:
    """Whether a GPU or TPU shows itself on this machine."""
    return any(glob.glob(pattern) for pattern in _DEVICES)


def leave_out_devices() -> None:
    """Have JAX ask for no GPU and no TPU: their plugins, installed to compile for them, else complain of the driver.

    Nothing is left out that the user asks for by `JAX_PLATFORMS`, nor a plugin for other devices.
    """
    asked = os.environ.get(_PLATFORMS, "")
    if not asked and not _other_plugins():
        os.environ[_PLATFORMS] = "cpu"
    if not re.search("cuda|rocm|gpu", asked):
        sys.meta_path.insert(0, _WithoutPlugins())


def _other_plugins() -> list[str]:
    """Plugins of JAX for devices that are not known here."""
    from importlib.metadata import entry_points

    return [each.value for each in entry_points(group="jax_plugins") if not _PLUGINS.fullmatch(each.value)]


class _WithoutPlugins(MetaPathFinder, Loader):
    """Plugins for GPUs that register nothing; the libraries behind them, which speak when they are loaded, are not."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname.startswith("jax") and _PLUGINS.fullmatch(fullname):
            if fullname.startswith("jax_plugins."):
                return ModuleSpec(fullname, self)
            raise ModuleNotFoundError(f"{fullname} is left out: its devices are not here", name=fullname)
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.initialize = lambda: None  # pyright: ignore[reportAttributeAccessIssue]


def _silence() -> None:
    """No log lines, warnings and bars of other libraries, here and in the processes that this one starts."""
    for name, value in (_QUIET if sys.stderr.isatty() else {**_QUIET, **_NO_BARS}).items():
        os.environ.setdefault(name, value)
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = partial(_unraisable, sys.unraisablehook)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _unraisable(before: Callable[[Any], Any], ignored: Any) -> None:
    """What Python ignores and says so: libraries' objects that end badly, where an error that is told has ended the
    rest. One out of our own code is shown."""
    frames = traceback.walk_tb(ignored.exc_traceback)
    if any(str(frame.f_globals.get("__name__")).startswith("bactrian") for frame, _ in frames):
        before(ignored)


def _open_streams() -> None:
    """Put a stream where one is closed, so that no other file gets its number, and have those there be told of loss."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  (for as long as the process lasts)
    sys.stdout = _text(_Output(is_closed=sys.stdout is None), sys.stdout)
    sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr, line_buffering=True)


def _text(raw: io.FileIO, before: Any, line_buffering: bool = False) -> io.TextIOWrapper:
    encoding = before.encoding if before is not None else "utf-8"
    # What an encoding lacks is escaped: a character is no reason to end a run.
    buffered, whole_lines = io.BufferedWriter(raw), line_buffering or raw.isatty()
    return io.TextIOWrapper(buffered, encoding, "backslashreplace", line_buffering=whole_lines)


class _Output(io.FileIO):
    """The standard output; where it takes no more, `OutputLost` is raised, once."""

    def __init__(self, is_closed: bool):
        super().__init__(1, "w", closefd=False)
        self._is_closed, self._is_lost = is_closed, False

    def write(self, data: Any) -> int | None:
        if self._is_lost:
            return len(data)
        try:
            if self._is_closed:
                raise OSError(None, "it is closed")
            return super().write(data)
        except OSError as error:
            self._is_lost = True
            raise OutputLost(error.strerror or str(error), isinstance(error, BrokenPipeError)) from None


class _Messages(io.FileIO):
    """The standard error. What is said there is lost where it cannot be written, and a run goes on."""

    def write(self, data: Any) -> int | None:
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)
