"""Options and the progress bar that sweeps and experiments share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from smelt.latent.baselines import Arena
    from smelt.latent.sweep import Step

MODELS, GRID, ANSWERS, MEASURE = "Models", "What to try", "Answers", "What to measure"


def option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


class Form(StrEnum):
    """How text prompts reach the model."""

    auto = "auto"
    chat = "chat"
    plain = "plain"


Base = Annotated[str, option(MODELS, "Base model: directory or hub name.", "--base")]
Donor = Annotated[str, option(MODELS, "Donor model: directory or hub name.", "--donor")]
Dtype = Annotated[str | None, option(MODELS, "Such as bfloat16; as stored if not given.")]
Device = Annotated[str | None, option(MODELS, "Such as cuda or cpu; cuda if there is one.")]
Prompts = Annotated[
    Path,
    option(ANSWERS, "JSONL: prompt or messages; maybe id, answer (scored exactly), skill.", "--prompts"),
]
Out = Annotated[
    Path, typer.Option("--out", help="Directory for rows, tables and plots; running again continues.")
]
Limit = Annotated[int | None, option(ANSWERS, "Only the first prompts.", min=1)]
MaxTokens = Annotated[int, option(ANSWERS, "Longest answer, in tokens.", min=1)]
Temperature = Annotated[float, option(ANSWERS, "0 is greedy.", min=0.0)]
Seed = Annotated[int, option(ANSWERS, "Every row draws from this and its id.", min=0)]
PromptForm = Annotated[Form, option(ANSWERS, "Text prompts through the chat template or not.", "--format")]
System = Annotated[str, option(ANSWERS, "System prompt.")]
Batch = Annotated[int, option(ANSWERS, "Prompts answered together.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]


def load_arena(base: str, donor: str, dtype: str | None, device: str | None) -> Arena:
    """Both models, loaded once."""
    from smelt.latent.baselines import Arena

    return Arena.load(base, donor, dtype=dtype, device=device)


@contextmanager
def progress(hidden: bool) -> Iterator[Callable[[Step], None]]:
    """A bar over the cells, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[cell]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as bar:
        task = bar.add_task("measuring", total=None, cell="")

        def on_change(step: Step) -> None:
            bar.update(task, total=step.total, completed=step.done, cell=step.name)

        yield on_change
