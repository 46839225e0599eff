"""``smelt rerun``: make a finished merge again from its own record and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smelt.cli._options import Device, Json, Quiet, Threads, print_json, read_settings


def COMMAND(
    directory: Annotated[Path, typer.Argument(help="A directory made by smelt merge.", show_default=False)],
    threads: Threads = None, device: Device = "cpu", json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Run a merge again from the record in its output and compare every tensor's fingerprint.

    Nothing is written, and the files in DIRECTORY are not read: `smelt verify` compares those with the same
    record. Exit code 1 when a tensor came out differently.

    Example: smelt rerun ./merged
    """
    from smelt.cli._progress import merge_progress
    from smelt.engine.merge import rerun

    settings = read_settings(threads=threads, device=device)
    with merge_progress(0, show=not (json or quiet)) as progress:
        report = rerun(directory, settings, progress)
    if json:
        print_json(
            {**vars(report), "problems": [str(problem) for problem in report.problems], "ok": report.ok}
        )
    elif not quiet:
        for change in report.changed_inputs[:10]:
            typer.echo(f"input changed: {change}")
        for problem in report.problems[:10]:
            typer.echo(f"differs: {problem}")
        typer.echo(
            f"{report.same} of {report.tensors} tensors are the same"
            + (": the record is reproduced" if report.ok else "")
        )
    if not report.ok:
        raise typer.Exit(1)
