"""The folder of what can be made or fetched again."""

import os
from pathlib import Path


def cache_root() -> Path:
    """Where downloads, corpora and reference log-probabilities are kept: $BACTRIAN_CACHE, or ~/.cache/bactrian."""
    return Path(os.environ.get("BACTRIAN_CACHE") or Path.home() / ".cache" / "bactrian")
