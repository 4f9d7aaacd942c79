"""A command's process: quiet whatever is installed beside it, and told when what it writes is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

PLUGIN = """
import os
os.write(2, b"a library speaks as it is loaded\\n")
def initialize():
    raise RuntimeError("Unable to load CUDA. Is it installed?")
"""
PREPARED = "from bactrian import process; process.prepare()\n"
# What a verb does first, and then libraries speak in each way they have.
FIND_DEVICES = "import jax; print([device.platform for device in jax.devices()])\n"
SPEAK = """
import logging, warnings
logging.getLogger("absl").warning("a log line")
logging.getLogger("other").error("another")
warnings.warn("a warning")
class Ends:
    def __del__(self):
        raise RuntimeError("badly")
Ends()
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with plugins of JAX for GPUs, found by both ways it looks for them, as without a driver."""
    for name in ("xla_cuda12", "xla_rocm7"):
        (tmp_path / "jax_plugins" / name).mkdir(parents=True)
        (tmp_path / "jax_plugins" / name / "__init__.py").write_text(PLUGIN)
    info = tmp_path / "jax_cuda13_plugin-0.10.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jax-cuda13-plugin\nVersion: 0.10.2\n")
    (info / "entry_points.txt").write_text("[jax_plugins]\nxla_cuda13 = jax_plugins.xla_cuda13\n")
    return tmp_path


def spoken(command: str, *paths: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "PYTHONWARNINGS")}
    given |= {"PYTHONPATH": os.pathsep.join(map(str, (*paths, tiny.SOURCE))), **environment}
    return subprocess.run([sys.executable, "-c", command], env=given, capture_output=True, text=True)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
def test_what_is_installed_for_devices_that_are_not_here_is_not_heard(plugins: Path):
    done = spoken(PREPARED + FIND_DEVICES + SPEAK, plugins)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['cpu']\n", "")


def test_who_asks_hears_other_libraries(plugins: Path):
    done = spoken(PREPARED + SPEAK, BACTRIAN_LOGS="1")
    assert all(said in done.stderr for said in ("a log line", "another", "a warning", "badly"))


def test_what_the_user_sets_stays():
    show = PREPARED + "import os; print(os.environ['JAX_PLATFORMS'])"
    assert spoken(show, JAX_PLATFORMS="cuda").stdout == "cuda\n"
    level = show.replace("JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL")
    assert spoken(level, TF_CPP_MIN_LOG_LEVEL="0").stdout == "0\n"


# A verb that prints a line of an answer and says something, without the seconds of a model.
SAYS = f'{sys.executable} -c "import sys; from bactrian import process, progress; from bactrian.cli import app; '
SAYS += "app.app = lambda **_: (progress.show('answer ' * 9), progress.say('said')); app.main()\""


def ends(shell: str) -> tuple[int, str, str]:
    given = {**os.environ, "PYTHONPATH": str(tiny.SOURCE)}
    done = subprocess.run(["bash", "-c", SAYS + shell], env=given, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_lost_output_is_a_line():
    code, _, said = ends(" >/dev/full")
    assert code == 1 and said.startswith("failed: cannot write to the standard output: No space left on device; ")
    assert said.count("\n") == 1
    code, _, said = ends(" >&-")
    assert code == 1 and said.startswith("failed: cannot write to the standard output: it is closed; ")


def test_lost_messages_end_nothing():
    for lost in (" 2>/dev/full", " 2>&-", " 2>&- <&-"):
        code, out, said = ends(lost)
        assert (code, said) == (0, "") and out.startswith("answer")


def test_a_reader_that_leaves_needs_no_word():
    script = SAYS.replace("answer ' * 9", "answer ' * 99999").replace("progress.say('said')", "0")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script} | head -c 1"],
        env={**os.environ, "PYTHONPATH": str(tiny.SOURCE)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGPIPE, "a", "")
