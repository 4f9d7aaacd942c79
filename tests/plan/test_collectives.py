"""Collectives read from compiled text: who takes part, how many bytes leave a device, how often."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bactrian.plan import collectives, hlo

SIZES = {"data": 2, "fsdp": 4}
SOURCE = Path(__file__).parents[2] / "src"

# In eight pieces of a weight [16, 16]: gathered over fsdp by each of 5 steps, added up over both axes once; and a loop
# of a length that comes with the arguments, in each of whose steps devices trade places along fsdp.
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))

def part(weight, count):
    def layer(hidden, scale):
        whole = jax.lax.all_gather(weight * scale, "fsdp", axis=0, tiled=True)
        return jnp.tanh(whole @ hidden), None
    hidden, _ = jax.lax.scan(layer, jnp.ones((16, 16)), jnp.arange(1.0, 6.0))
    turn = lambda _, x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
    turned = jax.lax.fori_loop(0, count, turn, hidden)
    return jax.lax.psum(turned, ("data", "fsdp"))

run = jax.shard_map(part, mesh=mesh, in_specs=(P("fsdp"), P()), out_specs=P(), check_vma=False)
given = jax.ShapeDtypeStruct((16, 16), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
print(jax.jit(run).lower(*given).compile().as_text())
"""


@pytest.fixture(scope="module")
def program() -> hlo.Program:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(SOURCE),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return hlo.parse(done.stdout)


def test_a_program_says_who_sends_what_how_often(program: hlo.Program):
    found = {(each.kind, each.axes): each for each in collectives.of(program, SIZES, lambda loop: 7.0)}
    gathered = found["all-gather", ("fsdp",)]
    assert (len(gathered.group), gathered.times) == (4, 5)
    assert gathered.sent == 3 * 4 * 16 * 4  # to three others, a quarter of [16, 16] float32
    assert gathered.arrays == ("f32[16,16]",)
    turned = found["collective-permute", ("fsdp",)]
    assert (turned.sent, turned.times) == (16 * 16 * 4, 7)
    added = found["all-reduce", ("data", "fsdp")]
    assert (added.sent, added.times) == (2 * 16 * 16 * 4 * 7 / 8, 1)


def test_traffic_is_what_its_collectives_send_together(program: hlo.Program):
    each = list(collectives.of(program, SIZES, lambda loop: 7.0))
    traffic = collectives.summed(each)
    assert sum(one.bytes for one in traffic) == sum(one.sent * one.times for one in each)
    assert [one.bytes for one in traffic] == sorted((one.bytes for one in traffic), reverse=True)


@pytest.mark.parametrize(
    ("written", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups={}", ("data", "fsdp")),
        ("replica_groups=[2,4]<=[8]", ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", ("data", "fsdp")),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", ("data",)),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", ("fsdp",)),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", ("fsdp",)),
        ("source_target_pairs={{0,4},{4,0}}", ("data",)),
        ("source_target_pairs={{0,0},{1,5}}", ("data",)),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7}}", ("data", "fsdp")),
    ],
)
def test_groups_in_every_form_that_xla_writes(written: str, axes: tuple[str, ...]):
    text = f"""HloModule m

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %y = f32[8]{{0}} all-reduce(%x), channel_id=1, {written}, to_apply=%add
}}
"""
    (found,) = collectives.of(hlo.parse(text), SIZES)
    assert found.axes == axes


def test_what_stays_on_a_device_is_no_collective():
    text = """ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%add
}
"""
    assert not list(collectives.of(hlo.parse(text), SIZES))


def test_a_permute_that_ends_a_reduce_scatter_carries_what_that_one_scatters():
    # As TPUs' compiler writes one of 12 rows over four devices: in parts of four, of which the last rows are another's.
    text = """%all-reduce-scatter.1 (p: f32[12,8], q: f32[8]) -> (f32[4,8], f32[2]) {
  %p = f32[12,8]{1,0} parameter(0)
  %q = f32[8]{0} parameter(1)
  %r = f32[16,8]{1,0} pad(%p, %zero), padding=0_4x0_0
  %a = (f32[16,8]{1,0}, f32[8]{0}) all-reduce(%r, %q), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
}

ENTRY %main (x: f32[12,8], y: f32[8]) -> f32[3,8] {
  %x = f32[12,8]{1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %s = (f32[2]{0}, f32[4,8]{1,0}) fusion(%y, %x), kind=kCustom, calls=%all-reduce-scatter.1
  %t = f32[4,8]{1,0} get-tuple-element(%s), index=1
  %u = f32[3,8]{1,0} slice(%t), slice={[1:4], [0:8]}
  %v = f32[3,8]{1,0} collective-permute(%u), channel_id=2, source_target_pairs={{0,1},{1,2},{2,3}}
  ROOT %w = f32[12,8]{1,0} collective-permute(%x), channel_id=3, source_target_pairs={{0,1},{1,2},{2,3}}
}
"""
    last, other = (each for each in collectives.of(hlo.parse(text), SIZES) if each.kind == "collective-permute")
    assert (last.arrays, last.sent) == (("f32[12,8]",), 3 * 8 * 4)
    assert (other.arrays, other.sent) == (("f32[12,8]",), 12 * 8 * 4)


def test_a_collective_that_runs_inside_others_is_one():
    # As TPUs' compiler writes an asynchronous gather: its start, what runs meanwhile and its end each hold a copy.
    text = """%start (p: bf16[8]) -> bf16[32] {
  %p = bf16[8]{0} parameter(0)
  ROOT %g = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
}

%meanwhile (p: bf16[8]) -> bf16[32] {
  %p = bf16[8]{0} parameter(0)
  ROOT %g2 = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
}

%other (p: bf16[8]) -> bf16[32] {
  %p = bf16[8]{0} parameter(0)
  ROOT %g3 = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=[2,4]<=[8], frontend_attributes={chain_id="2"}
}

%all-reduce-scatter.1 (p: f32[32]) -> f32[8] {
  %p = f32[32]{0} parameter(0)
  %r = f32[32]{0} all-reduce(%p), channel_id=6, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %s = f32[8]{0} slice(%r), slice={[0:8]}
}

ENTRY %main (x: bf16[8], y: f32[32]) -> f32[8] {
  %x = bf16[8]{0} parameter(0)
  %y = f32[32]{0} parameter(1)
  %a = bf16[32]{0} fusion(%x), kind=kCustom, calls=%start
  %b = bf16[32]{0} fusion(%x), kind=kCustom, calls=%meanwhile
  %d = bf16[32]{0} fusion(%x), kind=kCustom, calls=%other
  ROOT %c = f32[8]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    traffic = {each.kind: each for each in collectives.summed(collectives.of(hlo.parse(text), SIZES))}
    assert (traffic["all-gather"].count, traffic["all-gather"].bytes) == (2, 2 * 3 * 16)
    assert (traffic["reduce-scatter"].count, traffic["reduce-scatter"].bytes) == (1, 32 * 4 * 3 / 4)
    assert "all-reduce" not in traffic
