"""Law: several processes are one run. They make the numbers of a single one, and when one is gone the others say so."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import many_hosts
import pytest
import tiny
from many_hosts import Ended

from bactrian.errors import Preempted
from bactrian.hosts import Hosts
from bactrian.run import Run


def test_one_process_is_its_own_first():
    alone = Hosts()
    assert alone.is_first
    assert alone.agree("anything", lambda: 7) == 7
    alone.wait("anything")
    with pytest.raises(Preempted):
        alone.told()
    alone = Hosts()
    with alone.in_order():
        assert not alone.should_stop()
        alone.told()
        assert alone.should_stop()


TOGETHER = """
import sys, time
from bactrian import hosts
with hosts.joined() as together:
    assert together.agree("a number", lambda: 40 + together.index) == 40
    {then}
    together.wait("the others")
print("parted well")
"""


def together(then: str, *, silence: float = 3.0, patience: float = 30.0) -> list[Ended]:
    """Two processes that come together, of which each does something before they part."""
    program = [sys.executable, "-c", TOGETHER.format(then=then)]
    return many_hosts.finish(many_hosts.start(program, Path(), 2, silence=silence, patience=patience))


def test_hosts_agree_and_part():
    assert [(ended.code, ended.out) for ended in together("")] == [(0, "parted well\n")] * 2


def test_a_host_that_does_not_come_is_named():
    first, _ = together("time.sleep(20 * together.index)", patience=2.0)
    assert first.code == 1
    assert first.err.splitlines()[-1].startswith("failed: host 1 (")
    assert "did not come within 2 seconds to where the others wait (the others)" in first.err


@pytest.mark.parametrize("index", [0, 1])
def test_an_error_of_one_host_ends_all_with_its_code_and_line(index: int):
    raising = f"if together.index == {index}: from bactrian.errors import RunError; raise RunError('x: full')"
    ended = together(f"exec({raising!r}); time.sleep(100)")
    assert [each.code for each in ended] == [2, 2]
    assert ended[index].err.splitlines()[-1] == "error: x: full"
    assert ended[1 - index].err.splitlines()[-1].startswith(f"failed: host {index} (")
    assert ended[1 - index].err.splitlines()[-1].endswith(") has ended: error: x: full")


def test_hosts_agree_when_to_stop():
    then = "import os, signal; step = 0"
    then += "\n    while not together.should_stop():\n        step += 1; time.sleep(0.05)"
    then += "\n        if step == 3 and together.index: os.kill(os.getpid(), signal.SIGTERM)"
    then += "\n    print(step, together.should_stop())\n    from bactrian.errors import Preempted"
    then += "\n    together.wait('all have seen it'); sys.stdout.flush(); raise Preempted('saved')"
    first, second = together(then)
    assert first.out == second.out
    assert first.out.endswith(" True\n")
    assert "Preempted: saved" in first.err and "Preempted: saved" in second.err


def test_ctrl_c_to_one_host_stops_all_in_order_with_its_code():
    then = "import os, signal; step = 0"
    then += "\n    with together.in_order():\n        while not together.should_stop():\n            time.sleep(0.05)"
    then += "\n            step += 1; together.index and step == 3 and os.kill(os.getpid(), signal.SIGINT)"
    then += "\n    stop = together.stopped('after a step'); print(stop, stop.exit_code)"
    assert [ended.out for ended in together(then)] == ["interrupted, after a step 130\nparted well\n"] * 2


def test_ctrl_c_where_nobody_asks_ends_all():
    then = "import os, signal; together.doing('while all slept')"
    then += "\n    together.index and os.kill(os.getpid(), signal.SIGINT); time.sleep(100)"
    first, second = together(then)
    assert (first.code, second.code) == (130, 130), (first, second)
    assert second.err.splitlines()[-1] == "interrupted, while all slept"
    assert first.err.splitlines()[-1].endswith(" has ended: interrupted, while all slept")


@pytest.mark.parametrize("asked_before", [0, 3])
def test_hosts_that_are_told_to_stop_while_nobody_asks_stop_when_somebody_does(asked_before: int):
    then = f"import os, signal; [together.should_stop() for _ in range({asked_before})]"
    then += "\n    if together.index: os.kill(os.getpid(), signal.SIGTERM)"
    # As between two loops of a run, where they load, compile and agree on much else.
    then += "\n    time.sleep(2); together.agree('more', int); together.wait('more')"
    then += "\n    step = 0\n    while step < 40 and not together.should_stop():\n        step += 1; time.sleep(0.05)"
    then += "\n    print(together.is_stopping)"
    assert [ended.out for ended in together(then)] == ["True\nparted well\n"] * 2


# Whole runs


def train_steps(folder: Path) -> int:
    return sum(row["kind"] == "train" for row in Run(folder).metrics())


def test_two_processes_train_as_one(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, tiny_cache: Path):
    arguments = tiny.command("sft", tiny_recipe, "evaluation={}", "--run-dir", tmp_path / "run")
    ended = many_hosts.finish(many_hosts.start(arguments, tiny_cache, 2))
    assert [each.code for each in ended] == [0, 0], ended
    assert "done:" in ended[0].err and "done:" not in ended[1].err
    many_hosts.assert_same_curve(tmp_path / "run", tiny_run, ("sft",))
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "run" / "export" / name).is_file()


def test_told_to_stop_a_run_saves_and_resumes(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, tiny_cache: Path):
    folder = tmp_path / "run"
    command = tiny.command("run", tiny_recipe, "--run-dir", folder)
    process = subprocess.Popen(command, env=tiny.environment(tiny_cache), stderr=subprocess.PIPE, text=True)
    many_hosts.wait_for(lambda: train_steps(folder) > 3, [process])
    process.send_signal(signal.SIGTERM)
    [ended] = many_hosts.finish([process])
    assert ended.code == 75
    said = ended.err.splitlines()[-1]
    assert said.startswith("stopped: told to stop, after step ") and said.endswith("; the same command resumes it")
    step = int(said.split("step ")[1].split()[0])
    again = tiny.run(["run", tiny_recipe, "--run-dir", folder], tiny_cache)
    assert again.code == 0
    assert f"resuming after step {step} of" in again.err
    for name in ("evaluation.json", "export/model.safetensors"):
        assert (folder / name).read_bytes() == (tiny_run / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("count", "victim", "then"), [(2, 1, (4, 1)), (4, 3, (2, 2)), (4, 0, (1, 1))])
def test_where_one_is_killed_the_others_stop_and_another_number_goes_on(
    tmp_path: Path, tiny_recipe: Path, tiny_run: Path, count: int, victim: int, then: tuple[int, int]
):
    folder, cache = tmp_path / "run", tmp_path / "cache"
    command = tiny.command("run", tiny_recipe, "--run-dir", folder)
    processes = many_hosts.start(command, cache, count)
    many_hosts.wait_for(lambda: train_steps(folder) > 6, processes)
    processes[victim].kill()
    killed = time.monotonic()
    ended = many_hosts.finish(processes)
    assert time.monotonic() - killed < 100  # many times the silence that is waited for, on a busy machine
    assert ended[victim].code == -signal.SIGKILL
    for index in set(range(count)) - {victim}:
        assert ended[index].code == 1
        last = ended[index].err.splitlines()[-1]
        assert f"host {victim} (" in last and last.endswith(
            "the run goes on from its last checkpoint, if it makes any"
        ), ended[index]

    others = many_hosts.finish(many_hosts.start(command, cache, *then))
    assert [each.code for each in others] == [0] * then[0], others
    assert "sft: resuming after step" in others[0].err
    many_hosts.assert_same_curve(folder, tiny_run)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_told_to_stop_all_hosts_save_and_one_goes_on(tmp_path: Path, tiny_recipe: Path, how: signal.Signals, code: int):
    folder, cache = tmp_path / "run", tmp_path / "cache"
    command = tiny.command("run", tiny_recipe, "sft.epochs=60", "sft.checkpoint_every=0", "--run-dir", folder)
    processes = many_hosts.start(command, cache, 2)
    many_hosts.wait_for(lambda: train_steps(folder) > 6, processes)
    processes[1].send_signal(how)
    ended = many_hosts.finish(processes)
    assert [each.code for each in ended] == [code, code], ended
    step = int(ended[0].err.splitlines()[-1].split("step ")[1].split()[0])
    assert os.listdir(folder / "checkpoints" / "sft" / "steps") == [str(step)]
    assert train_steps(folder) == step
    only = tiny.run(["run", tiny_recipe, "sft.epochs=60", "sft.checkpoint_every=0", "--run-dir", folder], cache)
    assert only.code == 0
    assert f"sft: resuming after step {step} of 360" in only.err
