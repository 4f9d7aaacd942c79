"""A plan put together: what fits, what would help, what it costs; and the real compilers, where they are installed."""

import json
import resource
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny

from bactrian import recipe as recipes
from bactrian.data import mixture, packing
from bactrian.model import hf_config
from bactrian.plan import check, compile, planning, show, targets
from bactrian.plan.collectives import Collective
from bactrian.plan.compile import Measured
from bactrian.plan.hlo import Frame
from bactrian.plan.memory import Buffer
from bactrian.plan.planning import Planned
from bactrian.plan.workload import Workload

RECIPES = Path(__file__).parents[2] / "recipes" / "tulu2"
GIB = targets.GIB
NEEDS_TPU = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed (the extra `plan`)")
NEEDS_GPU = pytest.mark.skipif(
    find_spec("jax_plugins") is None or find_spec("jax_plugins.xla_cuda12") is None,
    reason="jax-cuda12-plugin is not installed (the extra `plan`)",
)


def planned(total: float, *changes: str, sent: tuple[Collective, ...] = (), held: float = 4.0) -> Planned:
    """A 7B stage on 8 H100s whose update was found to need so many GiB, so many of them for its arguments."""
    recipe = recipes.load(RECIPES / "sft-7b.toml", changes)
    config = hf_config.read_file(RECIPES / "llama-2-7b.json")
    plan = packing.plan(np.full(128, 4096), mixture.order(128, 128, 2, 0), 8192, 8, 1)
    work = Workload("sft", config, plan, 8, 128 * 4096, 64 * 4096.0**2, True)
    buffers = tuple(
        Buffer(size * GIB, 1, "f32[8]", f"name{size}", "model/llama.py:1 f", False) for size in (9, 7, 5, 3)
    )
    step = Measured(total * GIB, {"parameters": int(held * GIB)}, buffers, sent, "blocked", 12.0)
    sizes = {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
    return Planned(recipe, targets.find("8xh100"), sizes, work, {"train": step})


def test_what_does_not_fit_says_by_how_much_and_why():
    found = planned(80.0)
    assert not found.fits
    said = show.misfit(found)
    assert "80.00 GiB of a device that has 59.33, 20.67 too many" in said
    assert all(name in said for name in ("name9", "name7", "name5")) and "name3" not in said
    assert "what would help: mesh.sequence=2" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("changes", "held", "advice"),
    [
        (["model.remat=none"], 4.0, "model.remat=full"),
        ([], 60.0, "model.parameters=bfloat16, with which it takes about 50.0 GiB"),
        (["model.parameters=bfloat16"], 90.0, "a larger target"),
        ([], 4.0, "mesh.sequence=2, which"),
        (["mesh.fsdp=8"], 4.0, "mesh.sequence=2 and mesh.fsdp=-1, which"),
        (["sft.row_length=8191"], 4.0, "sft.row_length"),
    ],
)
def test_advice_is_a_setting_that_takes_what_is_too_much(changes: list[str], held: float, advice: str):
    assert planning.help_for(planned(80.0, *changes, held=held)).startswith(advice)


def test_a_cache_that_is_too_large_is_shared_by_heads_or_made_shorter():
    def decoding(*changes: str) -> Planned:
        found = planned(20.0, *changes)
        (step,) = found.steps.values()
        larger = step._replace(total=80.0 * GIB, buffers=step.buffers[1:])
        return replace(found, steps={**found.steps, "decode": larger})

    assert decoding().fits, "nothing is answered"
    found = decoding("evaluation.prompts=questions.jsonl")
    assert not found.fits and planning.help_for(found).startswith("mesh.tensor=2, which")
    assert found.to_json()["buffers"][0]["name"] == "name7", "those of the step that needs most"
    alone = replace(found, target=targets.find("1xh100"), sizes=dict.fromkeys(found.sizes, 1))
    assert planning.help_for(alone).startswith("evaluation.max_tokens, which is ")


def test_hours_are_updates_and_cost_is_of_chips():
    found = planned(20.0)
    said = found.to_json(price=3.0)
    assert said["fits"] and said["steps"] == 2
    assert found.seconds is not None
    assert said["hours"] == pytest.approx(2 * found.seconds / 3600)
    assert said["chip_hours"] == said["device_hours"] == pytest.approx(8 * said["hours"])
    assert said["cost"] == pytest.approx(3 * said["chip_hours"])
    assert 0 < said["mfu"] < 1
    json.dumps(said)
    assert any("fits" in line for line in show.lines(found, 3.0))


GROUP = tuple(range(8))
HIDDEN = Collective("all-reduce", ("fsdp",), GROUP, ("bf16[8,8192,4096]",), 1e6, 64, "jit(step)/dot_general", None)
WEIGHTS = {
    "gate, up and down": ("bf16[4096,11008]",) * 3,
    "queries, keys, values and outputs": ("bf16[4096,4096]",) * 4,
}


def gathered(times: float) -> tuple[Collective, ...]:
    return tuple(Collective("all-gather", ("fsdp",), GROUP, each, 1e6, times, "", None) for each in WEIGHTS.values())


def test_weights_travel_once_forward_and_once_backward():
    microbatches = 8
    enough = gathered(32 * 2 * microbatches)
    assert check.violations(planned(20.0, sent=enough)) == []
    assert len(check.violations(planned(20.0, sent=gathered(32 * 3 * microbatches)))) == 2


def test_a_weight_that_is_nowhere_gathered_was_not_found():
    (said,) = check.violations(planned(20.0, sent=gathered(32 * 2 * 8)[:1]))
    assert "weights of 16,777,216 elements are gathered 0 times; 128 are needed at least" in said
    assert len(check.violations(planned(20.0, sent=()))) == 2
    whole = planned(20.0, sent=())
    sizes = {**whole.sizes, "data": 8, "fsdp": 1}
    assert check.violations(replace(whole, sizes=sizes)) == [], "every device has them whole"
    as_sums = tuple(each._replace(kind="all-reduce", op_name="jit(step)/all_gather") for each in gathered(32))
    assert check.violations(replace(whole, steps={"train": whole.train._replace(collectives=as_sums)})) == []
    over_places = tuple(each._replace(axes=("sequence",)) for each in gathered(32 * 2 * 8))
    sizes = {**whole.sizes, "fsdp": 1, "sequence": 8}
    assert len(check.violations(replace(whole, sizes=sizes))) == 2
    assert check.violations(replace(planned(20.0, sent=over_places), sizes=sizes)) == []


def test_the_reference_pass_is_checked_too():
    def scored(*sent: Collective) -> list[str]:
        found = planned(20.0, sent=gathered(32 * 2 * 8))
        return check.violations(
            replace(found, steps={**found.steps, "reference": found.train._replace(collectives=sent)})
        )

    assert scored(*gathered(32)) == []
    assert all("the reference step: weights of" in said for said in scored(*gathered(32 * 2)))
    assert len(scored(*gathered(32 * 2))) == len(scored()) == 2
    (said,) = scored(*gathered(32), HIDDEN)
    assert said.startswith("the reference step: all-reduce over fsdp carries bf16[8,8192,4096]")


def test_gradients_that_are_added_up_whole_are_remarked():
    added = Collective("all-reduce", ("fsdp",), GROUP, ("bf16[4096,11008]", "f32[4096]"), 1e6, 32, "", None)
    scattered = added._replace(kind="reduce-scatter")
    found = planned(20.0, sent=(*gathered(32 * 2 * 8), added, scattered))
    assert check.violations(found) == []
    (said,) = check.remarks(found)
    assert said.startswith(f"{32 * 2 * 4096 * 11008 * 7 / 8 / 1e9:.2f} GB of it in vain")
    assert any(said in line for line in show.lines(found))
    assert check.remarks(planned(20.0, sent=(scattered, added._replace(axes=("data",))))) == []


def test_a_batch_does_not_travel_over_its_rows():
    def violations(*sent: Collective) -> list[str]:
        return check.violations(planned(20.0, sent=(*gathered(32), *sent)))

    (said,) = violations(HIDDEN)
    assert "all-reduce over fsdp carries bf16[8,8192,4096]" in said
    assert violations(HIDDEN._replace(axes=("tensor",))) == []
    # A row's hidden states that have as many elements as a weight are told by where they come from.
    alike = HIDDEN._replace(arrays=("bf16[1,4096,4096]",), frame=Frame("model/llama.py", "_layer", 1))
    square = planned(20.0, "sft.row_length=4096", sent=(*gathered(32), alike))
    plan = packing.plan(np.full(128, 4096), mixture.order(128, 128, 2, 0), 4096, 8, 1)
    square = replace(square, workload=replace(square.workload, plan=plan))
    assert len(check.violations(square)) == 1
    fetched = alike._replace(frame=Frame("model/shards.py", "Share.fetch", 1))
    weight = square.train._replace(collectives=(*gathered(32), fetched))
    assert check.violations(replace(square, steps={"train": weight})) == []
    assert len(violations(HIDDEN._replace(arrays=("s32[8,8192]",)))) == 1
    assert violations(HIDDEN._replace(arrays=("f32[8192]", "f32[]", "s32[4,8]"))) == []


@pytest.mark.parametrize(
    ("target", "module", "named"), [("v3-8", "libtpu", "libtpu"), ("8xh100", "jax_plugins", "cuda12")]
)
def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, target: str, module: str, named: str):
    monkeypatch.setattr(compile, "find_spec", lambda name: None if name.startswith(module) else find_spec(name))
    done = tiny.call("plan", RECIPES / "sft-7b.toml", "--target", target)
    assert done.code == 2
    assert named in done.err and "pip install 'bactrian[plan]'" in done.err


def plan(*arguments: object) -> tuple[tiny.Done, dict]:
    done = tiny.call("plan", *arguments, "--json")
    return done, json.loads(done.out) if done.out else {}


@pytest.mark.slow
@NEEDS_TPU
@pytest.mark.parametrize(
    ("recipe", "target", "devices"),
    [("dpo-70b", "v3-512", 512), ("sft-7b", "v5e-16", 16), ("dpo-70b", "v5p-256", 128)],
)
def test_the_recipes_fit_their_slices(recipe: str, target: str, devices: int):
    done, said = plan(RECIPES / f"{recipe}.toml", "--target", target, "--check")
    assert done.code == 0, done.err
    assert (said["fits"], said["devices"], said["row_length"]) == (True, devices, 8192)
    assert said["bytes_per_device"]["total"] < said["hbm_bytes"]
    # This process, and the largest of those that compile: in KiB, as Linux counts.
    held = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    assert held * 1024 < 6e9


@pytest.mark.slow
@NEEDS_TPU
@pytest.mark.parametrize(
    ("target", "changes", "devices"), [("v6e-4", [], 4), ("v5e-1", [], 1), ("v5p-384", ["mesh.data=12"], 192)]
)
def test_a_narrow_model_on_slices_of_all_sizes(tmp_path: Path, target: str, changes: list[str], devices: int):
    # 80 features in four parts are no whole tiles: what neighbours then trade of gradients is no violation.
    config = json.loads((RECIPES / "llama-2-7b.json").read_text())
    narrow = {"hidden_size": 80, "intermediate_size": 768, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, **narrow, **heads}))
    changes = [f"model.config={tmp_path / 'config.json'}", "sft.row_length=2048", "sft.max_length=2048", *changes]
    done, said = plan(RECIPES / "sft-7b.toml", "--target", target, "--check", *changes)
    assert done.code == 0, done.err
    assert said["devices"] == devices
    assert any(each["kind"] == "collective-permute" for each in said["collectives"]) == (target == "v6e-4")


@pytest.mark.slow
@NEEDS_GPU
def test_7b_fits_a_node_of_gpus_and_not_one_gpu():
    done, said = plan(RECIPES / "sft-7b.toml", "--target", "8xh100", "--check")
    assert done.code == 0, done.err
    assert said["fits"] and said["bound_by"] == "compute"
    done, said = plan(RECIPES / "sft-7b.toml", "--target", "1xa100-40")
    assert (done.code, said["fits"]) == (1, False)
    assert "too many; the largest: " in done.err and "what would help" in done.err
