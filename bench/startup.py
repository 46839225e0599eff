"""Start-up times: how long before anything happens, and how long the smallest whole merge takes."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import make_models, tools
from bench.recipes import BENCHES

REPEAT = 5
#: what the interpreter's start is: subtracted from wall time before it is held against the I/O floor
START = "`smelt --version`"


def seconds(command: Sequence[str], env: Mapping[str, str] | None = None) -> float:
    """Wall time of one command that must succeed."""
    start = time.perf_counter()
    done = subprocess.run(
        list(command), capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return wall


def median_seconds(
    command: Sequence[str], before: Path | None = None, env: Mapping[str, str] | None = None
) -> float:
    """Median of a few runs; ``before`` is a folder to remove before each."""
    walls = []
    for _ in range(REPEAT):
        if before:
            shutil.rmtree(before, ignore_errors=True)
        walls.append(seconds(command, env))
    return statistics.median(walls)


def measure_startup(folders: Mapping[str, Path], scratch: Path) -> list[dict[str, Any]]:
    """Rows of (what, seconds, limit)."""
    smelt = tools.smelt_program()
    ties = BENCHES["ties"]
    recipe = str(ties.write(folders, scratch / "plan.yml"))
    tiny_recipe = str(ties.write(make_models.ensure("tiny"), scratch / "tiny-start.yml"))
    out, cold = scratch / "tiny-start", scratch / "cold-kernels"
    merge = [smelt, "merge", tiny_recipe, str(out), "--quiet"]
    rows = [
        ("`python -c pass`", median_seconds([sys.executable, "-c", "pass"]), None),
        (START, median_seconds([smelt, "--version"]), None),
        ("`smelt --help`", median_seconds([smelt, "--help"]), 0.3),
        (
            "`smelt plan` of a three-model TIES recipe of this size",
            median_seconds([smelt, "plan", recipe]),
            1.0,
        ),
        ("tiny TIES merge end to end", median_seconds(merge, before=out), 2.0),
    ]
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(cold, ignore_errors=True)
    first = seconds(merge, {"SMELT_CACHE": str(cold)})
    rows.append(("the same, first merge ever on a machine (kernels are compiled)", first, None))
    shutil.rmtree(out, ignore_errors=True)
    return [{"what": what, "seconds": wall, "limit": limit} for what, wall, limit in rows]
