"""Laws: what a model wrote can end, and nothing else; whatever else it tries counts as a failure."""

import contextlib
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bactrian.errors import InputError
from bactrian.evaluate import jail, sandbox
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
    # Not even the names of interfaces: netlink is a family of sockets too.
    assert outcome("import socket\nsocket.if_nameindex()") == "failed"
    # Sockets of Unix without a file belong to a network.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0bactrian's sandbox")
        listening.listen()
        connect = "import socket\nsocket.socket(socket.AF_UNIX).connect"
        assert outcome(f'{connect}(chr(0) + "bactrian\'s sandbox")') == "failed"


PROBE = f"""
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
column = ["x86_64", "aarch64"].index(os.uname().machine)
for name, numbers in {jail._CLOSED!r}.items():
    if numbers[column] >= 0:
        assert libc.syscall(numbers[column], 0, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM, name
for number in range(424, 600):
    if number not in {jail._LATER!r}:
        assert libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.ENOSYS, number
for family in range(64):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind)
            assert family == socket.AF_UNIX, family
        except OSError as error:
            assert error.errno == errno.EAFNOSUPPORT or family == socket.AF_UNIX, (family, error)
socket.socketpair()
"""


def test_what_computing_does_not_need_of_the_kernel_is_closed():
    assert outcome(PROBE) == "passed"
    needed = "import asyncio, json, tempfile, threading, zlib\nasyncio.run(asyncio.sleep(0))\ntempfile.mkstemp()"
    assert outcome(needed) == "passed"


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children = [int(each) for each in task.read_text().split()]
            found += [below for child in children for below in (child, *descendants(child))]
    return found


def kill_the_caller(command: list[str]) -> None:
    """Start a caller, kill it once its program runs, and wait until nothing is left of either."""
    caller = subprocess.Popen(command, env=ENVIRONMENT)
    deadline = time.monotonic() + 30
    while len(below := descendants(caller.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    assert len(below) == 3, "the jail, its guard and the program"
    deadline = time.monotonic() + 10
    while [pid for pid in below if Path(f"/proc/{pid}").exists()] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]


CALLER = """
import sys
from bactrian.evaluate import sandbox
sandbox._run_one("import time\\ntime.sleep(60)", sandbox.Limits(clock=60.0))
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(sandbox.__file__).parents[2])}


def test_a_program_dies_with_its_caller():
    kill_the_caller([sys.executable, "-c", CALLER])


def test_a_program_of_an_ordinary_user_dies_with_its_caller(tmp_path):
    command, jail_of_user = ordinary(tmp_path)
    caller = (
        "import json, os, subprocess, sys\n"
        "limits = {'memory': 1 << 28, 'disk': 1 << 20, 'cpu': 9, 'threads': 4, 'paths': ['/usr']}\n"
        "limits['caller'] = os.getpid()\n"
        f"program = [sys.executable, '-I', {str(jail_of_user)!r}, json.dumps(limits), 'import time; time.sleep(60)']\n"
        "subprocess.run(program)\n"
    )
    kill_the_caller([*command, "-c", caller])


def test_a_program_whose_caller_is_gone_before_it_begins_is_not_run():
    limits = json.loads(sandbox._settings(SHORT)) | {"caller": 1 << 22}
    command = [sys.executable, "-I", sandbox._JAIL, json.dumps(limits), "print('ran')"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (125, b"")


def test_it_is_nobody_and_cannot_become_somebody():
    assert outcome("import os\nos.setuid(0)\nassert os.listdir('/root')") == "failed"
    gain = "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.mount(b'tmpfs', b'/box', b'tmpfs', 0, None) != 0"
    assert outcome(gain) == "passed"


def test_it_also_works_for_an_ordinary_user(tmp_path):
    command, jail_of_user = ordinary(tmp_path)
    limits = {"memory": 1 << 28, "disk": 1 << 20, "cpu": 2, "threads": 4, "paths": ["/usr"], "caller": os.getpid()}
    code = "import os\nassert not os.path.exists('/tmp')\n" + PROBE + "\nos._exit(7)"
    done = subprocess.run([*command, "-I", jail_of_user, json.dumps(limits), code], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, b"")


def ordinary(tmp_path: Path) -> tuple[list[str], Path]:
    """How an ordinary user starts Python, and a jail that such a user can read."""
    python = Path("/usr/bin/python3")
    if os.geteuid() != 0 or not python.exists():
        pytest.skip("needs to be root, to become an ordinary user, and a Python that such a user can read")
    jail_of_user = tmp_path / "jail.py"
    jail_of_user.write_bytes((Path(sandbox.__file__).parent / "jail.py").read_bytes())
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    return ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", str(python)], jail_of_user


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
