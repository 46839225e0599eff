"""How good is the judge: its verdicts against labels that say which answer is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smelt.core.errors import EvaluationError
from smelt.evaluate.intervals import Estimate, bootstrap_mean, wilson
from smelt.evaluate.judgebench import skill_of
from smelt.evaluate.outcomes import Conduct, Outcome, conduct, sign


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Accuracy on one part of the data."""

    name: str
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class BenchResult:
    """A judge against labels. Right: over both orders, more verdicts for the right answer than against it."""

    pairs: int
    accuracy: Estimate  # undecided and invalid pairs are not right
    accuracy_wilson: Estimate
    right: int
    wrong: int
    undecided: int  # the two orders cancel, both are ties, or there is no verdict
    both_right: Estimate  # share with the right verdict in each order
    single_order: dict[str, float]  # accuracy of each order alone
    conduct: Conduct
    skills: tuple[BenchRow, ...]
    sources: tuple[BenchRow, ...]
    waiting: int

    @property
    def complete(self) -> bool:
        """Whether every pair has its verdicts."""
        return self.waiting == 0


def bench_outcomes(outcomes: Sequence[Outcome], *, draws: int = 4000, seed: int = 0) -> BenchResult:
    """Accuracy of a judge from outcomes with labels."""
    unlabelled = sum(outcome.label not in {"A", "B"} for outcome in outcomes)
    if unlabelled or not outcomes:
        raise EvaluationError(
            f"{unlabelled} of {len(outcomes)} pairs have no label", expected="A or B for each"
        )
    waiting = [outcome for outcome in outcomes if outcome.state in {"waiting", "error"}]
    done = [outcome for outcome in outcomes if outcome.state not in {"waiting", "error"}]
    nets = [_net(outcome) for outcome in done]
    hits = [float(net > 0) for net in nets]
    both = [_votes(outcome) == [1, 1] for outcome in done]
    return BenchResult(
        pairs=len(outcomes),
        accuracy=bootstrap_mean(
            hits, [o.cluster for o in done], [o.source for o in done], draws=draws, seed=seed
        ),
        accuracy_wilson=wilson(sum(hits), len(hits)),
        right=sum(net > 0 for net in nets),
        wrong=sum(net < 0 for net in nets),
        undecided=sum(net == 0 for net in nets),
        both_right=wilson(sum(both), len(both)),
        single_order=_single_orders(done),
        conduct=conduct(outcomes),
        skills=_rows(done, lambda outcome: skill_of(outcome.source)),
        sources=_rows(done, lambda outcome: outcome.source),
        waiting=len(waiting),
    )


def _votes(outcome: Outcome) -> list[int]:
    """For each order: 1 when the verdict is right, -1 when wrong, 0 for a tie or none."""
    side = 1 if outcome.label == "A" else -1
    return [side * sign(outcome.a_first), side * sign(outcome.b_first)]


def _net(outcome: Outcome) -> int:
    return sum(_votes(outcome))


def _single_orders(done: Sequence[Outcome]) -> dict[str, float]:
    votes = [_votes(outcome) for outcome in done]
    total = max(1, len(votes))
    return {
        "A_first": sum(first > 0 for first, _ in votes) / total,
        "B_first": sum(second > 0 for _, second in votes) / total,
    }


def _rows(done: Sequence[Outcome], name: Callable[[Outcome], str]) -> tuple[BenchRow, ...]:
    groups: dict[str, list[bool]] = {}
    for outcome in done:
        groups.setdefault(name(outcome), []).append(_net(outcome) > 0)
    return tuple(BenchRow(key, wilson(sum(hits), len(hits))) for key, hits in sorted(groups.items()))
