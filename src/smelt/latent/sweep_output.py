"""What a sweep leaves behind and says: tables, plots, a page, and its best cells on the terminal."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from smelt.latent.sweep import Swept


def finish(swept: Swept, out: Path, plots: bool, as_json: bool, quiet: bool) -> None:
    """Write everything, say what was found."""
    files = write_all(swept, out, plots)
    if as_json:
        typer.echo(json_module.dumps(result(swept, files), ensure_ascii=False))
    elif not quiet:
        from rich.console import Console
        from rich.markdown import Markdown

        from smelt.latent.sweep_tables import best_lines

        Console().print(Markdown("\n".join(best_lines(swept))))
        typer.echo(f"{swept.computed} cells measured, {swept.reused} were there; {out / 'report.md'}")


def write_all(swept: Swept, out: Path, plots: bool) -> list[Path]:
    """Tables, plots and the page that shows them."""
    from smelt.evaluate._text import write_atomically
    from smelt.latent.sweep import best_rows
    from smelt.latent.sweep_tables import page, write_tables

    drawn: dict[str, str] = {}
    files = write_tables(swept, out)
    if plots:
        from smelt.analyse.sweep_figures import draw_sweep

        drawn = draw_sweep(swept.rows, swept.report or best_rows(swept.rows), out)
    write_atomically(out / "report.md", page(swept, drawn))
    return [*files, *(out / name for name in drawn), out / "report.md"]


def result(swept: Swept, files: list[Path]) -> dict[str, Any]:
    """The sweep as data for machines."""
    from smelt.latent.sweep import best_rows

    return {
        "computed": swept.computed,
        "reused": swept.reused,
        "best": best_rows(swept.rows),
        "report": swept.report,
        "files": [str(path) for path in files],
    }
