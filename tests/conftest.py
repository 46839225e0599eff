"""What all tests share: one folder of compiled kernels, one torch thread, small checkpoints."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Kernels compile once for all workers and all runs; their names change with their source."""
    if (
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ):  # started in the background: children would ignore Ctrl-C too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cache = getattr(config, "cache", None)
    if "SMELT_CACHE" not in os.environ and cache is not None:
        os.environ["SMELT_CACHE"] = str(cache.mkdir("smelt"))


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Two cores are shared by all workers."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    yield
