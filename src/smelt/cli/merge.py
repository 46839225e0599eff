"""``smelt merge``: carry a recipe out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smelt.cli._options import (
    AllowNonfinite,
    BlockSize,
    ByPosition,
    Device,
    Json,
    MaxRam,
    Missing,
    Quiet,
    Seed,
    ShardSize,
    Threads,
    print_json,
    read_settings,
)  # fmt: skip

if TYPE_CHECKING:
    from smelt.engine.merge import MergeReport


def COMMAND(
    recipe: Annotated[Path, typer.Argument(help="Recipe in YAML (mergekit's dialect).", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Directory to create.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that stands there.")] = False,
    threads: Threads = None, max_ram: MaxRam = None, device: Device = "cpu", shard_size: ShardSize = "5GB",
    block_size: BlockSize = None, seed: Seed = 0, missing: Missing = "error",
    by_position: ByPosition = False, allow_nonfinite: AllowNonfinite = False,
    json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Merge models into a new, verified checkpoint.

    The directory appears when every byte of it was checked, or not at all.

    Example: smelt merge ties.yml ./merged
    """
    from smelt.core.native import expect

    if device == "cpu":
        expect()
    from smelt.checkpoint import check_target
    from smelt.cli._progress import merge_progress
    from smelt.engine.merge import run_merge
    from smelt.engine.plan import plan_merge

    settings = read_settings(
        threads=threads, max_ram=max_ram, device=device, shard_size=shard_size, block_size=block_size, seed=seed,
        missing=missing, by_position=by_position, allow_nonfinite=allow_nonfinite,
    )  # fmt: skip
    check_target(out, overwrite)
    plan = plan_merge(recipe, settings)
    try:
        with merge_progress(len(plan.jobs), show=not (json or quiet)) as progress:
            report = run_merge(plan, out, overwrite=overwrite, progress=progress)
    finally:
        plan.close()
    if json:
        print_json(
            {
                **{key: value for key, value in vars(report).items() if key != "outputs"},
                "outputs": dict(report.outputs),
            }
        )
    elif not quiet:
        _show(report)


def _show(report: MergeReport) -> None:
    from rich.console import Console

    from smelt.checkpoint import show_bytes
    from smelt.cli._options import show_count

    console = Console(soft_wrap=True)
    for note in report.notes:
        console.print(f"[yellow]note[/yellow] {note}", highlight=False)
    rate = (report.bytes_in + report.bytes_out) / max(report.merge_seconds, 1e-9)
    console.print(
        f"[green]merged and verified[/green] {report.tensors} tensors, {show_count(report.parameters)} parameters, "
        f"{show_bytes(report.bytes_out)} in {report.seconds:.2f} s ({show_bytes(int(rate))}/s)",
        highlight=False,
    )
    console.print(f"-> {report.path}", highlight=False)
