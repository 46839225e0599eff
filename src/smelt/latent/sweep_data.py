"""Prompts of a sweep with their exact answers and skills, and how often a system's answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smelt.core.errors import LatentError
from smelt.evaluate._text import digest, json_rows
from smelt.evaluate.extract import extract_answer, same_answer
from smelt.evaluate.intervals import Estimate, wilson
from smelt.latent.batch import read_prompts

ANSWER_NAMES = ("answer", "gold", "target")
SKILL_NAMES = ("skill", "source", "task")
ALL = "all"  # the skill of prompts that name none


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt; ``answer`` is None where it cannot be scored exactly."""

    id: str
    prompt: Any  # a text, or chat messages
    text: str
    answer: str | None = None
    skill: str = ALL


def read_samples(path: str | Path, limit: int | None = None) -> list[Sample]:
    """Prompts from JSONL: ``prompt`` or ``messages``, maybe ``id``, ``answer`` and ``skill``."""
    rows = read_prompts(path)
    samples = []
    for row, (number, raw) in zip(rows, json_rows(Path(path)), strict=True):
        answer = next((raw[name] for name in ANSWER_NAMES if raw.get(name) is not None), None)
        if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
            where = f"{path}:{number}"
            raise LatentError(
                f"the answer is a {type(answer).__name__}", where=where, expected="text or a number"
            )
        skill = next((str(raw[name]) for name in SKILL_NAMES if raw.get(name)), ALL)
        samples.append(Sample(row.id, row.prompt, row.text, None if answer is None else str(answer), skill))
    return samples[:limit]


def data_digest(samples: Sequence[Sample]) -> str:
    """One value for the same prompts with the same answers, in the same order."""
    return digest([[one.id, one.prompt, one.answer, one.skill] for one in samples])[:16]


def is_right(text: str | None, answer: str) -> bool:
    r"""Whether an answer says the same as the exact one, as a whole or in what it marks as its result.

    >>> is_right(" 4. ", "4"), is_right(r"so \boxed{1/2}", "0.5"), is_right("not 4", "4")
    (True, True, False)
    """
    if text is None:
        return False
    marked = extract_answer(text)
    return same_answer(text, answer) or (marked is not None and same_answer(marked, answer))


def score(samples: Sequence[Sample], texts: Sequence[str | None]) -> dict[str, Any] | None:
    """Share of right answers with Wilson's interval: pooled, of each skill, their plain mean, and the worst.

    None when no prompt has an exact answer.
    """
    right: dict[str, list[bool]] = {}
    for sample, text in zip(samples, texts, strict=True):
        if sample.answer is not None:
            right.setdefault(sample.skill, []).append(is_right(text, sample.answer))
    if not right:
        return None
    skills = {name: as_dict(wilson(sum(hits), len(hits))) for name, hits in sorted(right.items())}
    everything = [hit for hits in right.values() for hit in hits]
    worst = min(skills, key=lambda name: skills[name]["value"])
    return {
        "mean": sum(one["value"] for one in skills.values()) / len(skills),
        "worst": skills[worst]["value"],
        "worst_skill": worst,
        "pooled": as_dict(wilson(sum(everything), len(everything))),
        "skills": skills,
    }


def as_dict(estimate: Estimate) -> dict[str, Any]:
    """An estimate as data."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
