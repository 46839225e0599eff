"""``smelt verify``: read a checkpoint back, every byte once, and say whether it is what it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.cli._options import AllowNonfinite, Threads, cores, print_json

if TYPE_CHECKING:
    from smelt.checkpoint import VerifyReport


def COMMAND(
    path: Annotated[
        Path, typer.Argument(help="Model directory, or one file of weights.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    threads: Threads = None,
    allow_nonfinite: AllowNonfinite = False,
    cold: Annotated[
        bool, typer.Option("--cold", help="Read from the disk itself, not from the kernel's cache of it.")
    ] = False,
) -> None:
    """Check structure, finite values, agreement with config.json, and the digests a merge recorded.

    Exit code 1 when anything disagrees; every tensor concerned is named.

    Example: smelt verify ./merged
    """
    from smelt.arch import check_agreement
    from smelt.checkpoint import open_checkpoint, verify_directory

    if not path.exists():
        open_checkpoint(path)  # raises, and knows the nearest name
    with _progress(path, hidden=as_json) as advance:
        report = verify_directory(
            path,
            threads=threads or cores(),
            cold=cold,
            allow_nonfinite=allow_nonfinite,
            agreement=check_agreement,
            on_progress=advance,
        )
    if as_json:
        print_json(as_data(report))
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def as_data(report: VerifyReport) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "path": str(report.path),
        "ok": report.ok,
        "tensors": report.tensors,
        "parameters": report.parameters,
        "bytes": report.bytes,
        "files": report.files,
        "seconds": round(report.seconds, 3),
        "dtypes": dict(report.dtypes),
        "compared_with_provenance": report.compared,
        "problems": [str(problem) for problem in report.problems],
        "warnings": [str(problem) for problem in report.warnings],
        "notes": list(report.notes),
        "digests": dict(report.digests),
    }


@contextmanager
def _progress(path: Path, *, hidden: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar over the bytes of the weights, on stderr; yields the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=hidden or not console.is_terminal
    ) as bar:
        task = bar.add_task("verify", total=_weight_bytes(path))
        yield lambda count: bar.advance(task, count)


def _weight_bytes(path: Path) -> int | None:
    """About how much there is to read; None when the checkpoint does not even open."""
    from smelt.checkpoint import open_checkpoint
    from smelt.core.errors import CheckpointError

    try:
        with open_checkpoint(path) as checkpoint:
            return sum(meta.nbytes for meta in checkpoint.tensors.values())
    except CheckpointError:
        return None


def _print(report: VerifyReport) -> None:
    from rich.console import Console

    from smelt.checkpoint import show_bytes

    console = Console(soft_wrap=True, highlight=False)
    for note in report.notes:
        console.print(f"[dim]note:[/dim] {_plain(note)}")
    for problem in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {_plain(problem)}")
    for problem in report.problems:
        console.print(f"[red]problem:[/red] {_plain(problem)}")
    rate = report.bytes / report.seconds if report.seconds else 0
    read = f"{report.tensors} tensors, {show_bytes(report.bytes)} in {report.seconds:.2f} s"
    compared = f", {report.compared} compared with smelt.json" if report.compared else ""
    console.print(f"read {read} ({show_bytes(rate)}/s){compared}")
    verdict = "[green]sound[/green]" if report.ok else f"[red]{len(report.problems)} problems[/red]"
    console.print(f"{_plain(report.path)}: {verdict}")


def _plain(text: object) -> str:
    """Text that may hold brackets, safe from being read as markup."""
    from rich.markup import escape

    return escape(str(text))
