"""What was measured on: processor, memory, versions, commit; printed above every table."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.paths import REPO


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=REPO, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def commit() -> str:
    """The commit of this checkout, with a mark when the source differs from it."""
    changed = _git("status", "--porcelain", "--", "src")
    return (_git("rev-parse", "--short=12", "HEAD") or "unknown") + (" with changes" if changed else "")


def source_hash() -> str:
    """Short hash of smelt's source as it lies here, committed or not."""
    digest = hashlib.sha256()
    for path in sorted((REPO / "src" / "smelt").rglob("*.py")):
        digest.update(str(path.relative_to(REPO)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def unchanged_source() -> Iterator[None]:
    """Fail when smelt's source changes meanwhile: its outputs would be those of two programs."""
    before = source_hash()
    yield
    if source_hash() != before:
        raise SystemExit("smelt's source changed during the run; nothing was written, run it again")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)


def hardware() -> dict[str, Any]:
    """The facts that make two timings comparable."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": _memory_gb(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gpu": _gpu(),
    }


def _gpu() -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""


def fingerprint() -> str:
    """Short hash of machine and boot: records of another machine or boot are never mixed in."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    facts = {**hardware(), "node": platform.node(), "boot": boot.read_text() if boot.exists() else ""}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def facts() -> dict[str, Any]:
    """Hardware, versions, commit and time."""
    packages = ("numpy", "numba", "safetensors", "torch")
    return {
        **hardware(),
        "versions": {"smelt": version("smelt"), **{name: version(name) for name in packages}},
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "fingerprint": fingerprint(),
    }


def sentence(found: dict[str, Any]) -> str:
    """The facts as one line of prose."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    gpu = f", {found['gpu']}" if found["gpu"] else ""
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gb']} GB{gpu}, Linux {found['kernel']}, "
        f"Python {found['python']}; {versions}; commit {found['commit']}; {found['date']}."
    )
