"""The published experiments on any two models: A answers, B similarity, C layers and ratios.

Each is a sweep with its own grid and its own reading of the rows, so all three resume and share their rows.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smelt.core.errors import LatentError
from smelt.evaluate.client import Endpoint
from smelt.evaluate.intervals import binomial_p
from smelt.evaluate.responses import Response, read_responses, write_responses
from smelt.evaluate.runner import Limits
from smelt.evaluate.session import Plan, load_material, make_judge, run
from smelt.evaluate.summary import comparison_report
from smelt.latent.baselines import Arena
from smelt.latent.metric_rows import METRICS
from smelt.latent.sweep import Step, Swept, answer_file, run_sweep
from smelt.latent.sweep_data import Sample, is_right
from smelt.latent.sweep_file import Row
from smelt.latent.sweep_grid import Cell, Grid, published_grid, weight_op
from smelt.latent.sweep_measure import How

OPS = ("lerp", "slerp", "regmean")
LAYERWISE = (*METRICS, "arc_deviation", "beta_cos")
Watcher = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Duel:
    """A blend against the weight merge of the same operator and share, on the same prompts."""

    op: str
    latent: Row
    weight: Row
    paths: tuple[Path, Path]
    exact: Mapping[str, Any] | None  # paired, where prompts have exact answers
    judge: Mapping[str, Any] | None = None  # win rate of the blend by judge, where one was asked

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        return {
            "op": self.op,
            "latent": self.latent["name"],
            "weight": self.weight["name"],
            "responses": [str(path) for path in self.paths],
            "exact": self.exact,
            "judge": self.judge,
        }


def experiment_a(
    arena: Arena,
    samples: Sequence[Sample],
    out: str | Path,
    how: How,
    *,
    site: str = "0.75n",
    share: float = 0.5,
    ops: Sequence[str] = OPS,
    on_change: Watcher = lambda step: None,
) -> tuple[Swept, list[Duel]]:
    """Answers of every operator as a blend and as a weight merge, at one site and one share of the donor.

    Regmean gets the λ whose share is this one. Answer files are what ``smelt latent judge`` reads.
    """
    if not 0 < share <= 1:
        raise LatentError(f"share {share:g}", where="experiment a", expected="above 0, at most 1")
    grid = Grid((site,), tuple(ops), (share,), (1 / share - 1,))
    swept = run_sweep(arena, samples, grid, out, replace(how, answers=True), on_change=on_change)
    rows = {row["name"]: row for row in swept.rows}
    duels = []
    for cell in grid.latent(arena.depth):
        rival = Cell("weight", weight_op(cell.op), beta=cell.ratio)
        if rows[rival.name]["status"] == "ok":
            duels.append(_duel(Path(out), samples, cell, rival, rows))
    return swept, duels


def _duel(out: Path, samples: Sequence[Sample], cell: Cell, rival: Cell, rows: Mapping[str, Row]) -> Duel:
    files, texts = [], []
    for system in (cell, rival):
        row = rows[system.name]
        answers = read_responses(out / answer_file(system, row["key"]))
        texts.append({one.id: one.text for one in answers})
        files.append(_copy(out / "responses", system, answers))
    return Duel(cell.op, rows[cell.name], rows[rival.name], (files[0], files[1]), _paired(samples, *texts))


def _copy(folder: Path, system: Cell, answers: Sequence[Response]) -> Path:
    """Answers under a name a person can type."""
    op = system.op.replace(":", "-")
    share = "" if system.ratio is None or system.kind == "latent" else f"-{system.ratio:.3g}"
    path = folder / f"{system.kind}-{op}{share}.jsonl"
    write_responses(path, answers)
    return path


def _paired(
    samples: Sequence[Sample], latent: Mapping[str, str | None], weight: Mapping[str, str | None]
) -> dict[str, Any] | None:
    """Prompts that only one of the two gets right, and how likely such a split is by chance."""
    pairs = [
        (is_right(latent[one.id], one.answer), is_right(weight[one.id], one.answer))
        for one in samples
        if one.answer is not None
    ]
    if not pairs:
        return None
    won = sum(a and not b for a, b in pairs)
    lost = sum(b and not a for a, b in pairs)
    both = sum(a and b for a, b in pairs)
    return {
        "n": len(pairs),
        "both": both,
        "latent_only": won,
        "weight_only": lost,
        "p": binomial_p(won, won + lost),
    }


def judge_command(duel: Duel, judge_model: str = "MODEL") -> str:
    """What to run to have a model judge the two."""
    a, b = duel.paths
    out = a.parent.parent / "judgements" / f"{duel.op.replace(':', '-')}.jsonl"
    words = ("--path-a", a, "--path-b", b, "--judge-model", judge_model, "--out", out)
    return shlex.join(["smelt", "latent", "judge", *map(str, words)])


def judge_duels(
    duels: Sequence[Duel],
    out: str | Path,
    judge_model: str,
    *,
    base_url: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    max_requests: int | None = None,
) -> list[Duel]:
    """Have a model behind an OpenAI-compatible endpoint judge every duel, in both orders; resumable."""
    endpoint, judged = Endpoint(base_url, api_key_env), []
    for duel in duels:
        a, b = duel.latent["name"], duel.weight["name"]
        material = load_material([(a, duel.paths[0]), (b, duel.paths[1])])
        file = Path(out) / "judgements" / f"{duel.op.replace(':', '-')}.jsonl"
        plan = Plan((make_judge(judge_model),), file, endpoint, Limits(max_requests=max_requests))
        results = run({(a, b): material.pairs(a, b)}, plan)
        found = comparison_report(material, plan, results).comparisons[(a, b)][judge_model]
        rate = found.win_rate
        verdict = {"judge": judge_model, "value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}
        verdict |= {
            "wins": found.wins,
            "ties": found.ties,
            "losses": found.losses,
            "complete": found.complete,
        }
        judged.append(replace(duel, judge=verdict))
    return judged


def duel_lines(duels: Sequence[Duel]) -> list[str]:
    """Markdown: latent against weight for each operator."""
    lines = [
        "| operator | latent: mean score | weight: mean score | only one right: latent / weight | sign p | judge: latent wins |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for duel in duels:
        scores = [_score(row) for row in (duel.latent, duel.weight)]
        exact, judge = duel.exact, duel.judge
        split = f"{exact['latent_only']} / {exact['weight_only']} of {exact['n']}" if exact else "–"
        chance = f"{exact['p']:.3g}" if exact else "–"
        lines.append(f"| {duel.op} | {scores[0]} | {scores[1]} | {split} | {chance} | {_judged(judge)} |")
    return lines


def _score(row: Row) -> str:
    return f"{row['scores']['mean']:.3f}" if row["scores"] else "–"


def _judged(judge: Mapping[str, Any] | None) -> str:
    if judge is None or judge["value"] is None:
        return "not judged" if judge is None else "no verdict"
    bounds = "" if judge["low"] is None else f" [{judge['low']:.3f}, {judge['high']:.3f}]"
    return f"{judge['value']:.3f}{bounds} of {judge['n']}"


def experiment_b(
    arena: Arena,
    samples: Sequence[Sample],
    out: str | Path,
    how: How,
    *,
    sites: Sequence[str] = (),
    share: float = 0.5,
    ops: Sequence[str] = OPS,
    on_change: Watcher = lambda step: None,
) -> tuple[Swept, list[dict[str, Any]]]:
    """Similarity of blends and weight merges to their sources, at every layer; and the table of it.

    Sites are the published layers scaled to the depth, if none are given.
    """
    if not 0 < share <= 1:
        raise LatentError(f"share {share:g}", where="experiment b", expected="above 0, at most 1")
    places = tuple(sites) or published_grid(arena.depth).sites
    grid = Grid(places, tuple(ops), (share,), (1 / share - 1,))
    only = replace(how, answers=False, metrics=True, layerwise=True)
    swept = run_sweep(arena, samples, grid, out, only, on_change=on_change)
    return swept, layer_rows(swept.rows)


def layer_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line for every system and layer looked at."""
    return [
        {
            **{name: row[name] for name in ("name", "kind", "op")},
            "site": "+".join(map(str, row["layers"])),
            "ratio": row["ratio"],
            "layer": layer["site"],
            **{f"{name}_mean": layer.get(name, {}).get("mean") for name in LAYERWISE},
        }
        for row in rows
        for layer in row["layerwise"] or ()
    ]


def similarity_lines(rows: Sequence[Row]) -> list[str]:
    """Markdown: latent against weight, final state, range over sites.

    Both deviations stand there: of the arc ratio from a half, and in radians from the middle of the arc.
    """
    names = {
        "cka_base_vs_mixed": "CKA(base, merged)",
        "midpoint_cos": "midness",
        "arc_ratio": "arc ratio",
        "arc_deviation": "arc ratio minus ½, absolute",
        "arc_mid_deviation": "arc deviation (rad)",
    }
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["kind"] in ("latent", "weight") and row["metrics"]:
            groups.setdefault(f"{row['kind']} {row['op']}", []).append(row)
    lines = [
        "| system | " + " | ".join(names.values()) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for group, members in groups.items():
        lines.append(f"| {group} | " + " | ".join(_range(members, name) for name in names) + " |")
    return lines


def _range(rows: Sequence[Row], name: str) -> str:
    found = [row["metrics"][name]["mean"] for row in rows if row["metrics"][name]["mean"] is not None]
    if not found:
        return "–"
    middle = f"{statistics.fmean(found):.3f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):.3f} to {max(found):.3f})"


def experiment_c(
    arena: Arena,
    samples: Sequence[Sample],
    out: str | Path,
    how: How,
    *,
    ops: Sequence[str] = OPS,
    every_layer: bool = False,
    report: Sequence[Sample] | None = None,
    on_change: Watcher = lambda step: None,
) -> Swept:
    """The published layers scaled to the depth (or every layer), ratios 1/4, 1/2, 3/4, each operator."""
    grid = published_grid(arena.depth, ops)
    if every_layer:
        grid = replace(grid, sites=tuple(str(layer) for layer in range(arena.depth)))
    return run_sweep(arena, samples, grid, out, how, report=report, on_change=on_change)
