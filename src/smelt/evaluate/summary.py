"""From a finished run to its report: a judge, a panel, many systems, exact answers, labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from smelt.evaluate.bench import BenchResult, bench_outcomes
from smelt.evaluate.comparison import Comparison, ExactComparison, compare_exact, compare_outcomes
from smelt.evaluate.extract import score_exact
from smelt.evaluate.outcomes import Outcome
from smelt.evaluate.panel import Panel, judge_panel
from smelt.evaluate.ratings import Game, Ratings, fit_ratings
from smelt.evaluate.report import (
    Json,
    bench_lines,
    comparison_lines,
    panel_lines,
    percent,
    rating_lines,
    table,
    trust_lines,
)
from smelt.evaluate.runner import Progress
from smelt.evaluate.session import Material, Plan, Results, same_settings

RATING_DRAWS = 1000
Names = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """Everything about two or more systems. Keys are names of systems and of judges."""

    systems: tuple[str, ...]
    settings: dict[str, Json]  # by judge
    benches: Mapping[str, Json]
    comparisons: dict[Names, dict[str, Comparison]]
    panels: dict[Names, Panel]  # where several judges were asked
    exact: dict[Names, ExactComparison]
    ratings: dict[str, Ratings]  # by judge, where there are more than two systems
    statistics: Json
    progress: Progress

    @property
    def complete(self) -> bool:
        """Whether every judgement is there."""
        return all(one.complete for group in self.comparisons.values() for one in group.values())

    def as_json(self) -> Json:
        """Plain data: what ``.report.json`` holds."""

        def keyed(found: Mapping[Names, Any], what: str) -> list[Json]:
            return [{"a": names[0], "b": names[1], what: _plain(value)} for names, value in found.items()]

        return {
            "kind": "comparison",
            "complete": self.complete,
            "systems": list(self.systems),
            "judges": [
                {"settings": settings, "judge_bench": self.benches.get(name)}
                for name, settings in self.settings.items()
            ],
            "comparisons": keyed(self.comparisons, "by_judge"),
            "panels": keyed(self.panels, "panel"),
            "exact": keyed(self.exact, "result"),
            "ratings": _plain(self.ratings),
            "statistics": self.statistics,
            "run": self.progress.as_row(),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def comparison_report(
    material: Material, plan: Plan, results: Results, benches: Mapping[str, Json] | None = None
) -> ComparisonReport:
    """All figures of a run over two or more systems."""
    how = {"draws": plan.draws, "seed": plan.seed}
    comparisons = {
        names: {judge: compare_outcomes(outcomes, **how) for judge, outcomes in group.items()}
        for names, group in results.outcomes.items()
    }
    panels = {
        names: judge_panel(group, **how) for names, group in results.outcomes.items() if len(plan.judges) > 1
    }
    return ComparisonReport(
        systems=material.systems,
        settings={
            judge.model: same_settings(judge) | {"endpoint": plan.endpoint.url} for judge in plan.judges
        },
        benches=benches or {},
        comparisons=comparisons,
        panels=panels,
        exact=_exact(material),
        ratings=_ratings(material, plan, results) if len(material.systems) > 2 else {},
        statistics={**how, "level": 0.95, "scoring": plan.scoring},
        progress=results.progress,
    )


def _exact(material: Material) -> dict[Names, ExactComparison]:
    gold = material.gold
    found = {}
    for a, b in material.pairings() if gold else ():
        scores = score_exact(material.responses[a], material.responses[b], gold)
        found[a, b] = compare_exact(scores.a, scores.b, scores.unread_a, scores.unread_b)
    return found


def _ratings(material: Material, plan: Plan, results: Results) -> dict[str, Ratings]:
    found = {}
    for judge in plan.judges:
        games = [
            game
            for (a, b), group in results.outcomes.items()
            for outcome in group[judge.model]
            for game in outcome_games(a, b, outcome)
        ]
        if {name for game in games for name in (game.first, game.second)} == set(material.systems):
            found[judge.model] = fit_ratings(games, draws=RATING_DRAWS, seed=plan.seed)
    return found


def outcome_games(a: str, b: str, outcome: Outcome) -> list[Game]:
    """The judgements of one pair as games; probabilities and grades become win, tie or loss."""
    if outcome.state == "identical":  # nobody judged it: no game was played
        return []
    found = []
    for first, second, value in ((a, b, outcome.a_first), (b, a, _other(outcome.b_first))):
        if value is not None:
            whole = 0.5 if value == 0.5 else float(value > 0.5)
            found.append(Game(first, second, whole, outcome.cluster, outcome.source))
    return found


def _other(value: float | None) -> float | None:
    return None if value is None else 1.0 - value


def comparison_page(report: ComparisonReport) -> list[str]:
    """The report as markdown."""
    how = report.statistics
    lines = [f"# {' against '.join(report.systems)}", ""]
    for name, settings in report.settings.items():
        lines += [f"## Judge {name}, template {settings['template']}", ""]
        lines += trust_lines(settings, report.benches.get(name))
        if name in report.ratings:
            lines += rating_lines(report.ratings[name])
        for (a, b), group in report.comparisons.items():
            lines += comparison_lines(a, b, group[name])
    for (a, b), panel in report.panels.items():
        lines += panel_lines(a, b, panel)
    if report.exact:
        lines += _exact_lines(report.exact)
    lines += [
        "A judge says which answer it prefers, not which one is right. Intervals are 95 %; the bootstrap "
        f"draws questions within their source ({how['draws']} draws, seed {how['seed']}).",
        "",
    ]
    return lines


def _exact_lines(exact: Mapping[Names, ExactComparison]) -> list[str]:
    rows = [
        (f"{a} / {b}", one.accuracy_a.n, percent(one.accuracy_a), percent(one.accuracy_b),
         f"{one.only_a} / {one.only_b}", f"{one.p:.2g}", f"{one.unread_a} / {one.unread_b}")
        for (a, b), one in exact.items()
    ]  # fmt: skip
    head = [
        "systems",
        "n",
        "right (first)",
        "right (second)",
        "right alone",
        "p (McNemar)",
        "without an exact answer",
    ]
    return ["## Exact answers", "", *table(head, rows)]


def bench_report(plan: Plan, results: Results, data: str, split: str | None) -> Json:
    """The report of a judge against labels, as plain data."""
    judge = plan.judges[0]
    outcomes = next(iter(results.outcomes.values()))[judge.model]
    result = bench_outcomes(outcomes, draws=plan.draws, seed=plan.seed)
    return {
        "kind": "judge-bench",
        "complete": result.complete,
        "data": data,
        "split": split,
        "settings": same_settings(judge) | {"endpoint": plan.endpoint.url},
        "result": result,
        "statistics": {"draws": plan.draws, "seed": plan.seed, "level": 0.95},
        "run": results.progress.as_row(),
    }


def bench_page(report: Json) -> list[str]:
    """That report as markdown."""
    result: BenchResult = report["result"]
    return bench_lines(report["settings"], report["split"], result)
