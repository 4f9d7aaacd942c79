"""Laws: what a model wrote can end, and nothing else; whatever else it tries counts as a failure."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bactrian.errors import InputError
from bactrian.evaluate import sandbox
from bactrian.evaluate.benchmarks import humaneval
from bactrian.evaluate.sandbox import Limits

SHORT = Limits(cpu=2, clock=6.0, memory=256 << 20, threads=6)


@pytest.fixture(scope="module", autouse=True)
def offered() -> None:
    try:
        sandbox.require()
    except InputError as error:
        pytest.skip(str(error))


def outcome(program: str) -> str:
    return sandbox.run([program], SHORT)[0]


def test_a_program_that_ends_has_passed():
    assert outcome("assert sorted([2, 1]) == [1, 2]") == "passed"
    assert outcome("open('note', 'w').write('its own folder is writable')") == "passed"


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "print('passed')\nimport sys\nsys.exit(0)",
        "def (",
        "x = chr(0xd800)\nprint(x)\nassert False",
    ],
)
def test_ending_early_is_no_pass(program):
    assert outcome(program) == "failed"


def test_an_endless_loop_is_stopped():
    assert outcome("while True: pass") != "passed"
    assert outcome("import time\ntime.sleep(1000)") == "timed out"


def test_a_fork_bomb_is_stopped():
    assert outcome("import os\nwhile True: os.fork()") != "passed"
    stubborn = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert outcome(stubborn) != "passed"
    assert outcome("import subprocess\nsubprocess.run(['/usr/bin/env'])") == "failed"
    assert outcome("import os\nos.posix_spawn('/usr/bin/env', ['env'], {})") == "failed"
    threads = "import threading\nkept = [threading.Thread(target=int) for _ in range(3)]\n"
    assert outcome(threads + "for each in kept: each.start()\nfor each in kept: each.join()") == "passed"


def test_memory_without_end_is_stopped():
    assert outcome("kept = []\nwhile True: kept.append(bytearray(1 << 20))") != "passed"
    assert outcome("with open('big', 'wb') as file:\n    while True: file.write(bytes(1 << 20))") != "passed"


def test_there_is_no_memory_but_its_own():
    assert outcome("import os\nos.memfd_create('more')") == "failed"
    assert outcome("import ctypes\nassert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) == -1") == "passed"
    assert outcome("import mmap\nassert mmap.mmap(-1, 1 << 20)") == "passed"
    assert outcome("import mmap\nkept = [mmap.mmap(-1, 32 << 20) for _ in range(9)]") == "failed"


def test_nothing_outside_its_folder_can_be_seen_changed_or_removed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("here")
    victim.chmod(0o666)
    tmp_path.chmod(0o777)
    assert outcome(f"import os\nos.remove({str(victim)!r})") == "failed"
    assert outcome(f"open({str(victim)!r}, 'w')") == "failed"
    assert outcome("import shutil\nshutil.rmtree('/')") == "failed"
    assert outcome("import json, os\nos.remove(json.__file__)") == "failed"
    assert outcome(f"import os\nassert not os.path.exists({str(Path(__file__))!r})") == "passed"
    assert victim.read_text() == "here"


def test_there_is_no_network():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert outcome(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)") == "failed"
    assert outcome("import socket\nassert [name for _, name in socket.if_nameindex()] == ['lo']") == "passed"


def test_it_is_nobody_and_cannot_become_somebody():
    assert outcome("import os\nos.setuid(0)\nassert os.listdir('/root')") == "failed"
    gain = "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.mount(b'tmpfs', b'/box', b'tmpfs', 0, None) != 0"
    assert outcome(gain) == "passed"


def test_it_also_works_for_an_ordinary_user(tmp_path):
    python = Path("/usr/bin/python3")
    if os.geteuid() != 0 or not python.exists():
        pytest.skip("needs to be root, to become an ordinary user, and a Python that such a user can read")
    jail = tmp_path / "jail.py"
    jail.write_bytes((Path(sandbox.__file__).parent / "jail.py").read_bytes())
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    limits = json.dumps({"memory": 1 << 28, "disk": 1 << 20, "cpu": 2, "threads": 4, "paths": ["/usr"]})
    code = "import os\nassert not os.path.exists('/tmp')\nos._exit(7)"
    command = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", python, "-I", jail, limits, code]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, b"")


def test_where_there_is_no_isolation_nothing_is_run(monkeypatch, tmp_path):
    broken = tmp_path / "jail.py"
    broken.write_text("import sys\nprint('unshare: Operation not permitted', file=sys.stderr)\nsys.exit(125)\n")
    monkeypatch.setattr(sandbox, "_JAIL", broken)
    sandbox.require.cache_clear()
    try:
        with pytest.raises(InputError, match=r"not run here.*unshare: Operation not permitted.*leave HumanEval out"):
            sandbox.run(["pass"])
    finally:
        sandbox.require.cache_clear()


def test_it_refuses_systems_without_name_spaces(monkeypatch):
    sandbox.require.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    try:
        with pytest.raises(InputError, match="Linux name spaces"):
            sandbox.require()
    finally:
        sandbox.require.cache_clear()


def test_canonical_solutions_pass_and_broken_ones_fail(shared_data):
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    programs = [humaneval.program(row, row["canonical_solution"]) for row in problems]
    generous = Limits(clock=120.0)  # by the clock: tests run beside others
    assert sandbox.run(programs, generous) == ["passed"] * 164
    assert set(sandbox.run([humaneval.program(row, "    return None\n") for row in problems[:20]])) == {"failed"}
