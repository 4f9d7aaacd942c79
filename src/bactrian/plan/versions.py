"""The versions of jax that plans are known to read right.

Compiled text is no interface: each version may write it otherwise. What is read is held against what must be true
(expected.py), which finds gross errors; that every number is right was seen with these versions alone.
"""

from importlib.metadata import version

TESTED = ("0.10.2", "0.12.0")


def installed() -> str:
    """The version of jax that compiles."""
    return version("jax")


def is_tested(jax: str) -> bool:
    """Whether plans were tested with a version; what follows its third number does not count."""
    return ".".join(jax.split(".")[:3]) in TESTED


def warning(jax: str) -> str | None:
    """What to say of a version that plans were not tested with."""
    if is_tested(jax):
        return None
    return f"plans were tested with jax {' and '.join(TESTED)}, not with {jax}; tested: pip install jax=={TESTED[0]}"
