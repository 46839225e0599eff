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


#: where some kernels count the free memory they gave back to the host of a virtual machine
_GIVEN_BACK = Path("/sys/module/page_reporting/parameters/reported_kib")
#: seconds a run waits at least, and at most, until nothing stirs
REST, PATIENCE = 5.0, 30.0


def _stir() -> tuple[str, str]:
    """Changes while the host takes free memory back or a disk is busy."""
    given = _GIVEN_BACK.read_text() if _GIVEN_BACK.exists() else ""
    disks = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    return given, " ".join(field for disk in disks for field in (disk[3], disk[7], *disk[14:15]))


def quiet() -> None:
    """Write all dirty pages out and wait until the machine is as one finds it: nothing on its way to a disk, and the
    host done with what an earlier run set free, which slows every processor of a virtual machine while it lasts."""
    os.sync()
    began, seen, since = time.monotonic(), _stir(), time.monotonic()
    while time.monotonic() - began < PATIENCE:
        time.sleep(0.25)
        if (now := _stir()) != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - began >= REST and time.monotonic() - since >= 2.0:
            return
