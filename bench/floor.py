"""The I/O floor of a merge: reading all its inputs and writing its output with plain ``cat`` and ``cp``."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds; ``sync`` is the extra second(s) until the copy is on the disk."""

    read: float
    write: float
    sync: float

    @property
    def plain(self) -> float:
        """Read and write, the kernel free to keep the output in its cache."""
        return self.read + self.write

    @property
    def durable(self) -> float:
        """Read, write and fsync."""
        return self.read + self.write + self.sync

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _timed(command: Sequence[str], **options: Any) -> float:
    start = time.perf_counter()
    subprocess.run(list(command), check=True, **options)
    return time.perf_counter() - start


def warm(files: Sequence[Path]) -> float:
    """Read files once so that they stand in the page cache; returns the seconds it took."""
    return _timed(["cat", *map(str, files)], stdout=subprocess.DEVNULL)


def measure(inputs: Sequence[Path], output_like: Sequence[Path], target: Path) -> Floor:
    """Time ``cat`` of the inputs to nowhere, ``cp`` of one model to ``target``, its fsync; leave nothing."""
    target.mkdir(parents=True, exist_ok=True)
    read = warm(inputs)
    write = _timed(["cp", "--reflink=never", *map(str, output_like), str(target)])
    copies = [target / path.name for path in output_like]
    sync = _timed(["sync", *map(str, copies)])
    for copy in copies:
        copy.unlink()
    return Floor(read, write, sync)


def settle() -> None:
    """Write all dirty pages out, so that one run does not pay for the one before it."""
    os.sync()
