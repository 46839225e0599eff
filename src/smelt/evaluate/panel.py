"""Several judges on the same pairs: each by itself, how far they agree, and their majority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from smelt.core.errors import EvaluationError, Problem
from smelt.evaluate.comparison import Comparison, compare_outcomes
from smelt.evaluate.intervals import Estimate, binomial_p, bootstrap_mean, wilson
from smelt.evaluate.outcomes import Outcome, sign


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges on the questions both decided on."""

    judges: tuple[str, str]
    same: Estimate
    kappa: float | None  # Cohen's; None where chance alone would agree always


@dataclass(frozen=True, slots=True)
class Majority:
    """The vote of the judges on every question."""

    win_rate: Estimate
    wins: int
    ties: int
    losses: int
    sign_p: float
    split: int  # questions on which no verdict had a majority; they are among the ties


@dataclass(frozen=True, slots=True)
class Panel:
    """A table with one row a judge, and the vote."""

    judges: dict[str, Comparison]
    majority: Majority
    agreement: tuple[Agreement, ...]


def judge_panel(outcomes: Mapping[str, Sequence[Outcome]], *, draws: int = 4000, seed: int = 0) -> Panel:
    """Statistics of every judge and of the majority of their verdicts per question."""
    _check_same_pairs(outcomes)
    judges = {name: compare_outcomes(group, draws=draws, seed=seed) for name, group in outcomes.items()}
    rows = [group for group in zip(*outcomes.values(), strict=True) if _signs(group)]
    votes = [majority(_signs(group)) for group in rows]
    firsts = [group[0] for group in rows]
    verdicts = [verdict or 0 for verdict in votes]
    wins, losses = verdicts.count(1), verdicts.count(-1)
    estimate = bootstrap_mean(
        [(1 + verdict) / 2 for verdict in verdicts],
        [one.cluster for one in firsts],
        [one.source for one in firsts],
        draws=draws,
        seed=seed,
    )
    vote = Majority(
        win_rate=estimate,
        wins=wins,
        ties=verdicts.count(0),
        losses=losses,
        sign_p=binomial_p(wins, wins + losses),
        split=votes.count(None),
    )
    return Panel(judges, vote, _agreements(outcomes))


def _signs(group: Sequence[Outcome]) -> list[int]:
    return [sign(outcome.score) for outcome in group if outcome.score is not None]


def majority(signs: Sequence[int]) -> int | None:
    """The verdict that more than half of the judges gave, or None.

    >>> majority([1, 1, -1]), majority([1, 0, -1])
    (1, None)
    """
    return next((verdict for verdict in (1, 0, -1) if 2 * signs.count(verdict) > len(signs)), None)


def _check_same_pairs(outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    if not outcomes:
        raise EvaluationError("a panel of no judges", expected="at least one")
    ids = {name: [outcome.pair_id for outcome in group] for name, group in outcomes.items()}
    first = next(iter(ids))
    wrong = [name for name in ids if ids[name] != ids[first]]
    if wrong:
        raise EvaluationError(
            [
                Problem("judged other pairs, or in another order", name, f"the pairs of {first}")
                for name in wrong
            ]
        )


def _agreements(outcomes: Mapping[str, Sequence[Outcome]]) -> tuple[Agreement, ...]:
    found = []
    for left, right in combinations(outcomes, 2):
        pairs = [
            (sign(a.score), sign(b.score))
            for a, b in zip(outcomes[left], outcomes[right], strict=True)
            if a.score is not None and b.score is not None and a.state != "identical"
        ]
        same = sum(a == b for a, b in pairs)
        found.append(Agreement((left, right), wilson(same, len(pairs)), kappa(pairs)))
    return tuple(found)


def kappa(pairs: Sequence[tuple[int, int]]) -> float | None:
    """Cohen's kappa of two judges.

    >>> kappa([(1, 1), (1, 1), (-1, -1), (-1, 1)])
    0.5
    """
    if not pairs:
        return None
    total = len(pairs)
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    chance = sum(left.count(value) * right.count(value) for value in (-1, 0, 1)) / total**2
    seen = sum(a == b for a, b in pairs) / total
    return None if chance == 1 else (seen - chance) / (1 - chance)
