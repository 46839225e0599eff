"""A sweep: every cell of a grid measured once, one row each, resumable; baselines are always among them."""

from __future__ import annotations

import math
import platform
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smelt._version import __version__
from smelt.core.errors import LatentError, SmeltError
from smelt.evaluate._text import digest
from smelt.evaluate.responses import Response, write_responses
from smelt.latent.baselines import Arena
from smelt.latent.generating import Answer
from smelt.latent.sweep_data import Sample, data_digest
from smelt.latent.sweep_file import Row, RowFile
from smelt.latent.sweep_grid import BASELINES, Cell, Grid
from smelt.latent.sweep_measure import Bench, How

ROWS = "rows.jsonl"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Step:
    """How far a sweep is."""

    total: int
    done: int
    reused: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Swept:
    """All rows of a sweep, in the order of its grid; ``report`` has the best cells on the other split."""

    rows: list[Row]
    report: list[Row] = field(default_factory=list)
    computed: int = 0
    reused: int = 0


def run_sweep(
    arena: Arena,
    samples: Sequence[Sample],
    grid: Grid,
    out: str | Path,
    how: How | None = None,
    *,
    report: Sequence[Sample] | None = None,
    on_change: Callable[[Step], None] = lambda step: None,
) -> Swept:
    """Measure every cell of ``grid`` on ``samples`` that ``out/rows.jsonl`` does not have yet.

    With ``report``, the best cell of every family (chosen on ``samples``) and all fixed baselines are measured
    again on those other prompts: only these figures are free of selection.
    """
    how = how or How()
    cells = grid.cells(arena.depth)
    arena.check(cells)
    _check_splits(samples, report)
    bench = Bench(arena, samples, how)
    other = Bench(arena, report, how) if report else None
    with RowFile(Path(out) / ROWS) as file:
        work = _Work(file, Path(out), on_change, len(cells))
        rows = [work.row(bench, cell, "select") for cell in cells]
        again: list[Row] = []
        if other is not None:
            chosen = [cells[rows.index(row)] for row in best_rows(rows)]
            work.total += len(chosen)
            again = [work.row(other, cell, "report") for cell in chosen]
    return Swept(rows, again, work.computed, work.reused)


def _check_splits(samples: Sequence[Sample], report: Sequence[Sample] | None) -> None:
    shared = {one.text for one in samples} & {one.text for one in report or ()}
    if shared:
        what = f"{len(shared)} prompts are in both splits, such as {min(shared)[:60]!r}"
        raise LatentError(what, where="--report", expected="prompts that were not selected on")


class _Work:
    """Turns cells into rows, counting."""

    def __init__(self, file: RowFile, out: Path, on_change: Callable[[Step], None], total: int) -> None:
        self.file, self.out, self.on_change, self.total = file, out, on_change, total
        self.computed = self.reused = 0

    def row(self, bench: Bench, cell: Cell, split: str) -> Row:
        """The row of a cell: from the file, or measured now."""
        key = cell_key(bench, cell)
        self.on_change(Step(self.total, self.computed + self.reused, self.reused, cell.name))
        if key in self.file.rows:
            self.reused += 1
            row = {**self.file.rows[key], "split": split}
        else:
            row, answers = measured(bench, cell, key, split)
            if answers:
                _write_answers(self.out / answer_file(cell, key), bench.samples, row, answers)
            self.file.append(row)
            self.computed += 1
        self.on_change(Step(self.total, self.computed + self.reused, self.reused, cell.name))
        return row


def cell_key(bench: Bench, cell: Cell) -> str:
    """Equal for the same cell of the same weights on the same prompts with the same settings."""
    facts = [
        SCHEMA,
        cell.to_dict(),
        bench.arena.fingerprint(),
        data_digest(bench.samples),
        bench.how.identity(),
    ]
    return digest(facts)[:20]


def measured(bench: Bench, cell: Cell, key: str, split: str) -> tuple[Row, list[Answer]]:
    """A new row. A baseline that these two models do not allow has a reason instead of figures."""
    begun = time.time()
    head = {"key": key, "status": "ok", "name": cell.name, "split": split, **_described(cell)}
    tail = {"n": len(bench.samples), "data": data_digest(bench.samples), "models": bench.arena.identity}
    tail |= {"generation": bench.how.to_dict(), "versions": versions()}
    empty: dict[str, Any] = {"scores": None, "metrics": None, "layerwise": None, "costs": None}
    answers: list[Answer] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            figures, answers = bench.measure(cell)
        except SmeltError as error:
            if cell.kind not in BASELINES[2:]:
                raise
            head, figures = {**head, "status": "impossible"}, {**empty, "reason": str(error)}
    notes = list(dict.fromkeys(str(one.message) for one in said))
    row = {**head, **figures, **tail, "notes": notes, "made": round(begun), "seconds": time.time() - begun}
    return _finite(row), answers


def _described(cell: Cell) -> dict[str, Any]:
    return {
        "kind": cell.kind,
        "op": cell.op,
        "layers": list(cell.layers),
        "beta": cell.beta,
        "lambda": cell.lam,
        "ratio": cell.ratio,
        "scope": cell.scope,
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN: an undefined figure is null."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """What the figures were made with."""
    import torch
    import transformers

    return {
        "smelt": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def answer_file(cell: Cell, key: str) -> Path:
    """Where a cell's answers are, below the sweep's directory."""
    plain = cell.name.replace("β=", "b").replace("λ=", "lambda").replace(":", "-")
    return Path("answers") / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', plain)}-{key[:8]}.jsonl"


def _write_answers(path: Path, samples: Sequence[Sample], row: Row, answers: Sequence[Answer]) -> None:
    responses = [
        Response(sample.id, sample.text, answer.text, digest(sample.text), row["name"], row["key"],
                 answer.finish, answer.tokens, answer.seed, "" if sample.skill == "all" else sample.skill)
        for sample, answer in zip(samples, answers, strict=True)
    ]  # fmt: skip
    write_responses(path, responses)


def family(row: Mapping[str, Any]) -> str:
    """Rows of one family compete for one place among the best."""
    return " ".join(part for part in (row["kind"], row["op"]) if part)


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """The best row of every family by mean score over skills (then worst skill, then order of the grid).

    Without exact answers nothing is chosen: midness grows with the layer whatever the quality.
    """
    best: dict[str, Row] = {}
    for row in rows:
        if not row["scores"]:
            continue
        name = family(row)
        if name not in best or rank(row) > rank(best[name]):
            best[name] = row
    return list(best.values())


def rank(row: Mapping[str, Any]) -> tuple[float, float]:
    """What a row is chosen by."""
    return (row["scores"]["mean"], row["scores"]["worst"])
