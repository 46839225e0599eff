"""Whole evaluations from files to report: two systems, many systems, or a judge against labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from smelt.core.errors import EvaluationError, Problem
from smelt.evaluate._text import question_key
from smelt.evaluate.client import Endpoint, RequestParams
from smelt.evaluate.costs import Cost, bytes_per_four, estimate_cost
from smelt.evaluate.journal import Journal, load_records
from smelt.evaluate.judgebench import (
    DATASET,
    Item,
    load_judgebench,
    load_questions,
    other_split,
    without_overlap,
)
from smelt.evaluate.outcomes import Outcome, Scoring, collect
from smelt.evaluate.prompts import get_template
from smelt.evaluate.responses import Pair, Question, Response, join, read_responses, system_name
from smelt.evaluate.runner import Ask, Judge, Limits, Progress, plan_asks, run_asks

TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What to judge, by whom, where to ask and how hard to try."""

    judges: tuple[Judge, ...]
    out: Path
    endpoint: Endpoint = field(default_factory=Endpoint)
    limits: Limits = field(default_factory=Limits)
    scoring: Scoring = "win"
    draws: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        names = [judge.model for judge in self.judges]
        if not names or len(set(names)) < len(names):
            raise EvaluationError(f"judges {names}", expected="at least one, each once")


def make_judge(
    model: str,
    *,
    template: str | None = None,
    logprob: bool = False,
    max_tokens: int | None = None,
    temperature: float | None = 0.0,
    seed: int | None = None,
    tokens_field: str = "max_tokens",
    top_logprobs: int = TOP_LOGPROBS,
    extra: Mapping[str, Any] | None = None,
    max_chars: int = 24_000,
) -> Judge:
    """A judge from plain options. Logprob mode asks for one letter and reads its probability."""
    found = get_template(template or ("choice" if logprob else "pairwise"))
    if logprob and found.style != "letter":
        what = f"logprob mode with template {found.name!r}, whose first token is no verdict"
        raise EvaluationError(what, expected="a template of style letter", fix="use --template choice")
    if max_chars < 3:
        raise EvaluationError(f"max_chars is {max_chars}", expected="3 or more")
    params = RequestParams(
        max_tokens=found.max_tokens if max_tokens is None else max_tokens,
        temperature=temperature,
        seed=seed,
        tokens_field=tokens_field,
        top_logprobs=top_logprobs if logprob else 0,
        extra=dict(extra or {}),
    )
    return Judge(model, found, params, max_chars)


@dataclass(frozen=True, slots=True)
class Material:
    """Answers of two or more systems to the same questions, and what is known about the questions."""

    systems: tuple[str, ...]
    responses: dict[str, list[Response]]
    questions: dict[str, Question]

    def pairs(self, first: str, second: str) -> list[Pair]:
        """Two systems' answers joined by id."""
        return join(self.responses[first], self.responses[second], (first, second))

    def pairings(self) -> list[tuple[str, str]]:
        """Every two systems, in the order given."""
        return list(combinations(self.systems, 2))

    @property
    def gold(self) -> dict[str, str]:
        """Exact answers by id, where there are any."""
        return {name: question.gold for name, question in self.questions.items() if question.gold is not None}


def load_material(
    files: Sequence[tuple[str | None, Path]],
    questions: str | Path | None = None,
    split: str | None = None,
    exclude_overlap: bool = False,
) -> Material:
    """Read response files (name or None, path) and, where given or needed, the questions they answer.

    Pickled lists without ``questions`` are taken as answers to JudgeBench's claude split, as once made.
    """
    if questions is None and any(path.suffix in {".pkl", ".pickle"} for _, path in files):
        questions, split = DATASET, split or "claude"
    if questions is None and (split or exclude_overlap):
        raise EvaluationError("a split without questions", fix="give --questions")
    known = {} if questions is None else _by_id(load_questions(questions, split), questions)
    responses: dict[str, list[Response]] = {}
    for name, path in files:
        found = read_responses(path, list(known.values()) or None)
        label = name or system_name(found, path)
        if label in responses and name is None:
            label = path.stem
        if label in responses:
            raise EvaluationError(f"two systems are called {label!r}", where=str(path), fix="give them names")
        responses[label] = _with_sources(found, known, path) if known else found
    if exclude_overlap and questions is not None:
        kept = {question.id for question in load_questions(questions, split, exclude_overlap=True)}
        responses = {name: [one for one in found if one.id in kept] for name, found in responses.items()}
    return Material(tuple(responses), responses, known)


def _by_id(questions: Sequence[Question], where: str | Path) -> dict[str, Question]:
    found = {question.id: question for question in questions}
    if len(found) < len(questions):
        raise EvaluationError(
            f"{len(questions) - len(found)} ids occur twice",
            where=str(where),
            fix="choose one --split, or mend the ids",
        )
    return found


def _with_sources(found: Sequence[Response], known: Mapping[str, Question], path: Path) -> list[Response]:
    """Answers with the stratum of their question; every answer must belong to a known question."""
    problems = []
    for one in found:
        question = known.get(one.id)
        if question is None:
            problems.append(
                Problem(f"id {one.id!r} is no question", str(path), fix="give the questions it answers")
            )
        elif question_key(question.text) != question_key(one.prompt):
            problems.append(
                Problem(f"id {one.id!r} answers another prompt", str(path), "the question of that id")
            )
    if problems:
        more = [Problem(f"and {len(problems) - 5} more")] if len(problems) > 5 else []
        raise EvaluationError([*problems[:5], *more])
    return [
        replace(one, prompt=known[one.id].text, source=known[one.id].source or one.source) for one in found
    ]


@dataclass(frozen=True, slots=True)
class Results:
    """Outcomes by (first system, second system) and judge, and what the run did."""

    outcomes: dict[tuple[str, str], dict[str, list[Outcome]]]
    progress: Progress


def plan_all(pairs: Mapping[tuple[str, str], Sequence[Pair]], plan: Plan) -> list[Ask]:
    """Every request of an evaluation; a pair's two orders stand together: a cut run has whole pairs."""
    return [ask for judge in plan.judges for group in pairs.values() for ask in plan_asks(group, judge)]


def cost_of(
    asks: Sequence[Ask], out: Path, count: Callable[[str], int] = bytes_per_four, **prices: float | None
) -> Cost:
    """What a run would send, without opening the file for writing."""
    finished = load_records(out)[0] if out.exists() else {}
    waiting = list({ask.key: ask for ask in asks if ask.key not in finished}.values())
    return estimate_cost(asks, waiting, count=count, **prices)


def run(
    pairs: Mapping[tuple[str, str], Sequence[Pair]],
    plan: Plan,
    on_change: Callable[[Progress], None] = lambda progress: None,
) -> Results:
    """Judge whatever the file lacks, then collect the outcomes of all pairs from it."""
    asks = plan_all(pairs, plan)
    if plan.scoring == "graded":
        collect([], plan.judges[0], {}, scoring="graded")  # refuse before any request
    if asks and not plan.out.exists():
        plan.endpoint.key()  # a missing key leaves no empty file behind
    with Journal(plan.out) as journal:
        progress = run_asks(asks, journal, plan.endpoint, plan.limits, on_change)
        outcomes = {
            names: {
                judge.model: collect(group, judge, journal.finished, journal.errors, plan.scoring)
                for judge in plan.judges
            }
            for names, group in pairs.items()
        }
    return Results(outcomes, progress)


def labelled_pairs(items: Sequence[Item]) -> list[Pair]:
    """JudgeBench rows as pairs to judge."""
    return [item.pair for item in items]


def load_bench_items(data: str | Path, split: str | None, exclude_overlap: bool = False) -> list[Item]:
    """JudgeBench rows of a split, without the questions of the other split if asked."""
    items = load_judgebench(data, split)
    return without_overlap(items, load_judgebench(data, other_split(split))) if exclude_overlap else items


def same_settings(judge: Judge) -> dict[str, Any]:
    """What two evaluations must share for the judge of one to be the judge of the other."""
    return {
        "judge": judge.model,
        "template": judge.template.name,
        "template_hash": judge.template.hash,
        "params": judge.params.as_fields(),
        "max_chars": judge.max_chars,
    }
