"""The programs that are timed, as command lines: smelt and its peers doing the same merge."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import machine, peers, stfile
from bench.recipes import Bench


@dataclass(frozen=True, slots=True)
class Job:
    """One merge to be timed."""

    bench: Bench
    recipe: Path
    folders: Mapping[str, Path]
    out: Path
    threads: int
    device: str


def smelt_program() -> str:
    """The ``smelt`` script of this Python's environment."""
    return str(Path(sys.executable).parent / "smelt")


def smelt(job: Job) -> list[str]:
    device = [] if job.device == "cpu" else ["--device", job.device]
    return [
        smelt_program(),
        "merge",
        str(job.recipe),
        str(job.out),
        "--threads",
        str(job.threads),
        "--quiet",
        *device,
    ]


def mergekit(job: Job) -> list[str]:
    program = str(peers.MERGEKIT.program("mergekit-yaml"))
    device = [] if job.device == "cpu" else ["--device", job.device, "--low-cpu-memory"]
    options = ["--random-seed", "0", "--num-threads", str(job.threads), "--quiet", *device]
    return [program, str(job.recipe), str(job.out), *options]


def sd_mecha(job: Job) -> list[str]:
    job.out.mkdir(parents=True, exist_ok=True)
    inputs = [str(stfile.files_of(job.folders[name])[0]) for name in job.bench.models]
    driver = str(Path(__file__).with_name("sdmecha_driver.py"))
    out = str(job.out / "model.safetensors")
    return [str(peers.SD_MECHA.python), driver, str(job.threads), out, *inputs]


#: the merges it does alike; see sdmecha_driver.py for the others
SD_MECHA_METHODS = ("linear",)

COMMANDS = {"smelt": smelt, "mergekit": mergekit, "sd-mecha": sd_mecha}


def can(tool: str, job: Job) -> bool:
    """Whether a tool offers this merge (and on this device)."""
    if tool != "sd-mecha":
        return True
    single = len(stfile.files_of(job.folders["base"])) == 1
    return single and job.device == "cpu" and job.bench.method in SD_MECHA_METHODS


def subject(tool: str) -> str:
    """What a record of this tool is a record of: smelt's source as it lies here, a peer's pins."""
    return f"smelt {machine.source_hash()}" if tool == "smelt" else " ".join(peers.PEERS[tool].pins)
