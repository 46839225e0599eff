"""Reports: figures as JSON, and as a page that shows how far the judge can be trusted beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smelt.core.errors import EvaluationError, did_you_mean
from smelt.evaluate._text import read_text, write_atomically
from smelt.evaluate.bench import BenchResult
from smelt.evaluate.comparison import Comparison
from smelt.evaluate.costs import Cost
from smelt.evaluate.intervals import Estimate, detectable_effect
from smelt.evaluate.outcomes import Conduct
from smelt.evaluate.panel import Panel
from smelt.evaluate.ratings import Ratings

Json = dict[str, Any]


def percent(estimate: Estimate) -> str:
    """A share with its interval.

    >>> percent(Estimate(0.5, 0.4, 0.6, 10, "wilson"))
    '50.0 % [40.0, 60.0]'
    """
    if estimate.value is None:
        return "none"
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:.1f} %"
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A markdown table."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *rows]]
    return [
        "| " + " | ".join(cells[0]) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(row) + " |" for row in cells[1:]),
        "",
    ]


def load_bench_reports(paths: Sequence[Path], judges: Sequence[str]) -> dict[str, Json]:
    """Reports of ``judge-bench`` by judge; each must be about one of the judges used."""
    found: dict[str, Json] = {}
    for path in paths:
        try:
            report = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise EvaluationError(f"not JSON: {error.msg}", where=str(path)) from None
        if not isinstance(report, dict) or report.get("kind") != "judge-bench":
            raise EvaluationError("not a judge-bench report", where=str(path), expected="the .json it wrote")
        name = report["settings"]["judge"]
        if name not in judges:
            advice = did_you_mean(name, list(judges))
            raise EvaluationError(
                f"is about the judge {name!r}, which is not used here", where=str(path), fix=advice
            )
        found[name] = report
    return found


def trust_lines(settings: Json, bench: Json | None) -> list[str]:
    """How often this judge is right, or that nobody knows."""
    name = settings["judge"]
    if bench is None:
        command = f"smelt latent judge-bench --judge-model {name}"
        return [
            f"Accuracy of {name} where the right answer is known: **not measured** (run `{command}`).",
            "",
        ]
    accuracy = Estimate(**bench["result"]["accuracy"])
    same = bench["settings"]["template_hash"] == settings["template_hash"]
    how = "" if same else f"; measured with template {bench['settings']['template']}, not the one used here"
    split = bench.get("split") or "all"
    line = f"Accuracy of {name} on JudgeBench ({split}): **{percent(accuracy)}**, n = {accuracy.n}{how}."
    consistent = Estimate(**bench["result"]["conduct"]["consistency"])
    return [f"{line} Same verdict in both orders there: {percent(consistent)}.", ""]


def conduct_rows(conduct: Conduct) -> list[tuple[str, str]]:
    """How the judge behaved, as table rows."""
    reasons = ", ".join(f"{name} {count}" for name, count in conduct.invalid_reasons.items())
    total = max(1, conduct.judgements)
    rows = [
        ("judgements", str(conduct.judgements)),
        ("ties", f"{conduct.ties} ({100 * conduct.ties / total:.1f} %)"),
        (
            "invalid",
            f"{conduct.invalid} ({100 * conduct.invalid / total:.1f} %)"
            + (f": {reasons}" if reasons else ""),
        ),
        ("chose the first shown", f"{percent(conduct.first_position)}, p = {conduct.first_position_p:.2g}"),
        (
            "first both times / second both times",
            f"{conduct.always_first} / {conduct.always_second}, p = {conduct.flip_p:.2g}",
        ),
        ("same verdict in both orders", percent(conduct.consistency)),
    ]
    if conduct.mean_mass is not None:
        rows.append(("probability on the allowed letters", f"{100 * conduct.mean_mass:.1f} %"))
    return rows


def comparison_lines(name: str, other: str, comparison: Comparison) -> list[str]:
    """The tables of one comparison by one judge."""
    c = comparison
    lines = table(
        [f"{name} against {other}", ""],
        [
            ("**win rate** (both orders, ties half)", f"**{percent(c.win_rate)}**, n = {c.win_rate.n}"),
            ("the same, Wilson", percent(c.win_rate_wilson)),
            ("the same, pairs without a verdict as half", percent(c.win_rate_invalid_half)),
            ("at equal length", percent(c.length_controlled)),
            (
                "questions won / tied / lost",
                f"{c.wins} / {c.ties} / {c.losses}, sign test p = {c.sign_p:.2g}",
            ),
            ("pairs", ", ".join(f"{count} {state}" for state, count in sorted(c.states.items()))),
            ("length difference", _characters(c.mean_length_difference)),
            ("decided for the longer answer", percent(c.longer_won)),
            ("answers shortened for the judge", f"{c.shortened} of {2 * c.pairs}"),
            ("smallest effect this n shows (80 % power)", _points(c.detectable)),
            *conduct_rows(c.conduct),
        ],
    )
    if not c.complete:
        lines = ["**Not complete**: run the same command again to judge the rest.", "", *lines]
    if len(c.sources) > 1:
        rows = [
            (row.source or "(none)", row.win_rate.n, percent(row.win_rate),
             f"{row.wins}/{row.ties}/{row.losses}", f"{row.p:.2g}", f"{row.p_holm:.2g}")
            for row in c.sources
        ]  # fmt: skip
        lines += table(["source", "n", "win rate", "won/tied/lost", "p", "p (Holm)"], rows)
    return lines


def _characters(value: float | None) -> str:
    return "none" if value is None else f"{value:+.0f} characters on average"


def _points(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} points"


def panel_lines(name: str, other: str, panel: Panel) -> list[str]:
    """One row a judge, the vote, and how far judges agree."""
    vote = panel.majority
    rows: list[Sequence[object]] = [
        (judge, percent(c.win_rate), f"{c.wins}/{c.ties}/{c.losses}", percent(c.conduct.consistency))
        for judge, c in panel.judges.items()
    ]
    rows.append(
        (
            "**majority**",
            percent(vote.win_rate),
            f"{vote.wins}/{vote.ties}/{vote.losses}",
            f"{vote.split} split",
        )
    )
    lines = [
        f"## Panel: {name} against {other}",
        "",
        *table(["judge", "win rate", "won/tied/lost", "consistent"], rows),
    ]
    agreement = [
        (" and ".join(one.judges), percent(one.same), "none" if one.kappa is None else f"{one.kappa:.2f}")
        for one in panel.agreement
    ]
    return lines + table(["judges", "same verdict", "kappa"], agreement)


def rating_lines(ratings: Ratings) -> list[str]:
    """Systems by rating."""
    order = sorted(range(len(ratings.systems)), key=lambda i: -(ratings.rating[i].value or 0.0))
    rows = [
        (
            ratings.systems[i],
            signed(ratings.rating[i]),
            "{}-{}".format(*ratings.rank_range[i]),
            f"{100 * sum(ratings.expected(i, j) for j in order if j != i) / (len(order) - 1):.1f} %",
        )
        for i in order
    ]
    lines = table(["system", "rating (logits)", "rank", "expected score against the others"], rows)
    return [
        *lines,
        f"Being shown first is worth {signed(ratings.position)} logits; ties nu = {signed(ratings.tie)}; "
        f"{ratings.games} judgements.",
        "",
    ]


def signed(estimate: Estimate) -> str:
    """A number with its interval."""
    if estimate.value is None:
        return "none"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.2f}"
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def bench_lines(settings: Json, split: str | None, result: BenchResult) -> list[str]:
    """The page of a judge against labels."""
    lines = [f"# {settings['judge']} on JudgeBench ({split or 'all'})", ""]
    if not result.complete:
        lines += [f"**Not complete**: {result.waiting} pairs wait; run the same command again.", ""]
    lines += table(
        ["", ""],
        [
            ("**accuracy** (both orders)", f"**{percent(result.accuracy)}**, n = {result.accuracy.n}"),
            ("the same, Wilson", percent(result.accuracy_wilson)),
            ("right / wrong / undecided", f"{result.right} / {result.wrong} / {result.undecided}"),
            ("right in each order", percent(result.both_right)),
            (
                "one order alone",
                ", ".join(f"{name} {100 * x:.1f} %" for name, x in result.single_order.items()),
            ),
            *conduct_rows(result.conduct),
        ],
    )
    lines += [
        "Undecided pairs are not right: always choosing the first position scores 0 here, a fair coin 25 %, "
        "and a consistent guess 50 %.",
        "",
    ]
    for title, group in (("skill", result.skills), ("source", result.sources)):
        rows = [(row.name or "(none)", row.accuracy.n, percent(row.accuracy)) for row in group]
        lines += table([title, "n", "accuracy"], rows)
    return lines


def cost_lines(cost: Cost, questions: int) -> list[str]:
    """What a run would send."""
    about = "" if cost.exact else "about "
    lines = [
        f"judgements        {cost.judgements} ({cost.in_file} already in the file)",
        f"requests to send  {cost.requests}",
        f"prompt tokens     {about}{cost.prompt_tokens}",
        f"answer tokens     at most {cost.completion_tokens_at_most}",
    ]
    if cost.price is not None:
        lines.append(f"price             at most {about}{cost.price:.2f}")
    effects = [100 * detectable_effect(questions, sd) for sd in (0.5, 0.32)]
    lines.append(
        f"smallest effect   {effects[0]:.1f} points (every question decided), {effects[1]:.1f} (typical)"
    )
    return lines


def write_report(out: Path, report: Mapping[str, Any], lines: Sequence[str]) -> tuple[Path, Path]:
    """Write ``<out>.report.json`` and ``<out>.report.md`` beside the judgements."""
    paths = out.with_suffix(".report.json"), out.with_suffix(".report.md")
    write_atomically(paths[0], json.dumps(report, indent=2, ensure_ascii=False, default=plain) + "\n")
    write_atomically(paths[1], "\n".join(lines).rstrip() + "\n")
    return paths


def plain(value: Any) -> Any:
    """What json does not know: dataclasses and paths."""
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")
