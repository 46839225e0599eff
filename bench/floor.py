"""The I/O floor of a merge: reading all its inputs and writing its output with plain ``cat`` and ``cp``."""

from __future__ import annotations

import os
import subprocess
import sys
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


#: left alone when free memory is touched
SPARE = 1_000_000_000
_TOUCH = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
for at in range(0, len(memory), 4096):
    memory[at] = 1
"""


def free_bytes() -> int:
    """Memory that nothing uses, not even the page cache."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemFree:")) * 1024


def settle(use: int) -> None:
    """Write all dirty pages out and touch as much free memory as the floor will use.

    A virtual machine's host takes back memory that stood free for some seconds; the first to use it again
    waits for every page (2 s per GB were seen). The floor is spared that, which makes it the lowest there is. Programs
    are not: what was touched is given back two seconds later, by work that would run beside theirs.
    """
    os.sync()
    size = min(use, free_bytes() - SPARE)
    if size > 0:
        subprocess.run([sys.executable, "-c", _TOUCH, str(size)], check=True)


#: seconds in which a kernel finishes with what the run before left: dirty pages, free memory for its host
REST = 5.0


def rest() -> None:
    """Leave the machine alone for a moment, so that no program pays for the one before it."""
    os.sync()
    time.sleep(REST)
