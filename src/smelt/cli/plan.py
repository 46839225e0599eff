"""``smelt plan``: what a recipe would do, without reading a weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.cli._options import (
    BlockSize,
    ByPosition,
    Device,
    Json,
    MaxRam,
    Missing,
    Seed,
    ShardSize,
    Threads,
    print_json,
    read_settings,
)  # fmt: skip

if TYPE_CHECKING:
    from smelt.engine.plan import Plan


def COMMAND(
    recipe: Annotated[Path, typer.Argument(help="Recipe in YAML (mergekit's dialect).", show_default=False)],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every output tensor and where it comes from.")] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="TENSOR", help="Parameters and coefficients of one tensor.", show_default=False)
    ] = None,
    threads: Threads = None, max_ram: MaxRam = None, device: Device = "cpu", shard_size: ShardSize = "5GB",
    block_size: BlockSize = None, seed: Seed = 0, missing: Missing = "error", by_position: ByPosition = False, json: Json = False,
) -> None:  # fmt: skip
    """Check a recipe and show what it would do: every problem, every tensor, bytes, memory.

    Example: smelt plan ties.yml --explain model.layers.0.mlp.up_proj.weight
    """
    from smelt.engine.plan import plan_merge

    settings = read_settings(
        threads=threads, max_ram=max_ram, device=device, shard_size=shard_size, block_size=block_size, seed=seed,
        missing=missing, by_position=by_position,
    )  # fmt: skip
    plan = plan_merge(recipe, settings)
    try:
        if explain is not None:
            from smelt.engine.explain import explain as explain_tensor

            found = explain_tensor(plan, explain)
            print_json(found) if json else _show_tensor(found)
        elif json:
            print_json(_as_data(plan, tensors))
        else:
            _show(plan, tensors)
    finally:
        plan.close()


def _as_data(plan: Plan, tensors: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "recipe": plan.recipe.to_dict(), "tensors": len(plan.jobs), "methods": dict(plan.methods),
        "parameters": sum(job.spec.numel for job in plan.jobs.values()), "bytes_to_read": plan.bytes_in,
        "bytes_to_write": plan.bytes_out, "peak_memory": plan.peak_memory(), "passes": plan.passes,
        "shards": [shard.file for shard in plan.layout.shards], "side_files": sorted(plan.side_files), "notes": plan.notes,
        "config": plan.config,
    }  # fmt: skip
    if tensors:
        data["mapping"] = {name: _mapping(job) for name, job in plan.jobs.items()}
    return data


def _mapping(job: Any) -> dict[str, Any]:
    return {
        "method": job.method, "dtype": job.spec.dtype, "shape": list(job.spec.shape),
        "inputs": [f"{label}: {part.spec.name}" for label, part in zip(job.labels, job.inputs, strict=True)], "note": job.note,
    }  # fmt: skip


def _show(plan: Plan, tensors: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from smelt.checkpoint import show_bytes

    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    passes = ", ".join(f"{method} {count} tensors" for method, count in plan.methods.most_common())
    for label, value in (
        ("method", passes),
        ("models", "\n".join(member.label for member in plan.members.by_ref.values() if member is not None)),
        ("read", f"{show_bytes(plan.bytes_in)} in {plan.passes}"),
        ("write", f"{show_bytes(plan.bytes_out)} in {len(plan.layout.shards)} file(s)"),
        ("peak memory", f"about {show_bytes(plan.peak_memory())} with {plan.settings.threads} threads"),
        ("side files", ", ".join(sorted(plan.side_files)) or "none"),
    ):
        table.add_row(label, value)
    console.print(table, highlight=False)
    for note in plan.notes:
        console.print(f"[yellow]note[/yellow] {note}", highlight=False)
    if tensors:
        _show_mapping(plan, console)
    console.print("[green]no problems[/green]")


def _show_mapping(plan: Plan, console: Any) -> None:
    from rich.table import Table

    table = Table("output tensor", "shape", "dtype", "method", "from")
    for name, job in plan.jobs.items():
        sources = ", ".join(
            part.spec.name if part.spec.name != name else label
            for label, part in zip(job.labels, job.inputs, strict=True)
        )
        table.add_row(
            name, "x".join(map(str, job.spec.shape)), job.spec.dtype, job.method, job.note or sources
        )
    console.print(table, highlight=False)


def _show_tensor(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    shape = "x".join(map(str, found["shape"]))
    console.print(
        f"[bold]{found['tensor']}[/bold]  {found['method']}, {shape} {found['dtype']}, {found['layer']}, t = {found['t']:.4g}",
        highlight=False,
    )
    if found["note"]:
        console.print(found["note"], highlight=False)
    table = Table("parameter", "value", "set by")
    for name, entry in found["parameters"].items():
        table.add_row(name, str(entry["value"]), str(entry["set by"]))
    console.print(table, highlight=False)
    for label, value in (
        (found.get("coefficients") or {}).items() if isinstance(found.get("coefficients"), dict) else ()
    ):
        console.print(f"  {value:+.6f} x {label}", highlight=False)
    if isinstance(found.get("coefficients"), str):
        console.print(found["coefficients"], highlight=False)
    models = found["inputs"][-len(found["kept"]) :] if found.get("kept") else []
    for label, entry in zip(models, found.get("kept", ()), strict=True):
        console.print(
            f"  {label}: " + ", ".join(f"{key} {value:.6g}" for key, value in entry.items()), highlight=False
        )
