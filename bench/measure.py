"""Run one command as a whole process and measure it from outside: wall, CPU, anonymous, resident memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SAMPLES_PER_SECOND = 40


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of a process took."""

    wall: float  # seconds
    cpu: float  # seconds, user + system, children included
    anon: int  # peak anonymous bytes over the process tree, sampled
    rss: int  # peak resident bytes of the largest process, mapped files included, as the kernel kept it
    others: float  # CPU seconds that anything else on the machine took meanwhile (or a host stole)
    code: int  # exit status
    tail: str = ""  # end of what it printed

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _children(pid: int) -> list[int]:
    """The process and all its descendants that still run."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def anonymous_bytes(pid: int) -> int:
    """Anonymous and shared-memory bytes resident in a process tree now.

    The kernel's counters in ``status`` (RssAnon, RssShmem) say the same as the ``Anonymous`` line of
    ``smaps_rollup``, which walks every page table of a process of many gigabytes and would slow it down.
    """
    total = 0
    for process in _children(pid):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        total += sum(
            int(line.split()[1]) * 1024
            for line in status.splitlines()
            if line.startswith(("RssAnon:", "RssShmem:"))
        )
    return total


def resident_peak(pid: int) -> int:
    """The most that any one process of a tree has had resident so far (``getrusage`` would count this process's own
    size too: a child begins as a copy of it)."""
    peak = 0
    for process in _children(pid):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))])
    return peak


def busy_seconds() -> float:
    """CPU seconds all of the machine has worked since it started, stolen time included."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


class Sampler(threading.Thread):
    """Keeps the peak of a process tree's anonymous memory until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = 0
        self.resident = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(1 / SAMPLES_PER_SECOND):
            self.peak = max(self.peak, anonymous_bytes(self.pid))
            self.resident = max(self.resident, resident_peak(self.pid))

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.peak


def run(command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end, its output in ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        busy, start = busy_seconds(), time.perf_counter()
        process = subprocess.Popen(
            list(command), stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )
        sampler = Sampler(process.pid)
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            peak = sampler.stop()
        wall, busy = time.perf_counter() - start, busy_seconds() - busy
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return Usage(
        wall=wall,
        cpu=cpu,
        others=max(0.0, busy - cpu),
        anon=peak,
        rss=sampler.resident,
        code=process.returncode,
        tail=log.read_bytes()[-2000:].decode(errors="replace"),
    )
