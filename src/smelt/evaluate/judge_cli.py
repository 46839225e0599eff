"""Commands that judge: two systems, many systems, the judge itself, and old response files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.core.errors import EvaluationError
from smelt.evaluate.judge_options import JudgeOptions, with_judge_options

if TYPE_CHECKING:
    from smelt.evaluate.responses import Pair
    from smelt.evaluate.runner import Progress
    from smelt.evaluate.session import Material, Plan, Results

INCOMPLETE = 3  # exit code: what there is is saved, the same command continues

Questions = Annotated[
    str | None,
    typer.Option(
        "--questions", help="JSONL of id, prompt (source, gold), or JudgeBench data, that was answered."
    ),
]
Split = Annotated[str | None, typer.Option("--split", help="JudgeBench split: gpt or claude.")]
Overlap = Annotated[
    bool, typer.Option("--exclude-overlap", help="Leave out questions that are in the other split too.")
]
BenchReports = Annotated[
    list[Path] | None,
    typer.Option(
        "--bench-report", help="Report of judge-bench, shown beside the result; once for each judge."
    ),
]


@with_judge_options
def judge(
    path_a: Annotated[Path, typer.Option("--path-a", help="Answers of A: JSONL, or an old pickled list.")],
    path_b: Annotated[Path, typer.Option("--path-b", help="Answers of B to the same prompts.")],
    options: JudgeOptions,
    name_a: Annotated[str | None, typer.Option(help="What to call A.")] = None,
    name_b: Annotated[str | None, typer.Option(help="What to call B.")] = None,
    questions: Questions = None,
    split: Split = None,
    exclude_overlap: Overlap = False,
    bench_report: BenchReports = None,
    reverse_order: Annotated[
        bool, typer.Option("--reverse-order", hidden=True, help="Both orders are always judged.")
    ] = False,
) -> None:
    """Which of two systems answers better: every pair in both orders, with intervals.

    Running again continues: what was judged is not asked again. Exit code 3: not all could be judged yet.

    Example: smelt latent judge --path-a a.jsonl --path-b b.jsonl --judge-model gpt-4o-mini --out ab.jsonl
    """
    from smelt.evaluate.session import load_material

    files = [(name_a, path_a), (name_b, path_b)]
    material = load_material(files, questions, split, exclude_overlap)
    plan = options.plan(f"judgements/{path_a.stem}-vs-{path_b.stem}.jsonl")
    _compare(material, plan, options, bench_report or [])


@with_judge_options
def compare(
    system: Annotated[
        list[str], typer.Option("--system", help="NAME=PATH (or PATH) of answers; twice or more.")
    ],
    options: JudgeOptions,
    questions: Questions = None,
    split: Split = None,
    exclude_overlap: Overlap = False,
    bench_report: BenchReports = None,
) -> None:
    """Rank several systems: every two are judged in both orders, and rated together.

    Example: smelt latent compare --system base=b.jsonl --system slerp=s.jsonl --system lerp=l.jsonl
    --judge-model gpt-4o-mini --out all.jsonl
    """
    from smelt.evaluate.session import load_material

    if len(system) < 2:
        raise EvaluationError(f"{len(system)} system", where="--system", expected="two or more")
    files = [_named(text) for text in system]
    material = load_material(files, questions, split, exclude_overlap)
    _compare(material, options.plan("judgements/systems.jsonl"), options, bench_report or [])


def _named(text: str) -> tuple[str | None, Path]:
    name, mark, path = text.partition("=")
    return (name, Path(path)) if mark and name and not Path(text).exists() else (None, Path(text))


def _compare(material: Material, plan: Plan, options: JudgeOptions, bench_reports: Sequence[Path]) -> None:
    from smelt.evaluate.report import load_bench_reports, write_report
    from smelt.evaluate.summary import comparison_page, comparison_report

    benches = load_bench_reports(bench_reports, options.judge_model)
    pairs = {names: material.pairs(*names) for names in material.pairings()}
    results = _run(pairs, plan, options)
    if results is None:
        return
    report = comparison_report(material, plan, results, benches)
    page = comparison_page(report)
    paths = write_report(plan.out, report.as_json(), page)
    _show(report.as_json(), page, paths, options)
    if not report.complete:
        _say_incomplete(results.progress)


@with_judge_options
def judge_bench(
    options: JudgeOptions,
    data: Annotated[
        str, typer.Option("--data", help="JudgeBench: local JSONL, parquet, folder, or dataset name.")
    ] = "ScalerLab/JudgeBench",
    split: Split = None,
    exclude_overlap: Overlap = False,
) -> None:
    """How often a judge is right where the right answer is known. Read this before believing a comparison.

    Example: smelt latent judge-bench --data judgebench.jsonl --judge-model gpt-4o-mini --out bench.jsonl
    """
    from smelt.evaluate.report import write_report
    from smelt.evaluate.session import labelled_pairs, load_bench_items
    from smelt.evaluate.summary import bench_page, bench_report

    if len(options.judge_model) != 1:
        raise EvaluationError(
            f"{len(options.judge_model)} judges", where="--judge-model", expected="one at a time"
        )
    pairs = labelled_pairs(load_bench_items(data, split, exclude_overlap))
    plan = options.plan("judgements/judge-bench.jsonl")
    results = _run({("A", "B"): pairs}, plan, options)
    if results is None:
        return
    report = bench_report(plan, results, data, split)
    page = bench_page(report)
    paths = write_report(plan.out, report, page)
    _show(report, page, paths, options)
    if not report["complete"]:
        _say_incomplete(results.progress)


def convert_responses(
    path: Annotated[Path, typer.Argument(help="Old pickled list of answers.")],
    out: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    questions: Annotated[
        str, typer.Option("--questions", help="The questions it answers, in the same order.")
    ],
    split: Split = None,
    model: Annotated[str, typer.Option(help="Name of the system that answered.")] = "",
) -> None:
    """Turn an old pickled list of answers into a response file. Nothing in the pickle is executed.

    Example: smelt latent convert-responses slerp.pkl slerp.jsonl --questions judgebench.jsonl --split claude
    """
    from smelt.evaluate.judgebench import load_questions
    from smelt.evaluate.pickles import convert_pickle

    written = convert_pickle(path, load_questions(questions, split), out, model=model)
    missing = sum(response.text is None for response in written)
    typer.echo(
        f"{len(written)} answers written to {out}" + (f", {missing} of them missing" if missing else "")
    )


def judge_plan(
    effect: Annotated[
        float | None, typer.Option(help="Distance from 1/2 you want to see, such as 0.05.")
    ] = None,
    questions: Annotated[int | None, typer.Option(help="Number of questions you have.", min=1)] = None,
    sd: Annotated[
        float, typer.Option(help="Spread of scores: 0.5 if all are decided, 0.32 is typical.")
    ] = 0.5,
    power: Annotated[float, typer.Option(help="Chance to see the effect if it is there.")] = 0.8,
) -> None:
    """How many questions an effect needs, or what effect so many questions can show.

    Example: smelt latent judge-plan --effect 0.05 --sd 0.32
    """
    from smelt.evaluate.intervals import detectable_effect, questions_needed

    if (effect is None) == (questions is None):
        raise EvaluationError("needs one of --effect and --questions")
    if effect is not None:
        typer.echo(f"{questions_needed(effect, sd, power)} questions")
    else:
        typer.echo(f"{100 * detectable_effect(questions or 1, sd, power):.1f} points")


def _run(
    pairs: Mapping[tuple[str, str], Sequence[Pair]], plan: Plan, options: JudgeOptions
) -> Results | None:
    """Run, or print what a run would cost and return None."""
    from smelt.evaluate.session import cost_of, plan_all, run

    if not options.dry_run:
        with _progress(hidden=options.quiet or options.as_json) as on_change:
            return run(pairs, plan, on_change)
    from smelt.evaluate.costs import bytes_per_four, tokenizer_counter
    from smelt.evaluate.report import cost_lines

    count = tokenizer_counter(options.tokenizer) if options.tokenizer else bytes_per_four
    prices = {"price_in": options.price_in, "price_out": options.price_out}
    cost = cost_of(plan_all(pairs, plan), plan.out, count, **prices)
    most = max(len(group) for group in pairs.values())
    _print(cost, cost_lines(cost, most), options)
    return None


@contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("judging"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    hidden = hidden or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("judging", total=None, note="")

        def on_change(state: Any) -> None:
            trouble = ", ".join(f"{name} {count}" for name, count in state.failures.most_common(2))
            bar.update(task, total=state.total, completed=state.reused + state.done, note=trouble)

        yield on_change


def _show(
    report: Mapping[str, Any], page: Sequence[str], paths: Sequence[Path], options: JudgeOptions
) -> None:
    _print(report, page, options)
    if not options.as_json:
        typer.echo(f"report: {paths[0]}, {paths[1]}", err=True)


def _print(value: Any, lines: Sequence[str], options: JudgeOptions) -> None:
    if options.as_json:
        import json

        from smelt.evaluate.report import plain

        typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=plain))
    elif not options.quiet:
        typer.echo("\n".join(lines).rstrip())


def _say_incomplete(progress: Progress) -> None:
    typer.echo(
        f"not complete: {progress.left} of {progress.total} judgements are missing "
        f"({progress.failed} failed now); the same command continues",
        err=True,
    )
    raise typer.Exit(INCOMPLETE)


JUDGE_APP = typer.Typer(name="judge", help="Judge answers, and judges.", no_args_is_help=True)
JUDGE_APP.command("judge")(judge)
JUDGE_APP.command("compare")(compare)
JUDGE_APP.command("judge-bench")(judge_bench)
JUDGE_APP.command("convert-responses")(convert_responses)
JUDGE_APP.command("judge-plan")(judge_plan)
