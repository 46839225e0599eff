"""A progress bar of bytes and tensors for anything that takes longer than a blink."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def merge_progress(tensors: int, show: bool) -> Iterator[Callable[[str, int, int, int], None] | None]:
    """Yields the callback the engine reports to, or None when nothing is to be shown."""
    if not show:
        yield None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description:<7}"), BarColumn(), TextColumn("{task.fields[tensors]}"), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, int] = {}
        last = 0.0

        def tell(stage: str, done: int, total: int, finished: int) -> None:
            nonlocal last
            now = time.monotonic()
            if stage in tasks and now - last < 0.1 and done < total:
                return
            last = now
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or 1, tensors="")
            shown = f"{finished}/{tensors} tensors" if stage == "merge" else ""
            bar.update(tasks[stage], completed=done, tensors=shown)  # type: ignore[arg-type]

        yield tell
