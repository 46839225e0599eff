"""``smelt inspect``: what a model is made of, from its headers alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.cli._options import print_json

if TYPE_CHECKING:
    from smelt.arch import Structure
    from smelt.checkpoint import Checkpoint
    from smelt.core.types import TensorMeta


def COMMAND(
    model: Annotated[
        str, typer.Argument(help="Model directory, weights file, or org/name on the Hub.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    only: Annotated[
        str, typer.Option("--filter", metavar="SUBSTR", help="List only tensors with this in the name.")
    ] = "",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Show architecture, parameters, layers, vocabulary, dtypes, files and anything odd. Reads no weights.

    Example: smelt inspect ./merged --filter layers.0.
    """
    from smelt.arch import read_structure
    from smelt.checkpoint import find_model, open_checkpoint

    with open_checkpoint(find_model(model, revision)) as checkpoint:
        structure = read_structure(checkpoint.tensors, checkpoint.config)
        summary = describe(checkpoint, structure)
        listed = (
            [meta for name, meta in checkpoint.tensors.items() if only in name] if tensors or only else []
        )
        rows = [_tensor_row(meta, structure) for meta in listed]
    if as_json:
        print_json(summary | ({"tensors": rows} if tensors or only else {}))
    else:
        _print(summary, rows)
        if only and not rows:
            typer.echo(f"no tensor has {only!r} in its name")


def describe(checkpoint: Checkpoint, structure: Structure) -> dict[str, Any]:
    """Everything ``smelt inspect`` knows, as plain data."""
    from smelt.arch import check_agreement

    metas = checkpoint.tensors
    errors, warnings = check_agreement(metas, checkpoint.config)
    stacks = [
        {
            "prefix": stack.prefix,
            "layers": stack.count,
            "bytes": stack.nbytes,
            "config_keys": list(stack.depth_keys),
            "main": stack is structure.main,
        }
        for stack in structure.stacks
    ]
    return {
        "path": str(checkpoint.path),
        "architecture": ", ".join(map(str, checkpoint.config.get("architectures") or [])) or None,
        "model_type": checkpoint.config.get("model_type"),
        "parameters": sum(meta.numel for meta in metas.values()),
        "tensors_total": len(metas),
        "bytes": sum(meta.nbytes for meta in metas.values()),
        "stacks": stacks,
        "vocabulary_rows": {
            name: metas[name].shape[0]
            for name in structure.with_role("embedding") + structure.with_role("head")
        },
        "tied": structure.tied,
        "per_layer_lists": list(structure.per_layer_lists),
        "dtypes": _group(metas.values(), lambda meta: meta.dtype),
        "roles": _group(metas.values(), lambda meta: structure.role_of(meta.name)),
        "files": {file.name: file.stat().st_size for file in checkpoint.files},
        "metadata": checkpoint.metadata,
        "odd": [*checkpoint.notes, *map(str, errors), *map(str, warnings)],
    }


def _group(metas: Iterable[TensorMeta], key: Any) -> dict[str, dict[str, int]]:
    """Tensors, parameters and bytes by some key, largest first."""
    groups: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "parameters": 0, "bytes": 0})
    for meta in metas:
        group = groups[key(meta)]
        group["tensors"] += 1
        group["parameters"] += meta.numel
        group["bytes"] += meta.nbytes
    return dict(sorted(groups.items(), key=lambda item: -item[1]["bytes"]))


def _tensor_row(meta: TensorMeta, structure: Structure) -> dict[str, Any]:
    return {
        "name": meta.name,
        "dtype": meta.dtype,
        "shape": list(meta.shape),
        "bytes": meta.nbytes,
        "role": structure.role_of(meta.name),
        "file": meta.file.name,
    }


def _print(summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    console.print(_overview(summary))
    console.print()
    for title in ("role", "dtype"):
        console.print(_groups(title, summary[f"{title}s"]))
        console.print()
    for remark in summary["odd"]:
        console.print(f"[yellow]odd:[/yellow] {escape(remark)}", soft_wrap=True)
    if rows:
        console.print(_tensor_table(rows))


def _overview(summary: dict[str, Any]) -> Any:
    """What fits in a line each."""
    from rich.markup import escape
    from rich.table import Table

    from smelt.checkpoint import show_bytes

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    files = summary["files"]
    lines: list[tuple[str, str]] = [
        ("model", summary["path"]),
        ("architecture", summary["architecture"] or summary["model_type"] or "not stated (no config.json)"),
        ("parameters", f"{summary['parameters']:,} in {summary['tensors_total']} tensors"),
        ("weights", f"{show_bytes(summary['bytes'])} in {len(files)} file{'s' * (len(files) != 1)}"),
    ]
    for stack in summary["stacks"]:
        keys = ", ".join(stack["config_keys"]) or "not in config"
        label = "layers" if stack["main"] else "more layers"
        lines.append(
            (label, f"{stack['layers']} under {stack['prefix']} ({keys}; {show_bytes(stack['bytes'])})")
        )
    for name, count in summary["vocabulary_rows"].items():
        lines.append(("vocabulary", f"{count:,} rows in {name}"))
    if summary["tied"]:
        lines.append(("head", "tied to the embedding"))
    if summary["per_layer_lists"]:
        lines.append(("per layer", ", ".join(summary["per_layer_lists"])))
    for label, text in lines:
        table.add_row(label, escape(str(text)))
    return table


def _groups(title: str, groups: dict[str, dict[str, int]]) -> Any:
    from rich.table import Table

    from smelt.checkpoint import show_bytes

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(title, style="bold")
    for column in ("tensors", "parameters", "bytes"):
        table.add_column(column, justify="right")
    for name, group in groups.items():
        table.add_row(name, str(group["tensors"]), f"{group['parameters']:,}", show_bytes(group["bytes"]))
    return table


def _tensor_table(rows: list[dict[str, Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from smelt.checkpoint import show_bytes

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("tensor", overflow="fold")
    for column in ("role", "dtype", "shape"):
        table.add_column(column)
    table.add_column("bytes", justify="right")
    for row in rows:
        shape = escape(str(row["shape"]))
        table.add_row(escape(row["name"]), row["role"], row["dtype"], shape, show_bytes(row["bytes"]))
    return table
