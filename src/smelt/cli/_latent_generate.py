"""The part of ``smelt latent generate`` that runs: progress on stderr, a summary at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from smelt.latent.batch import Job, Progress, PromptRow
    from smelt.latent.serving import Served


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for."""

    out: Path
    by: str
    job: Job
    overwrite: bool
    as_json: bool
    quiet: bool


def run_generate(served: Served, rows: Sequence[PromptRow], request: Request) -> None:
    """Answer, and say how it went."""
    from smelt.latent.batch import answer_file

    voice = next(voice for voice in served.voices.values() if voice.kind == request.by)
    if request.overwrite:
        request.out.unlink(missing_ok=True)
    with _bar(request.quiet or request.as_json) as on_change:
        progress = answer_file(served, voice, rows, request.out, request.job, on_change=on_change)
    if request.as_json:
        typer.echo(json.dumps(summary(progress, request.out)))
    elif not request.quiet:
        ends = ", ".join(f"{finish} {count}" for finish, count in sorted(progress.finishes.items()))
        typer.echo(
            f"{progress.done} answers by {voice.name} in {request.out} ({progress.reused} were there): "
            f"{progress.tokens} tokens, {progress.rate:.1f} tokens/s" + (f"; {ends}" if ends else "")
        )


def summary(progress: Progress, out: Path) -> dict[str, Any]:
    """The run as data."""
    return {
        "out": str(out),
        "answered": progress.done,
        "reused": progress.reused,
        "tokens": progress.tokens,
        "tokens_per_second": round(progress.rate, 2),
        "finish_reasons": dict(progress.finishes),
    }


@contextmanager
def _bar(hidden: bool) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as bar:
        task = bar.add_task("answering", total=None, rate="")

        def on_change(state: Any) -> None:
            rate = f"{state.rate:.1f} tokens/s" if state.rate else ""
            bar.update(task, total=state.total, completed=state.reused + state.done, rate=rate)

        yield on_change
