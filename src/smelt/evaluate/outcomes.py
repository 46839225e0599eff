"""What a judge said about each pair, both orders together, and how the judge behaved over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from smelt.core.errors import EvaluationError
from smelt.evaluate.intervals import Estimate, binomial_p, wilson
from smelt.evaluate.journal import Record
from smelt.evaluate.prompts import clean_answer
from smelt.evaluate.responses import Pair
from smelt.evaluate.runner import Ask, Judge, plan_asks

Scoring = Literal["win", "graded"]
#: judged: both orders gave a verdict; identical: nothing to judge; the rest carry no score
State = Literal["judged", "identical", "unanswered", "invalid", "error", "waiting"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One pair. ``a_first`` and ``b_first``: the value of A (1 win, 1/2 tie, 0 loss) in each order."""

    pair_id: str
    cluster: str
    source: str
    state: State
    a_first: float | None = None
    b_first: float | None = None
    length_a: int = 0
    length_b: int = 0
    label: str | None = None
    invalid: tuple[str, ...] = ()  # why an order has no verdict, for replies that gave none
    masses: tuple[float, ...] = ()  # logprob mode: probability on the allowed letters
    shortened: int = 0  # how many of the two answers were cut for the judge

    @property
    def score(self) -> float | None:
        """Mean value of A over both orders; None unless both have a verdict."""
        if self.a_first is None or self.b_first is None:
            return None
        return (self.a_first + self.b_first) / 2


def collect(
    pairs: Iterable[Pair],
    judge: Judge,
    finished: Mapping[str, Record],
    errors: Mapping[str, Record] | None = None,
    scoring: Scoring = "win",
) -> list[Outcome]:
    """One outcome for every pair, from the records of a journal."""
    if scoring == "graded" and judge.template.style != "five":
        what = f"graded scoring with template {judge.template.name!r}"
        raise EvaluationError(what, expected="a template of style five", fix="use --template arena")
    return [_outcome(pair, judge, finished, errors or {}, scoring) for pair in pairs]


def _outcome(
    pair: Pair, judge: Judge, finished: Mapping[str, Record], errors: Mapping[str, Record], scoring: Scoring
) -> Outcome:
    if pair.a is None or pair.b is None:
        return Outcome(pair.id, pair.cluster, pair.source, "unanswered", label=pair.label)
    asks = plan_asks([pair], judge)
    if not asks:
        length = clean_answer(pair.a, pair.question, judge.max_chars).length
        return Outcome(pair.id, pair.cluster, pair.source, "identical", 0.5, 0.5, length, length, pair.label)
    records = [finished.get(ask.key) for ask in asks]
    values = [None if record is None else _value(record, scoring) for record in records]
    return Outcome(
        pair_id=pair.id,
        cluster=pair.cluster,
        source=pair.source,
        state=_state(asks, records, values, errors),
        a_first=values[0],
        b_first=None if values[1] is None else 1.0 - values[1],
        length_a=asks[0].notes["length_first"],
        length_b=asks[0].notes["length_second"],
        label=pair.label,
        invalid=tuple(record["invalid"] for record in records if record and record["invalid"]),
        masses=tuple(record["mass"] for record in records if record and record.get("mass") is not None),
        shortened=sum(asks[0].notes[name] > 0 for name in ("cut_first", "cut_second")),
    )


def _value(record: Record, scoring: Scoring) -> float | None:
    """The value of the answer shown first."""
    if scoring == "graded":
        grade = record["grade"]
        return None if grade is None else (grade + 2) / 4
    probability = record.get("probability")
    return record["value"] if probability is None else probability


def _state(
    asks: Sequence[Ask],
    records: Sequence[Record | None],
    values: Sequence[float | None],
    errors: Mapping[str, Record],
) -> State:
    if None not in values:
        return "judged"
    if None not in records:
        return "invalid"
    lost = [ask.key for ask, record in zip(asks, records, strict=True) if record is None]
    return "error" if any(key in errors for key in lost) else "waiting"


@dataclass(frozen=True, slots=True)
class Conduct:
    """How the judge behaved, whatever it preferred. Identical answers are left out: nobody judged them."""

    judgements: int
    ties: int
    invalid: int
    invalid_reasons: dict[str, int]
    first_position: Estimate  # share of decisive judgements that chose the answer shown first
    first_position_p: float
    always_first: int  # pairs in which the first shown won both times
    always_second: int
    flip_p: (
        float  # sign test between the two: exact also though the two orders of a pair depend on each other
    )
    consistency: Estimate  # share of pairs with the same verdict in both orders
    mean_mass: float | None = None  # logprob mode: probability on the allowed letters


def conduct(outcomes: Sequence[Outcome]) -> Conduct:
    """Position bias, consistency, ties and invalid replies."""
    seen = [outcome for outcome in outcomes if outcome.state in {"judged", "invalid", "waiting", "error"}]
    firsts = [value for outcome in seen for value in _first_values(outcome)]
    decisive = [value for value in firsts if value != 0.5]
    chose_first = sum(value > 0.5 for value in decisive)
    both = [
        (sign(o.a_first), sign(o.b_first)) for o in seen if o.a_first is not None and o.b_first is not None
    ]
    always_first, always_second = both.count((1, -1)), both.count((-1, 1))
    reasons = Counter(reason for outcome in seen for reason in outcome.invalid)
    masses = [mass for outcome in seen for mass in outcome.masses]
    return Conduct(
        judgements=len(firsts) + reasons.total(),
        ties=len(firsts) - len(decisive),
        invalid=reasons.total(),
        invalid_reasons=dict(sorted(reasons.items())),
        first_position=wilson(chose_first, len(decisive)),
        first_position_p=binomial_p(chose_first, len(decisive)),
        always_first=always_first,
        always_second=always_second,
        flip_p=binomial_p(always_first, always_first + always_second),
        consistency=wilson(sum(one == two for one, two in both), len(both)),
        mean_mass=sum(masses) / len(masses) if masses else None,
    )


def _first_values(outcome: Outcome) -> list[float]:
    """Values of the answer shown first, one for each order with a verdict."""
    values = [] if outcome.a_first is None else [outcome.a_first]
    return values if outcome.b_first is None else [*values, 1.0 - outcome.b_first]


def sign(value: float | None) -> int:
    """1 when A won, -1 when it lost, 0 for a tie (or nothing)."""
    if value is None or value == 0.5:
        return 0
    return 1 if value > 0.5 else -1
