"""The statistics of one comparison: A against B, one judge, both orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from smelt.evaluate.intervals import Estimate, binomial_p, bootstrap_mean, detectable_effect, holm, wilson
from smelt.evaluate.lengths import length_controlled
from smelt.evaluate.outcomes import Conduct, Outcome, conduct, sign


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One stratum."""

    source: str
    win_rate: Estimate
    wins: int
    ties: int
    losses: int
    p: float  # exact sign test
    p_holm: float  # the same, adjusted for the number of sources


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures of A against B. Rates are those of A; a question's score is the mean over both orders."""

    pairs: int
    states: dict[str, int]
    win_rate: Estimate
    win_rate_wilson: Estimate
    win_rate_invalid_half: Estimate  # pairs without a full verdict counted as 1/2
    wins: int
    ties: int
    losses: int
    sign_p: float
    score_sd: float | None
    detectable: float | None  # distance from 1/2 that so many questions show, 80 % power
    length_controlled: Estimate
    mean_length_difference: float | None  # characters, A - B
    longer_won: Estimate  # share of decided questions that the longer answer won
    shortened: int  # answers of which the judge did not see the middle
    conduct: Conduct
    single_order: dict[str, dict[str, float]]
    sources: tuple[SourceRow, ...]

    @property
    def complete(self) -> bool:
        """Whether every pair that can be judged has been."""
        return not self.states.get("waiting") and not self.states.get("error")


def compare_outcomes(outcomes: Sequence[Outcome], *, draws: int = 4000, seed: int = 0) -> Comparison:
    """Every figure from the outcomes."""
    scored = [outcome for outcome in outcomes if outcome.score is not None]
    scores = [_score(outcome) for outcome in scored]
    clusters, strata = [o.cluster for o in scored], [o.source for o in scored]
    answered = [outcome for outcome in outcomes if outcome.state != "unanswered"]
    halves = [0.5 if outcome.score is None else outcome.score for outcome in answered]
    wins, losses = _count(scored, 1), _count(scored, -1)
    sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return Comparison(
        pairs=len(outcomes),
        states=dict(Counter(outcome.state for outcome in outcomes)),
        win_rate=bootstrap_mean(scores, clusters, strata, draws=draws, seed=seed),
        win_rate_wilson=wilson(sum(scores), len(scores)),
        win_rate_invalid_half=bootstrap_mean(
            halves, [o.cluster for o in answered], [o.source for o in answered], draws=draws, seed=seed
        ),
        wins=wins,
        ties=len(scored) - wins - losses,
        losses=losses,
        sign_p=binomial_p(wins, wins + losses),
        score_sd=sd,
        detectable=detectable_effect(len(scores), sd) if sd else None,
        length_controlled=length_controlled(
            scores, [o.length_a for o in scored], [o.length_b for o in scored], clusters
        ),
        mean_length_difference=fmean(o.length_a - o.length_b for o in scored) if scored else None,
        longer_won=_longer_won(scored),
        shortened=sum(outcome.shortened for outcome in outcomes),
        conduct=conduct(outcomes),
        single_order={name: _single_order(outcomes, name) for name in ("A_first", "B_first")},
        sources=_sources(scored),
    )


def _score(outcome: Outcome) -> float:
    return 0.5 if outcome.score is None else outcome.score


def _count(outcomes: Sequence[Outcome], wanted: int) -> int:
    return sum(sign(outcome.score) == wanted for outcome in outcomes)


def _longer_won(scored: Sequence[Outcome]) -> Estimate:
    decided = [o for o in scored if sign(o.score) and o.length_a != o.length_b]
    return wilson(sum((o.length_a > o.length_b) == (_score(o) > 0.5) for o in decided), len(decided))


def _single_order(outcomes: Sequence[Outcome], order: str) -> dict[str, float]:
    """What one order alone would say, under the names of the script this replaces. Not to be believed."""
    judged = [outcome for outcome in outcomes if outcome.state != "identical"]
    values = [outcome.a_first if order == "A_first" else outcome.b_first for outcome in judged]
    wins, losses = sum(sign(value) > 0 for value in values), sum(sign(value) < 0 for value in values)
    ties = sum(value == 0.5 for value in values)
    valid = wins + losses
    return {
        "pairs_total": len(values),
        "valid_pairs": valid,
        "invalid": len(values) - valid - ties,
        "A_wins": wins,
        "B_wins": losses,
        "Ties": ties,
        "A_win_rate_%": round(100 * wins / valid, 2) if valid else 0.0,
        "B_win_rate_%": round(100 * losses / valid, 2) if valid else 0.0,
    }


def _sources(scored: Sequence[Outcome]) -> tuple[SourceRow, ...]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in scored:
        groups.setdefault(outcome.source, []).append(outcome)
    names = sorted(groups)
    wins = [_count(groups[name], 1) for name in names]
    losses = [_count(groups[name], -1) for name in names]
    p_values = [binomial_p(won, won + lost) for won, lost in zip(wins, losses, strict=True)]
    return tuple(
        SourceRow(
            source=name,
            win_rate=wilson(sum(map(_score, groups[name])), len(groups[name])),
            wins=won,
            ties=len(groups[name]) - won - lost,
            losses=lost,
            p=p,
            p_holm=adjusted,
        )
        for name, won, lost, p, adjusted in zip(names, wins, losses, p_values, holm(p_values), strict=True)
    )


@dataclass(frozen=True, slots=True)
class ExactComparison:
    """Two systems on questions with an exact answer."""

    accuracy_a: Estimate
    accuracy_b: Estimate
    only_a: int  # questions that A alone answered rightly
    only_b: int
    p: float  # McNemar's test, exact
    unread_a: int
    unread_b: int


def compare_exact(
    a: Sequence[bool], b: Sequence[bool], unread_a: int = 0, unread_b: int = 0
) -> ExactComparison:
    """Accuracies with intervals, and whether they differ on the same questions.

    >>> compare_exact([True] * 6, [False] * 6).p
    0.03125
    """
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    return ExactComparison(
        wilson(sum(a), len(a)), wilson(sum(b), len(b)), only_a, only_b,
        binomial_p(only_a, only_a + only_b), unread_a, unread_b,
    )  # fmt: skip
