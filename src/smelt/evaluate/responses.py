"""Response files: JSONL, one answer a line, read with clear errors and joined by id, never by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smelt.core.errors import EvaluationError, Problem, did_you_mean
from smelt.evaluate._text import digest, json_rows, question_key, write_jsonl

#: our name of a field -> names other tools write it under
ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "pair_id", "question_id"),
    "prompt": ("prompt", "question", "instruction"),
    "text": ("text", "response", "output"),
    "model": ("model", "generator", "model_name"),
    "recipe_hash": ("recipe_hash", "model_recipe_hash", "recipe"),
}
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Response:
    """One answer of one system. ``text`` is None when the system gave none."""

    id: str
    prompt: str
    text: str | None
    prompt_hash: str = ""
    model: str = ""
    recipe_hash: str = ""
    finish_reason: str | None = None
    tokens: int | None = None
    seed: int | None = None
    source: str = ""

    def as_row(self) -> dict[str, Any]:
        """The JSONL line of this answer."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "prompt_hash": self.prompt_hash or digest(self.prompt)
        }


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt that systems answered, with the source it comes from and its exact answer, if known."""

    id: str
    text: str
    source: str = ""
    gold: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question. ``label`` is the better one ("A" or "B") where that is known."""

    id: str
    question: str
    a: str | None
    b: str | None
    source: str = ""
    label: str | None = None

    @property
    def cluster(self) -> str:
        """Pairs about the same question are not independent: they share this."""
        return question_key(self.question)


def read_responses(path: str | Path, questions: Sequence[Question] | None = None) -> list[Response]:
    """Answers of one system from a JSONL file, a JSON list, or an old pickle (which needs ``questions``).

    A line holds ``id``, ``prompt`` (or ``prompt_hash`` with ``questions`` given), ``text``, and may hold
    ``model``, ``recipe_hash``, ``finish_reason``, ``tokens``, ``seed`` and ``source``.
    """
    path = Path(path)
    if path.suffix in {".pkl", ".pickle"}:
        from smelt.evaluate.pickles import responses_from_pickle

        return responses_from_pickle(path, questions)
    by_id = {question.id: question for question in questions or ()}
    found: list[Response] = []
    problems: list[Problem] = []
    for number, row in json_rows(path):
        try:
            found.append(_response(row, f"{path}:{number}", by_id))
        except EvaluationError as error:
            problems += error.problems
    problems += _duplicates(found, str(path))
    if not problems and not found:
        problems.append(Problem("no responses", str(path), "one JSON object a line"))
    _raise(problems)
    return found


def _response(row: dict[str, Any], where: str, questions: Mapping[str, Question]) -> Response:
    prompt = prompt_text(_field(row, "prompt", row.get("messages")), where)
    stated = row.get("prompt_hash") or ""
    found_id = _field(row, "id", None)
    name = str(found_id) if found_id is not None else (stated or digest(prompt or ""))[:16]
    question = questions.get(name)
    if prompt is None and question is None:
        fix = "add it, or give the file of questions" if not row.keys() & {"promt", "prompts"} else ""
        raise EvaluationError("no prompt", where=where, fix=fix or did_you_mean("prompt", sorted(row)))
    prompt = prompt if prompt is not None else question.text if question else ""
    if stated and stated not in {digest(prompt), digest(prompt)[: len(stated)]}:
        raise EvaluationError(
            f"prompt_hash {stated[:12]} does not belong to the prompt of id {name!r}",
            where=where,
            expected=digest(prompt)[:12],
            fix="the answers were made for other prompts; generate them again",
        )
    if not any(key in row for key in ALIASES["text"]):
        raise EvaluationError("no text", where=where, fix=did_you_mean("text", sorted(row)))
    text = _field(row, "text", None)
    if text is not None and not isinstance(text, str):
        raise EvaluationError(f"text is a {type(text).__name__}", where=where, expected="a string or null")
    return Response(
        id=name,
        prompt=prompt,
        text=text,
        prompt_hash=digest(prompt),
        model=str(_field(row, "model", "") or ""),
        recipe_hash=str(_field(row, "recipe_hash", "") or ""),
        finish_reason=row.get("finish_reason"),
        tokens=_whole(row, "tokens", where),
        seed=_whole(row, "seed", where),
        source=str(row.get("source") or (question.source if question else "")),
    )


def _field(row: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    return next((row[key] for key in ALIASES[name] if key in row), otherwise)


def _whole(row: Mapping[str, Any], name: str, where: str) -> int | None:
    value = row.get(name)
    if isinstance(value, list):  # token ids instead of their number
        return len(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise EvaluationError(f"{name} is {value!r}", where=where, expected="a whole number or null")


def prompt_text(prompt: Any, where: str) -> str | None:
    """A prompt as the judge shall see it: a string as it is, chat messages as one text.

    >>> prompt_text([{"role": "user", "content": "Why?"}], "here")
    'Why?'
    """
    if prompt is None or isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt):
        turns = [(str(turn.get("role", "user")), turn.get("content")) for turn in prompt]
        if all(isinstance(content, str) for _, content in turns):
            if len(turns) == 1:
                return str(turns[0][1])
            return "\n\n".join(f"{role}: {content}" for role, content in turns)
    raise EvaluationError("unreadable prompt", where=where, expected="a string or a list of chat messages")


def _duplicates(found: Iterable[Response], where: str) -> list[Problem]:
    seen: dict[str, int] = {}
    for response in found:
        seen[response.id] = seen.get(response.id, 0) + 1
    twice = [name for name, count in seen.items() if count > 1]
    return [
        Problem(f"id {name!r} occurs {seen[name]} times", where, "every id once") for name in twice[:SHOWN]
    ] + ([Problem(f"{len(twice) - SHOWN} more ids occur twice", where)] if len(twice) > SHOWN else [])


def _raise(problems: list[Problem]) -> None:
    if len(problems) > 20:
        problems = [*problems[:20], Problem(f"and {len(problems) - 20} more problems of this kind")]
    if problems:
        raise EvaluationError(problems)


def join(a: Sequence[Response], b: Sequence[Response], names: tuple[str, str] = ("A", "B")) -> list[Pair]:
    """Pair the answers of two systems by id; ids must be the same set and their prompts the same text.

    >>> left, right = [Response("1", "2+2?", "4")], [Response("1", "2+2?", "5")]
    >>> join(left, right)[0].b
    '5'
    """
    others = {response.id: response for response in b}
    ours = {response.id for response in a}
    problems = _missing(ours - others.keys(), names[1], names[0])
    problems += _missing(others.keys() - ours, names[0], names[1])
    pairs: list[Pair] = []
    for left in a:
        right = others.get(left.id)
        if right is None:
            continue
        if left.prompt != right.prompt:
            what = f"the prompts of id {left.id!r} differ: {_head(left.prompt)!r} and {_head(right.prompt)!r}"
            problems.append(Problem(what, f"{names[0]}, {names[1]}", "answers to the same prompt"))
        pairs.append(Pair(left.id, left.prompt, left.text, right.text, left.source or right.source))
    _raise(problems)
    return pairs


def _missing(ids: Iterable[str], where: str, other: str) -> list[Problem]:
    lost = sorted(ids)
    if not lost:
        return []
    shown = ", ".join(repr(name) for name in lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
    fix = 'answer them, or write them with "text": null'
    return [Problem(f"{len(lost)} ids of {other} are missing: {shown}", where, "the same ids", fix)]


def _head(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def write_responses(path: str | Path, responses: Iterable[Response]) -> None:
    """Write answers as a JSONL file, atomically."""
    write_jsonl(Path(path), [response.as_row() for response in responses])


def system_name(responses: Sequence[Response], path: str | Path) -> str:
    """What to call a system: its model's name if all its answers agree on one, else the file's name."""
    models = {response.model for response in responses}
    name = next(iter(models)) if len(models) == 1 else ""
    return name or Path(path).stem
