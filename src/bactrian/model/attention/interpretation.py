"""A kernel compiled on the platform that it is made for, and interpreted on a CPU, where tests hold it to its twin."""

from collections.abc import Callable
from typing import Any

import jax


def kernel(run: Callable[[bool], Callable[..., Any]]) -> Callable[..., Any]:
    """What `run(interpret)` returns, as a function that chooses by the platform it is lowered for.

    So a program that is compiled on a CPU for a device elsewhere holds the kernel.
    """
    return lambda *arrays: jax.lax.platform_dependent(*arrays, cpu=run(True), default=run(False))
