"""Where the measurements keep models, environments and run records: one cache folder that git ignores."""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
DOCS = REPO / "docs"


def cache_root() -> Path:
    """The cache folder: ``$SMELT_BENCH_CACHE``, or ``.work/bench`` in the repository."""
    return Path(os.environ.get("SMELT_BENCH_CACHE", REPO / ".work" / "bench")).resolve()


def models_dir(size: str, dtype: str = "bfloat16", spread: str = "near") -> Path:
    """Folder of the base and the three fine-tunes of one size."""
    return cache_root() / "models" / f"{size}-{dtype}-{spread}"


def peer_dir(name: str) -> Path:
    """Virtual environment of one peer."""
    return cache_root() / "peers" / name


def runs_dir() -> Path:
    """Records of finished measurements, one folder a run id."""
    return cache_root() / "runs"


def scratch_dir() -> Path:
    """Merge outputs and logs; everything below may be deleted at any time."""
    return cache_root() / "scratch"
