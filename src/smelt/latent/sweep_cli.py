"""``smelt latent sweep`` and ``smelt latent experiment``: measure blends beside their baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smelt.latent.experiment_cli import EXPERIMENT_APP
from smelt.latent.sweep_options import (
    ANSWERS,
    GRID,
    MEASURE,
    Base,
    Batch,
    Device,
    Donor,
    Dtype,
    Form,
    Json,
    Limit,
    MaxTokens,
    Out,
    PromptForm,
    Prompts,
    Quiet,
    Seed,
    System,
    Temperature,
    load_arena,
    option,
    progress,
)  # fmt: skip
from smelt.latent.sweep_output import finish

SWEEP_APP = typer.Typer(name="sweep", help="Measure blends beside their baselines.", no_args_is_help=True)
SWEEP_APP.add_typer(EXPERIMENT_APP, name="experiment")


Sites = Annotated[
    str, option(GRID, "Layers, shares of the depth or last; several at once with +: 0,5+0.75n,last.")
]
Ops = Annotated[str, option(GRID, "lerp, slerp, regmean, regmean:penalty, regmean:gram, task_vector.")]
Ratios = Annotated[str, option(GRID, "Shares of the donor.")]
Lambdas = Annotated[str, option(GRID, "λ of regmean; the same numbers as --ratios if not given.")]
Scopes = Annotated[str, option(GRID, "Tokens that are blended: all, generated.")]
Report = Annotated[Path | None, option(ANSWERS, "Other prompts, on which the best cells are measured again.")]
Metrics = Annotated[bool, option(MEASURE, "CKA, midness and arcs at the final state.")]
Answers = Annotated[bool, option(MEASURE, "Generate answers; scores and costs need them.")]
Layerwise = Annotated[bool, option(MEASURE, "Metrics at every layer too.", "--layerwise")]
MetricPrompts = Annotated[int, option(MEASURE, "Prompts whose states are compared.", min=1)]
Plots = Annotated[bool, option(MEASURE, "Draw heat maps and curves.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what is there.")]


@SWEEP_APP.command()
def sweep(
    base: Base,
    donor: Donor,
    prompts: Prompts,
    out: Out,
    sites: Sites = "0.25n,0.5n,0.75n,last",
    ops: Ops = "lerp,slerp,regmean",
    ratios: Ratios = ".25,.5,.75",
    lambdas: Lambdas = "",
    scopes: Scopes = "all",
    report: Report = None,
    limit: Limit = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    form: PromptForm = Form.auto,
    system: System = "",
    batch: Batch = 8,
    metrics: Metrics = True,
    answers: Answers = True,
    layerwise: Layerwise = False,
    metric_prompts: MetricPrompts = 64,
    plots: Plots = True,
    fresh: Fresh = False,
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

    numbers = parse_numbers(ratios, "--ratios"), parse_numbers(lambdas, "--lambdas")
    grid = Grid(parse_list(sites), parse_list(ops), *numbers, parse_list(scopes))
    how = How(max_tokens, temperature, 1.0, seed, str(form), system, answers, metrics, layerwise,
              metric_prompts, batch)  # fmt: skip
    samples = read_samples(prompts, limit)
    others = read_samples(report, limit) if report else None
    from smelt.latent.sweep import ROWS, run_sweep

    arena = load_arena(base, donor, dtype, device)
    if fresh:
        (out / ROWS).unlink(missing_ok=True)
    with progress(json or quiet) as on_change:
        swept = run_sweep(arena, samples, grid, out, how, report=others, on_change=on_change)
    finish(swept, out, plots, json, quiet)
