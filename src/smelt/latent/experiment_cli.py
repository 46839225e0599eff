"""``smelt latent experiment a | b | c``: the published experiments on any two models."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from smelt.latent.sweep_output import finish, write_all

if TYPE_CHECKING:
    from smelt.latent.experiments import Duel

JUDGING = "Judge"
EXPERIMENT_APP = typer.Typer(
    name="experiment",
    help="The published experiments on any two models: a answers, b similarity, c layers and ratios.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
Ops = Annotated[str, option(GRID, "lerp, slerp, regmean, regmean:penalty, task_vector.")]
Share = Annotated[float, option(GRID, "Share of the donor; regmean gets the λ of this share.")]
Plots = Annotated[bool, option(MEASURE, "Draw plots.")]


@EXPERIMENT_APP.command("a")
def answers(
    base: Base,
    donor: Donor,
    prompts: Prompts,
    out: Out,
    layer: Annotated[str, option(GRID, "Where to blend.")] = "0.75n",
    beta: Share = 0.5,
    ops: Ops = "lerp,slerp,regmean",
    limit: Limit = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    form: PromptForm = Form.auto,
    system: System = "",
    batch: Batch = 8,
    judge_model: Annotated[
        str | None, option(JUDGING, "Have this model judge latent against weight.")
    ] = None,
    base_url: Annotated[
        str | None, option(JUDGING, "OpenAI-compatible endpoint, usually ending in /v1.")
    ] = None,
    api_key_env: Annotated[
        str, option(JUDGING, "Environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    max_requests: Annotated[
        int | None, option(JUDGING, "Send at most so many requests a pair now.", min=0)
    ] = None,
    plots: Plots = True,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Each operator as a blend against the same operator on weights: answers, exact scores, a judge.

    Example: smelt latent experiment a --base b/ --donor d/ --prompts questions.jsonl --out a/
    """
    from smelt.latent.sweep_data import read_samples
    from smelt.latent.sweep_grid import parse_list
    from smelt.latent.sweep_measure import How

    how = How(max_tokens, temperature, 1.0, seed, str(form), system, batch=batch)
    samples, wanted = read_samples(prompts, limit), parse_list(ops)
    from smelt.latent.experiments import experiment_a, judge_duels

    arena = load_arena(base, donor, dtype, device)
    with progress(json or quiet) as on_change:
        swept, duels = experiment_a(
            arena, samples, out, how, site=layer, share=beta, ops=wanted, on_change=on_change
        )
    if judge_model:
        duels = judge_duels(
            duels, out, judge_model, base_url=base_url, api_key_env=api_key_env, max_requests=max_requests
        )
    write_all(swept, out, plots)
    _show_duels(duels, out, judge_model, json, quiet)


def _show_duels(
    duels: Sequence[Duel], out: Path, judge_model: str | None, as_json: bool, quiet: bool
) -> None:
    from smelt.evaluate._text import write_atomically
    from smelt.latent.experiments import duel_lines, judge_command

    page = ["# Latent against weight merging", "", *duel_lines(duels), ""]
    if not judge_model:
        page += ["To have a model judge them:", "", *(f"    {judge_command(duel)}" for duel in duels), ""]
    write_atomically(out / "experiment_a.md", "\n".join(page))
    data = [{**duel.to_dict(), "judge_command": judge_command(duel)} for duel in duels]
    _say({"duels": data, "page": str(out / "experiment_a.md")}, page, as_json, quiet)


def _say(data: dict[str, Any], page: Sequence[str], as_json: bool, quiet: bool) -> None:
    if as_json:
        typer.echo(json_module.dumps(data, ensure_ascii=False))
    elif not quiet:
        typer.echo("\n".join(page))


@EXPERIMENT_APP.command("b")
def similarity(
    base: Base,
    donor: Donor,
    prompts: Prompts,
    out: Out,
    sites: Annotated[
        str, option(GRID, "Sites of the blends; the published layers, scaled, by default.")
    ] = "",
    beta: Share = 0.5,
    ops: Ops = "lerp,slerp,regmean",
    limit: Limit = None,
    metric_prompts: Annotated[int, option(MEASURE, "Prompts whose states are compared.", min=1)] = 64,
    form: PromptForm = Form.auto,
    system: System = "",
    batch: Batch = 8,
    plots: Plots = True,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """CKA, midness and arcs of blends and weight merges, at every layer.

    Example: smelt latent experiment b --base b/ --donor d/ --prompts questions.jsonl --out b-out/
    """
    from smelt.latent.sweep_data import read_samples
    from smelt.latent.sweep_grid import parse_list
    from smelt.latent.sweep_measure import How

    how = How(form=str(form), system=system, batch=batch, metric_prompts=metric_prompts)
    samples = read_samples(prompts, limit)
    from smelt.latent.experiments import experiment_b

    arena = load_arena(base, donor, dtype, device)
    with progress(json or quiet) as on_change:
        swept, table = experiment_b(
            arena,
            samples,
            out,
            how,
            sites=parse_list(sites),
            share=beta,
            ops=parse_list(ops),
            on_change=on_change,
        )
    write_all(swept, out, False)
    _show_similarity(swept.rows, table, out, plots, json, quiet)


def _show_similarity(rows: Any, table: Any, out: Path, plots: bool, as_json: bool, quiet: bool) -> None:
    from smelt.evaluate._text import write_atomically
    from smelt.latent.experiments import similarity_lines
    from smelt.latent.sweep_tables import to_csv

    write_atomically(out / "layerwise.csv", to_csv(table, list(table[0])))
    drawn: dict[str, str] = {}
    if plots:
        from smelt.analyse.similarity_figures import draw_similarity

        drawn = draw_similarity(table, out)
    lines = similarity_lines(rows)
    page = ["# Similarity to the sources", "", "Final state, mean over sites (range).", "", *lines, ""]
    shown = [f"![{caption}]({name})\n" for name, caption in drawn.items()]
    write_atomically(out / "experiment_b.md", "\n".join([*page, *shown]))
    data = {
        "layerwise": str(out / "layerwise.csv"),
        "page": str(out / "experiment_b.md"),
        "plots": list(drawn),
    }
    _say(data, page, as_json, quiet)


@EXPERIMENT_APP.command("c")
def layers_and_ratios(
    base: Base,
    donor: Donor,
    prompts: Prompts,
    out: Out,
    ops: Ops = "lerp,slerp,regmean",
    every_layer: Annotated[
        bool, option(GRID, "All layers, not the seven published ones.", "--every-layer")
    ] = False,
    report: Annotated[
        Path | None, option(ANSWERS, "Other prompts, on which the best cells are measured again.")
    ] = None,
    limit: Limit = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    form: PromptForm = Form.auto,
    system: System = "",
    batch: Batch = 8,
    plots: Plots = True,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Layers 0 to n - 1 by ratios 1/4, 1/2, 3/4 for each operator, with all baselines.

    Example: smelt latent experiment c --base b/ --donor d/ --prompts pick.jsonl --report rest.jsonl --out c/
    """
    from smelt.latent.sweep_data import read_samples
    from smelt.latent.sweep_grid import parse_list
    from smelt.latent.sweep_measure import How

    how = How(max_tokens, temperature, 1.0, seed, str(form), system, batch=batch)
    samples, others = read_samples(prompts, limit), read_samples(report, limit) if report else None
    from smelt.latent.experiments import experiment_c

    arena = load_arena(base, donor, dtype, device)
    with progress(json or quiet) as on_change:
        swept = experiment_c(
            arena, samples, out, how, ops=parse_list(ops), every_layer=every_layer, report=others,
            on_change=on_change,
        )  # fmt: skip
    finish(swept, out, plots, json, quiet)
