"""``smelt latent sweep`` and ``smelt latent experiment``: measure blends beside their baselines."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from smelt.latent.sweep import Step, Swept

SWEEP_APP = typer.Typer(name="sweep", help="Measure blends beside their baselines.", no_args_is_help=True)
MODELS, GRID, ANSWERS, MEASURE = "Models", "What to try", "Answers", "What to measure"


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


class Form(StrEnum):
    """How text prompts reach the model."""

    auto = "auto"
    chat = "chat"
    plain = "plain"


Base = Annotated[str, _option(MODELS, "Base model: directory or hub name.", "--base")]
Donor = Annotated[str, _option(MODELS, "Donor model: directory or hub name.", "--donor")]
Dtype = Annotated[str | None, _option(MODELS, "Such as bfloat16; as stored if not given.")]
Device = Annotated[str | None, _option(MODELS, "Such as cuda or cpu; cuda if there is one.")]
Prompts = Annotated[
    Path,
    _option(ANSWERS, "JSONL: prompt or messages; maybe id, answer (scored exactly), skill.", "--prompts"),
]
Out = Annotated[
    Path, typer.Option("--out", help="Directory for rows, tables and plots; running again continues.")
]
Limit = Annotated[int | None, _option(ANSWERS, "Only the first prompts.", min=1)]
MaxTokens = Annotated[int, _option(ANSWERS, "Longest answer, in tokens.", min=1)]
Temperature = Annotated[float, _option(ANSWERS, "0 is greedy.", min=0.0)]
Seed = Annotated[int, _option(ANSWERS, "Every row draws from this and its id.", min=0)]
PromptForm = Annotated[Form, _option(ANSWERS, "Text prompts through the chat template or not.", "--format")]
System = Annotated[str, _option(ANSWERS, "System prompt.")]
Batch = Annotated[int, _option(ANSWERS, "Prompts answered together.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]


@SWEEP_APP.command()
def sweep(
    base: Base,
    donor: Donor,
    prompts: Prompts,
    out: Out,
    sites: Annotated[
        str, _option(GRID, "Layers, shares of the depth or last; several at once with +: 0,5+0.75n,last.")
    ] = "0.25n,0.5n,0.75n,last",
    ops: Annotated[
        str, _option(GRID, "lerp, slerp, regmean, regmean:penalty, regmean:gram, task_vector.")
    ] = "lerp,slerp,regmean",
    ratios: Annotated[str, _option(GRID, "Shares of the donor.")] = ".25,.5,.75",
    lambdas: Annotated[str, _option(GRID, "λ of regmean; the same numbers as --ratios if not given.")] = "",
    scopes: Annotated[str, _option(GRID, "Tokens that are blended: all, generated.")] = "all",
    report: Annotated[
        Path | None, _option(ANSWERS, "Other prompts, on which the best cells are measured again.")
    ] = None,
    limit: Limit = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    form: PromptForm = Form.auto,
    system: System = "",
    batch: Batch = 8,
    metrics: Annotated[bool, _option(MEASURE, "CKA, midness and arcs at the final state.")] = True,
    answers: Annotated[bool, _option(MEASURE, "Generate answers; scores and costs need them.")] = True,
    layerwise: Annotated[bool, _option(MEASURE, "Metrics at every layer too.", "--layerwise")] = False,
    metric_prompts: Annotated[int, _option(MEASURE, "Prompts whose states are compared.", min=1)] = 64,
    plots: Annotated[bool, _option(MEASURE, "Draw heat maps and curves.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is there.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try sites, operators and ratios, with every baseline beside them; tables, plots, one row a cell.

    Running again continues: a cell of the same models, prompts and settings is not measured twice.

    Example: smelt latent sweep --base b/ --donor d/ --prompts q.jsonl --sites 0,0.5n,last --out sweep/
    """
    from smelt.latent.sweep_data import read_samples
    from smelt.latent.sweep_grid import Grid, parse_list, parse_numbers
    from smelt.latent.sweep_measure import How

    grid = Grid(
        parse_list(sites),
        parse_list(ops),
        parse_numbers(ratios, "--ratios"),
        parse_numbers(lambdas, "--lambdas"),
        parse_list(scopes),
    )
    how = How(
        max_tokens,
        temperature,
        1.0,
        seed,
        str(form),
        system,
        answers,
        metrics,
        layerwise,
        metric_prompts,
        batch,
    )
    samples = read_samples(prompts, limit)
    others = read_samples(report, limit) if report else None
    from smelt.latent.sweep import ROWS, run_sweep

    arena = _load(base, donor, dtype, device)
    if fresh:
        (out / ROWS).unlink(missing_ok=True)
    with progress(json or quiet) as on_change:
        swept = run_sweep(arena, samples, grid, out, how, report=others, on_change=on_change)
    _finish(swept, out, plots, json, quiet)


def _load(base: str, donor: str, dtype: str | None, device: str | None) -> Any:
    from smelt.latent.baselines import Arena

    return Arena.load(base, donor, dtype=dtype, device=device)


def _finish(swept: Swept, out: Path, plots: bool, as_json: bool, quiet: bool) -> None:
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
