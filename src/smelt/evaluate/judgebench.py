"""JudgeBench: pairs of answers of which exactly one is right, for judging judges and as hard prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smelt.core.errors import EvaluationError, MissingExtraError, Problem, did_you_mean
from smelt.evaluate._text import json_rows, question_key
from smelt.evaluate.extract import extract_answer, same_answer
from smelt.evaluate.responses import Pair, Question

DATASET = "ScalerLab/JudgeBench"
#: split -> how the model that wrote its answers is named
SPLITS = {"gpt": "gpt-4o", "claude": "claude-3-5-sonnet"}
COLUMNS = ("pair_id", "source", "question", "response_A", "response_B", "label")
LABELS = {"A>B": "A", "B>A": "B"}
#: start of a source -> the skill it tests
SKILLS = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One row of JudgeBench."""

    pair_id: str
    source: str
    question: str
    response_a: str
    response_b: str
    label: str  # "A" or "B": the right one
    response_model: str = ""
    original_id: str = ""

    @property
    def skill(self) -> str:
        """knowledge, reasoning, math or coding; the source itself when it is none of them."""
        return skill_of(self.source)

    @property
    def pair(self) -> Pair:
        """The row as a pair to judge, in the order it is stored."""
        return Pair(self.pair_id, self.question, self.response_a, self.response_b, self.source, self.label)

    @property
    def gold(self) -> str | None:
        """The exact answer, where the right response states one and the wrong response states another."""
        right, wrong = self.response_a, self.response_b
        if self.label == "B":
            right, wrong = wrong, right
        answer, other = extract_answer(right), extract_answer(wrong)
        return None if answer is None or (other is not None and same_answer(answer, other)) else answer


def skill_of(source: str) -> str:
    """The skill a JudgeBench source tests.

    >>> skill_of("mmlu-pro-health")
    'knowledge'
    """
    return next((skill for start, skill in SKILLS.items() if source.startswith(start)), source)


def load_judgebench(data: str | Path = DATASET, split: str | None = None) -> list[Item]:
    """Rows from a local JSONL, JSON or parquet file, a folder of them, or a dataset by name.

    ``split`` is "gpt" or "claude"; None takes every row there is. A name needs the package ``datasets``.
    """
    if split is not None and split not in SPLITS:
        raise EvaluationError(
            f"unknown split {split!r}", expected="gpt or claude", fix=did_you_mean(split, [*SPLITS])
        )
    path = Path(data)
    if path.is_dir():
        rows = list(_folder_rows(path, split))
    elif path.exists() or path.suffix in {".jsonl", ".json", ".parquet"}:
        rows = list(_file_rows(path))
    else:
        rows = list(_dataset_rows(str(data), split))
    items = _items(rows)
    chosen = [item for item in items if split is None or _in_split(item, split)]
    if not chosen:
        raise EvaluationError(
            f"no rows of split {split!r}", where=str(data), fix="check --split and the file"
        )
    return chosen


def _in_split(item: Item, split: str) -> bool:
    return not item.response_model or item.response_model.startswith(SPLITS[split])


def _file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        yield from ((f"{path} row {index}", row) for index, row in enumerate(_parquet(path)))
    else:
        yield from ((f"{path}:{number}", row) for number, row in json_rows(path))


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "eval") from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise EvaluationError(f"not a parquet file: {error}", where=str(path)) from None


def _folder_rows(folder: Path, split: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a folder: saved by ``datasets``, a snapshot of the hub, or files of the original project."""
    if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
        yield from _saved_rows(folder, split)
        return
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in {".jsonl", ".json", ".parquet"} and path.is_file()
    )
    named = [path for path in files if split and _names_split(path, split)]
    files = (
        named or [path for path in files if not any(_names_split(path, other) for other in SPLITS)] or files
    )
    if not files:
        raise EvaluationError("no data files", where=str(folder), expected=".jsonl, .json or .parquet files")
    for path in files:
        yield from _file_rows(path)


def _names_split(path: Path, split: str) -> bool:
    return path.name.startswith((f"{split}.", f"{split}-")) or f"response_model={SPLITS[split]}" in path.name


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "eval") from None
    return datasets


def _saved_rows(folder: Path, split: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    loaded = _datasets().load_from_disk(str(folder))
    parts = loaded if isinstance(loaded, Mapping) else {"": loaded}
    wanted = [split] if split in parts else list(parts)
    for name in wanted:
        yield from ((f"{folder} {name} row {index}", dict(row)) for index, row in enumerate(parts[name]))


def _dataset_rows(name: str, split: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    datasets = _datasets()
    for part in [split] if split else list(SPLITS):
        try:
            rows = datasets.load_dataset(name, split=part)
        except Exception as error:  # offline, unknown name, network: datasets raises many kinds
            raise EvaluationError(
                f"the dataset cannot be loaded: {str(error).splitlines()[0]:.200}",
                where=f"{name} [{part}]",
                fix="give the path of a local JSONL, parquet or saved copy instead",
            ) from None
        yield from ((f"{name} [{part}] row {index}", dict(row)) for index, row in enumerate(rows))


def _items(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Item]:
    items: list[Item] = []
    problems: list[Problem] = []
    for where, row in rows:
        wrong = _row_problems(where, row)
        problems += wrong
        if not wrong:
            items.append(_item(row))
        if len(problems) >= 20:
            break
    if problems:
        raise EvaluationError(problems)
    return items


def _row_problems(where: str, row: Mapping[str, Any]) -> list[Problem]:
    lost = [name for name in COLUMNS if not isinstance(row.get(name), str)]
    if lost:
        fix = did_you_mean(lost[0], [str(name) for name in row])
        return [Problem(f"no text in column {', '.join(lost)}", where, "the columns of JudgeBench", fix)]
    if row["label"] not in LABELS:
        return [Problem(f"label {row['label']!r}", where, "A>B or B>A")]
    return []


def _item(row: Mapping[str, Any]) -> Item:
    original = row.get("original_id")
    return Item(
        pair_id=row["pair_id"],
        source=row["source"],
        question=row["question"],
        response_a=row["response_A"],
        response_b=row["response_B"],
        label=LABELS[row["label"]],
        response_model=str(row.get("response_model") or ""),
        original_id="" if original is None else str(original),
    )


def without_overlap(items: Sequence[Item], others: Iterable[Item]) -> list[Item]:
    """Rows whose question is in none of the others: a test set after a choice was made on the others."""
    seen = {question_key(item.question) for item in others}
    return [item for item in items if question_key(item.question) not in seen]


def questions(items: Iterable[Item], *, dedupe: bool = False) -> list[Question]:
    """The questions in order, with source and exact answer; ``dedupe`` keeps the first of equal ones."""
    seen: set[str] = set()
    found = []
    for item in items:
        key = question_key(item.question)
        if not (dedupe and key in seen):
            found.append(Question(item.pair_id, item.question, item.source, item.gold))
        seen.add(key)
    return found


def other_split(split: str | None) -> str:
    """The split that is not this one."""
    if split is None:
        raise EvaluationError(
            "no split chosen, so there is no other one", fix="add --split gpt or --split claude"
        )
    return next(name for name in SPLITS if name != split)


def load_questions(
    path: str | Path, split: str | None = None, *, exclude_overlap: bool = False
) -> list[Question]:
    """Questions from JudgeBench data, or plain JSONL of ``id``, ``prompt``, perhaps ``source``, ``gold``."""
    file = Path(path)
    if file.is_file() and file.suffix != ".parquet":
        numbered = list(json_rows(file))
        if numbered and "response_A" not in numbered[0][1]:
            if split or exclude_overlap:
                raise EvaluationError(
                    "a plain file of questions has no splits", where=str(path), fix="leave out --split"
                )
            return [_question(row, f"{file}:{number}", number - 1) for number, row in numbered]
    items = load_judgebench(path, split)
    if exclude_overlap:
        items = without_overlap(items, load_judgebench(path, other_split(split)))
    return questions(items)


def _question(row: Mapping[str, Any], where: str, index: int) -> Question:
    text = next((row[name] for name in ("prompt", "question", "instruction") if name in row), None)
    if not isinstance(text, str):
        raise EvaluationError(
            "no prompt", where=where, fix=did_you_mean("prompt", [str(name) for name in row])
        )
    name = next((row[key] for key in ("id", "pair_id", "question_id") if key in row), index)
    gold = row.get("gold")
    return Question(str(name), text, str(row.get("source") or ""), None if gold is None else str(gold))
