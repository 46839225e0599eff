"""docs/latent.md and its plots out of the rows of several seeds; what is said of them follows from the figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smelt.analyse.figures import Curves, Labels, bars, curves, heat_map, save
from smelt.latent.sweep import best_rows

LAYER = "layer of the site (input of that decoder layer; the last is before the final norm)"
SHARE = "right answers, mean over skills (share)"
CAPTIONS = {
    "families": "Best of each kind, held-out prompts, range over seeds",
    "layers": "Half blends over the layers, with whole-model baselines at the same ratio",
    "slerp": "slerp: mean over skills, by layer and ratio",
    "midness": "Midness of half blends over the layers",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One seed: all rows on the selection prompts, the chosen ones on the report prompts."""

    seed: int
    rows: list[dict[str, Any]]
    report: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A system over seeds."""

    name: str
    means: tuple[float, ...]
    worsts: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the means over skills."""
        return statistics.fmean(self.means)

    @property
    def deviation(self) -> float:
        """Of the means over skills, between seeds."""
        return statistics.stdev(self.means) if len(self.means) > 1 else 0.0

    @property
    def worst(self) -> float:
        """Mean over seeds of the worse skill."""
        return statistics.fmean(self.worsts)


def spreads(
    groups: Iterable[Sequence[Mapping[str, Any]]], name: Callable[[Mapping[str, Any]], str]
) -> list[Spread]:
    """Rows of each seed gathered by name; systems that some seed lacks are left out."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    count = 0
    for rows in groups:
        count += 1
        for row in rows:
            if row["scores"]:
                found.setdefault(name(row), []).append(row["scores"])
    return [
        Spread(key, tuple(one["mean"] for one in scores), tuple(one["worst"] for one in scores))
        for key, scores in found.items()
        if len(scores) == count
    ]


def family(row: Mapping[str, Any]) -> str:
    """Kind and operator."""
    return " ".join(part for part in (row["kind"], row["op"]) if part)


def write_page(regimes: Mapping[float, Sequence[Run]], setup: Any, docs: Path) -> Path:
    """Write the page and its plots; ``regimes``: seeds by the share of the other skill that was kept."""
    docs.mkdir(parents=True, exist_ok=True)
    parts = [intro(setup)]
    for kept, runs in regimes.items():
        chosen = spreads((run.report for run in runs), family)
        cells = spreads((run.rows for run in runs), lambda row: row["name"])
        tag = f"_{kept * 100:g}"
        draw(runs, chosen, docs, tag)
        parts += [
            heading(kept),
            best_table(chosen, runs, tag),
            *findings(chosen, spreads((best_rows(run.rows) for run in runs), family), cells),
        ]
        parts += [layer_table(runs, tag), midness(runs, tag)]
    parts.append(notes())
    page = docs / "latent.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


def heading(kept: float) -> str:
    """What is particular to a regime."""
    if not kept:
        return """## When nothing of the other skill was kept

After the ancestor each model saw its own skill alone."""
    return f"""## When a little of the other skill was kept

After the ancestor {100 * kept:g} % of each model's training was the other skill."""


def intro(setup: Any) -> str:
    """What was done."""
    return f"""# Latent merging: what it does and what it is worth

<!-- written by `make latent-bench`; the prose is in bench/latent_page.py -->

Latent merging blends the hidden states of two models while they generate. This page measures it where
everything can be checked: {setup.seeds} pairs of Llama models of four layers (hidden size {setup.width}), trained here
from one ancestor ({setup.ancestor_steps} steps on both skills, then {setup.steps} steps on one of them). One skill
reverses four letters, the other moves each letter one on. An answer counts only if every letter is right.
Base and donor are the two specialists; "weight" merges their weights by smelt's engine, "ensemble" mixes their
outputs, "stitched" sets the base's upper layers on the donor's lower ones.

Each kind of system tries its ratios (and layers) on {setup.select} words per skill; the best of them is then measured
on {setup.report} other words per skill. Training saw none of these words. So the first table is free of
the bias of picking a winner among many on the prompts that it is reported on. Run it again with
`make latent-bench` (about four minutes on one quiet CPU core); `smelt latent sweep` does the same for any two models."""


def best_table(chosen: Sequence[Spread], runs: Sequence[Run], tag: str) -> str:
    """The table that matters."""
    picked: dict[str, list[str]] = {}
    for run in runs:
        for row in run.report:
            picked.setdefault(family(row), []).append(_setting(row))
    lines = [
        "### Best of each kind, on held-out prompts",
        "",
        "| system | mean over skills | ± between seeds | lowest seed | worse skill | chosen, seed by seed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in sorted(chosen, key=lambda one: -one.mean):
        figures = f"{one.mean:.3f} | {one.deviation:.3f} | {min(one.means):.3f} | {one.worst:.3f}"
        lines.append(f"| {one.name} | {figures} | {', '.join(picked[one.name]) or '–'} |")
    return "\n".join([*lines, "", image("families", tag)])


def image(name: str, tag: str) -> str:
    """A plot of this regime, as markdown."""
    return f"![{CAPTIONS[name]}](latent_{name}{tag}.png)"


def _setting(row: Mapping[str, Any]) -> str:
    layers = "L" + "+".join(map(str, row["layers"])) if row["layers"] else ""
    ratio = f"β={row['beta']:g}" if row["beta"] is not None and row["kind"] != "stitched" else ""
    ratio = f"λ={row['lambda']:g}" if row["lambda"] is not None else ratio
    return " ".join(part for part in (layers, ratio) if part) or "–"


def findings(chosen: Sequence[Spread], picked: Sequence[Spread], cells: Sequence[Spread]) -> list[str]:
    """Sentences that follow from the figures, whichever way they fall.

    ``picked``: the best of each family on the selection prompts, by which families are chosen too.
    """
    by_name = {one.name: one for one in [*cells, *chosen]}
    latent = _champion("latent", chosen, picked)
    lines = ["### What was seen", ""]
    for kind, title in (("ensemble", "ensemble"), ("weight", "weight merge"), ("stitched", "stitched model")):
        lines.append(f"- {_against(latent, _champion(kind, chosen, picked), title)}")
    singles = [by_name[name] for name in ("base", "donor") if name in by_name]
    best_single = max(singles, key=lambda one: one.mean)
    lines.append(
        f"- Alone, the better of the two models reaches {best_single.mean:.3f}, and {best_single.worst:.3f} on its "
        "worse skill: what lies above both has put two skills together."
    )
    lines += _halves(by_name)
    lines.append(
        "- An ensemble runs both models whole, so it is the baseline to beat. A blend at layer L of n runs n + L "
        "layers a token where the ensemble runs 2n: what it saves, it saves by blending early, which is where "
        "the table below shows what it loses. A blend also can be steered, scheduled and gated token by token."
    )
    return ["\n".join(lines)]


def _champion(kind: str, chosen: Sequence[Spread], picked: Sequence[Spread]) -> Spread:
    """The family of a kind that did best on the selection prompts, with its held-out figures."""
    held_out = {one.name: one for one in chosen}
    best = max((one for one in picked if one.name.split()[0] == kind), key=lambda one: one.mean)
    return held_out[best.name]


def _against(latent: Spread, rival: Spread, title: str) -> str:
    gaps = [a - b for a, b in zip(latent.means, rival.means, strict=True)]
    gap = statistics.fmean(gaps)
    wins, losses = sum(one > 0 for one in gaps), sum(one < 0 for one in gaps)
    error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
    if abs(gap) <= max(2 * error, 0.005):
        verdict = "no difference that these seeds can tell"
        verdict += " (both are at the ceiling of this task)" if min(latent.mean, rival.mean) > 0.99 else ""
    else:
        verdict = "ahead" if gap > 0 else "behind"
    return (
        f"The best blend ({latent.name}, {latent.mean:.3f}) against the best {title} ({rival.name}, {rival.mean:.3f}): "
        f"{gap:+.3f} ± {error:.3f} (standard error), better in {wins} seeds, worse in {losses}: {verdict}."
    )


def _halves(by_name: Mapping[str, Spread]) -> list[str]:
    """lerp against slerp at the half, first layer against last."""
    pairs = [
        (layer, by_name[f"latent lerp L{layer} β=0.5"], by_name[f"latent slerp L{layer} β=0.5"])
        for layer in range(99)
        if f"latent lerp L{layer} β=0.5" in by_name and f"latent slerp L{layer} β=0.5" in by_name
    ]
    if not pairs:
        return []
    gaps = {layer: slerp.mean - lerp.mean for layer, lerp, slerp in pairs}
    shown = ", ".join(f"{gap:+.3f} at L{layer}" for layer, gap in gaps.items())
    best = max(pairs, key=lambda one: max(one[1].mean, one[2].mean))
    low = min(pairs, key=lambda one: max(one[1].mean, one[2].mean))
    return [
        f"- slerp minus lerp, half blends: {shown}.",
        f"- Half blends do best at layer {best[0]} ({max(best[1].mean, best[2].mean):.3f}) and worst at layer "
        f"{low[0]} ({max(low[1].mean, low[2].mean):.3f}).",
        "- RegMean as published (shrinking) is lerp with β = 1 / (1 + λ): its rows are lerp at 0.8, 0.667 and 0.571, "
        "and its weight merge is the weighted average at these shares.",
    ]


def layer_table(runs: Sequence[Run], tag: str) -> str:
    """Every blend, all seeds: no choice is made here, so nothing is biased by one."""
    cells = {one.name: one for one in spreads((run.rows for run in runs), lambda row: row["name"])}
    rows = [row for row in runs[0].rows if row["kind"] == "latent"]
    lines = [
        "### Every layer and ratio",
        "",
        "Mean over skills and seeds (worse skill in brackets), selection prompts.",
    ]
    for op in dict.fromkeys(row["op"] for row in rows):
        members = [row for row in rows if row["op"] == op]
        ratios = list(dict.fromkeys(_ratio(row) for row in members))
        letter = "β" if members[0]["lambda"] is None else "λ"
        lines += ["", f"**{op}**", "", _line(["layer", *(f"{letter}={ratio:g}" for ratio in ratios)])]
        lines.append(_line(["---"] * (len(ratios) + 1)))
        for place in dict.fromkeys(tuple(row["layers"]) for row in members):
            at = [row for row in members if tuple(row["layers"]) == place]
            shown = [f"{cells[row['name']].mean:.3f} ({cells[row['name']].worst:.3f})" for row in at]
            lines.append(_line(["+".join(map(str, place)), *shown]))
    return "\n".join([*lines, *(f"\n{image(name, tag)}" for name in ("layers", "slerp"))])


def _ratio(row: Mapping[str, Any]) -> float:
    return float(row["beta"] if row["lambda"] is None else row["lambda"])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def midness(runs: Sequence[Run], tag: str) -> str:
    """What the published similarity figures say, beside the scores."""
    table = half_blends(runs)
    lines = [
        "### Midness is not quality",
        "",
        "Cosine of the final state to the midpoint of the arc between base and donor, half blends and half weight "
        "merges, beside the score.",
        "",
        "| system | midness | score |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {row['name']} | {row['midness']:.3f} | {row['score']:.3f} |" for row in table]
    last = [row for row in table if row["op"] == "slerp"][-1]
    lines += [
        "",
        f"At the last layer a half slerp has midness {last['midness']:.3f} by construction, whatever the models are: "
        "midness measured at the final state says how near the site is to the end. Choose by a task's score.",
        "",
        image("midness", tag),
    ]
    return "\n".join(lines)


def half_blends(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Midness and score of half blends at each layer and of half weight merges, means over seeds."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for row in run.rows:
            if row["beta"] == 0.5 and row["kind"] in ("latent", "weight") and len(row["layers"]) < 2:
                cells.setdefault(row["name"], []).append(row)
    return [
        {
            "name": name,
            "kind": rows[0]["kind"],
            "op": rows[0]["op"] if rows[0]["kind"] == "latent" else f"weight {rows[0]['op']}",
            "layer": rows[0]["layers"][0] if rows[0]["layers"] else None,
            "midness": statistics.fmean(row["metrics"]["midpoint_cos"]["mean"] for row in rows),
            "score": statistics.fmean(row["scores"]["mean"] for row in rows),
            "low": min(row["scores"]["mean"] for row in rows),
            "high": max(row["scores"]["mean"] for row in rows),
        }
        for name, rows in cells.items()
    ]


def notes() -> str:
    """What these figures cannot say."""
    return """## How far this reaches

These are tiny models with two sharp skills and one ancestor. They show that composition in hidden states is real and
how it compares with its baselines under equal conditions; they do not predict what two large models do on open
questions. For those run `smelt latent experiment a` (answers, exact scores, and a judge), `b` (similarity layer by
layer) and `c` (layers and ratios) on the models in question, with `--report` prompts that were not chosen on."""


def draw(runs: Sequence[Run], chosen: Sequence[Spread], docs: Path, tag: str) -> None:
    """All plots of the page."""
    table = [
        {"name": one.name, "mean": one.mean, "low": min(one.means), "high": max(one.means)}
        for one in sorted(chosen, key=lambda one: -one.mean)
    ]
    labels = Labels(CAPTIONS["families"], SHARE, "system")
    save(
        bars(table, labels, name="name", value="mean", low="low", high="high"),
        docs / f"latent_families{tag}.png",
    )
    halves = [row for row in half_blends(runs) if row["kind"] == "latent"]
    levels = {
        one.name: one.mean
        for one in spreads((run.rows for run in runs), lambda row: row["name"])
        if one.name.startswith(("base", "donor", "weight", "ensemble")) and ("β" not in one.name or "β=0.5" in one.name)
        and "0.57" not in one.name
    }  # fmt: skip
    how = Curves("layer", "score", "op", "low", "high", levels)
    save(curves(halves, Labels(CAPTIONS["layers"], LAYER, SHARE), how), docs / f"latent_layers{tag}.png")
    arcs = {row["op"]: row["midness"] for row in half_blends(runs) if row["kind"] == "weight"}
    labels = Labels(CAPTIONS["midness"], LAYER, "cosine to the midpoint of the arc")
    save(
        curves(halves, labels, Curves("layer", "midness", "op", levels=arcs)),
        docs / f"latent_midness{tag}.png",
    )
    _draw_heat(runs, docs / f"latent_slerp{tag}.png")


def _draw_heat(runs: Sequence[Run], path: Path) -> None:
    means = {one.name: one.mean for one in spreads((run.rows for run in runs), lambda row: row["name"])}
    table = [
        {"x": row["beta"], "y": row["layers"][0], "v": means[row["name"]]}
        for row in runs[0].rows
        if row["kind"] == "latent" and row["op"] == "slerp" and len(row["layers"]) == 1
    ]
    labels = Labels(CAPTIONS["slerp"], "β (share of the donor)", "layer of the site", SHARE)
    save(heat_map(table, labels, x="x", y="y", value="v", low=0.0, high=1.0), path)
