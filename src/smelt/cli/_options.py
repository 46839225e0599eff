"""Options that several commands share, and how their values become settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from smelt.engine.plan import Settings

Threads = Annotated[
    int | None,
    typer.Option("--threads", "-j", min=1, help="Worker threads; all cores by default.", show_default=False),
]
MaxRam = Annotated[
    str | None,
    typer.Option(help="Upper bound of memory, e.g. 2GB; blocks shrink to fit.", show_default=False),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, xpu or auto.")]
ShardSize = Annotated[str, typer.Option(help="Largest file of weights, e.g. 5GB.")]
BlockSize = Annotated[
    int | None,
    typer.Option(min=65536, help="Elements per block; changes speed, never bytes.", show_default=False),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of random masks, unless the recipe has one.")]
Missing = Annotated[
    str, typer.Option(help="Tensors that some models lack: error, or merge over those that have them.")
]
AllowNonfinite = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Go on when an input holds NaN or Inf.")
]
ByPosition = Annotated[
    bool, typer.Option("--by-position", help="Merge embedding rows by position though the tokenizers differ.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def read_settings(
    *, threads: int | None = None, max_ram: str | None = None, device: str = "cpu", shard_size: str = "5GB",
    block_size: int | None = None, seed: int = 0, missing: str = "error", allow_nonfinite: bool = False,
    by_position: bool = False,
) -> Settings:  # fmt: skip
    """Settings from the values of options."""
    from smelt.checkpoint import parse_size
    from smelt.core.errors import PlanError, did_you_mean
    from smelt.engine.plan import BLOCK, Settings

    if missing not in ("error", "merge"):
        raise PlanError(
            f"unknown policy {missing!r}", where="--missing", fix=did_you_mean(missing, ["error", "merge"])
        )
    return Settings(
        threads=threads or cores(), block=block_size or BLOCK, shard_size=parse_size(shard_size), device=resolve(device),
        seed=seed, missing=missing, allow_nonfinite=allow_nonfinite,
        by_position=by_position, max_ram=parse_size(max_ram) if max_ram else None,
    )  # fmt: skip


def resolve(device: str) -> str:
    """The device that is meant; torch is asked only when it is not the CPU."""
    if device == "cpu":
        return device
    from smelt.numerics.torch_backend import resolve_device

    return resolve_device(device)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def show_count(number: int) -> str:
    """A count as people say it.

    >>> show_count(1_235_814_400), show_count(91_712)
    ('1.24 B', '91.7 K')
    """
    for size, unit in ((10**12, " T"), (10**9, " B"), (10**6, " M"), (10**3, " K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
