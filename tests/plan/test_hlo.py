"""Compiled text as a program: how often what is in its loops runs, how large things are, who made them."""

import jax
import jax.numpy as jnp
import pytest

from bactrian.model import llama
from bactrian.model.attention import Places
from bactrian.plan import hlo

# As printed for TPUs: no trip counts, a condition that compares with a constant, work inside a fusion.
TPU = """HloModule jit_step

%fused (p: bf16[4]) -> bf16[4] {
  %p = bf16[4]{0:T(4)(2,1)} parameter(0)
  ROOT %g = bf16[4]{0:T(4)(2,1)} negate(%p)
}

%body (t: (s32[], bf16[4])) -> (s32[], bf16[4]) {
  %t = (s32[]{:T(128)}, /*index=1*/bf16[4]{0:T(4)(2,1)}) parameter(0)
  ROOT %f = (s32[]{:T(128)}, bf16[4]{0:T(4)(2,1)}) fusion(%t), kind=kLoop, calls=%fused
}

%condition (t: (s32[], bf16[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(80)
  %t = (s32[]{:T(128)}, bf16[4]{0:T(4)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: (s32[], bf16[4])) -> (s32[], bf16[4]) {
  %x = (s32[]{:T(128)}, bf16[4]{0:T(4)(2,1)}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, bf16[4]{0:T(4)(2,1)}) while(%x), condition=%condition, body=%body
}
"""


def test_a_loop_runs_as_often_as_its_condition_lets_it():
    times = {run.instruction.name: run.times for run in hlo.parse(TPU).runs()}
    assert times["g"] == 80
    assert times["w"] == 1


def test_loops_within_loops_multiply_and_unknown_ones_are_asked_for():
    def step(x, count):
        def outer(_, x):
            return jax.lax.fori_loop(0, count, lambda i, x: jnp.sin(x) * i, x)

        return jax.lax.fori_loop(0, 3, outer, x)

    program = hlo.parse(str(jax.jit(step).lower(jnp.ones(8), jnp.int32(4)).compile().as_text()))
    sines = [run for run in program.runs(lambda loop: 11.0) if run.instruction.opcode == "sine"]
    assert [run.times for run in sines] == [33.0]


def test_what_made_an_instruction_is_found_in_our_source():
    config = llama.Config(64, 32, 64, 2, 2, 2, 16, 64, 1e-5, 1e4)
    parameters = jax.eval_shape(lambda: llama.init(config, jax.random.key(0)))
    zeros = jnp.zeros((1, 8), jnp.int32)
    step = jax.jit(lambda parameters: llama.forward(parameters, config, zeros, Places(zeros, zeros, zeros)))
    program = hlo.parse(str(step.lower(parameters).compile().as_text()))
    layers = [run for run in program.runs() if run.instruction.opcode == "while" and run.times == 1]
    files = {frame.file for run in layers if (frame := hlo.own_frame(run.instruction))}
    assert "model/llama.py" in files
    assert not any(file.startswith("/") for file in files)


@pytest.mark.parametrize(
    ("shape", "bytes"),
    [
        ("bf16[2,8]{1,0:T(8,128)(2,1)S(1)}", 32),
        ("(f32[3]{0}, /*index=1*/pred[5]{0}, s32[])", 21),
        ("f8e4m3fn[16]{0}", 16),
        ("s4[16]{0}", 8),
        ("token[]", 0),
    ],
)
def test_sizes_of_shapes(shape: str, bytes: int):
    assert hlo.size(shape) == bytes
