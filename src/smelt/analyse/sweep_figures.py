"""The pictures of a latent sweep: a heat map for each operator, curves over layers, bars of the best cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smelt.analyse.figures import Curves, Labels, bars, curves, heat_map, save

Row = Mapping[str, Any]
LAYER = "layer of the site (input of that decoder layer)"
SCORE = "exact answers, mean over skills (share)"
METRIC_TITLES = {
    "score": SCORE,
    "midpoint_cos": "cosine to the midpoint of the arc",
    "beta_cos": "cosine to the point at share β of the arc",
    "arc_ratio": "arc ratio d(base, blend) / d(base, donor)",
    "arc_mid_deviation": "deviation from the middle of the arc (radians)",
    "cka_base_vs_mixed": "linear CKA of base and blend",
    "cka_ft_vs_mixed": "linear CKA of donor and blend",
}


def draw_sweep(rows: Sequence[Row], best: Sequence[Row], out: str | Path) -> dict[str, str]:
    """Write all pictures of a sweep below ``out``; captions by file name."""
    out = Path(out)
    drawn: dict[str, str] = {}
    blends = [row for row in rows if row["kind"] == "latent" and len(row["layers"]) == 1]
    for value in _values(blends):
        for name in dict.fromkeys((row["op"], row["scope"]) for row in blends):
            members = [row for row in blends if (row["op"], row["scope"]) == name]
            drawn |= _heat(members, name, value, out)
        drawn |= _curves(rows, blends, value, out)
    if best:
        drawn |= _bars(best, out)
    return drawn


def _values(blends: Sequence[Row]) -> list[str]:
    values = ["score"] if any(row["scores"] for row in blends) else []
    return values + (["midpoint_cos", "arc_ratio"] if any(row["metrics"] for row in blends) else [])


def _figure(row: Row, value: str, part: str = "mean") -> float | None:
    if value != "score":
        return row["metrics"][value][part] if row["metrics"] else None
    if not row["scores"]:
        return None
    return row["scores"]["mean"] if part == "mean" else row["scores"]["pooled"][part]


def _ratio(row: Row) -> float:
    return float(row["beta"] if row["lambda"] is None else row["lambda"])


def _heat(members: Sequence[Row], name: tuple[str, str], value: str, out: Path) -> dict[str, str]:
    op, scope = name
    letter = (
        "λ (share of the donor 1 / (1 + λ))" if members[0]["lambda"] is not None else "β (share of the donor)"
    )
    table = [{"x": _ratio(row), "y": row["layers"][0], "v": _figure(row, value)} for row in members]
    title = f"{op}, {'generated tokens' if scope == 'generated' else 'all tokens'}: {METRIC_TITLES[value]}"
    limits = (0.0, 1.0) if value == "score" else (None, None)
    labels = Labels(title, letter, LAYER.split(" (")[0], METRIC_TITLES[value])
    figure = heat_map(table, labels, x="x", y="y", value="v", low=limits[0], high=limits[1])
    stem = f"heat_{value}_{op.replace(':', '-')}" + ("_generated" if scope == "generated" else "")
    return {save(figure, out / f"{stem}.png").name: title}


def _curves(rows: Sequence[Row], blends: Sequence[Row], value: str, out: Path) -> dict[str, str]:
    """Over layers, each operator at the ratio that serves it best (score) or at its middle one (metrics)."""
    table = []
    for op in dict.fromkeys(row["op"] for row in blends):
        members = [row for row in blends if row["op"] == op and row["scope"] == blends[0]["scope"]]
        ratio = _chosen_ratio(members, value)
        label = f"{op} {'λ' if members[0]['lambda'] is not None else 'β'}={ratio:g}"
        for row in members:
            if _ratio(row) == ratio:
                band = {part: _figure(row, value, part) for part in ("low", "high")}
                table.append({"layer": row["layers"][0], "v": _figure(row, value), "name": label, **band})
    single = value != "score" or _one_skill(blends)
    how = Curves(
        "layer", "v", "name", "low" if single else None, "high" if single else None, _levels(rows, value)
    )
    title = f"{METRIC_TITLES[value]} over the layers"
    figure = curves(table, Labels(title, LAYER, METRIC_TITLES[value]), how)
    return {save(figure, out / f"curve_{value}.png").name: title}


def _one_skill(rows: Sequence[Row]) -> bool:
    """Whether the pooled interval is that of the mean over skills."""
    return all(len(row["scores"]["skills"]) == 1 for row in rows if row["scores"])


def _chosen_ratio(members: Sequence[Row], value: str) -> float:
    ratios = sorted({_ratio(row) for row in members})
    if value != "score":
        return ratios[len(ratios) // 2]
    totals = {one: sum(_figure(row, value) or 0.0 for row in members if _ratio(row) == one) for one in ratios}
    return max(ratios, key=lambda one: totals[one])


def _levels(rows: Sequence[Row], value: str) -> dict[str, float]:
    """The best row of every kind of baseline but the stitched ones, which have a layer of their own."""
    best: dict[str, float] = {}
    for row in rows:
        if row["kind"] not in ("base", "donor", "weight", "ensemble"):
            continue
        name = " ".join(part for part in (row["kind"], row["op"]) if part)
        found = _figure(row, value)
        if value != "score":
            found = found if row["kind"] == "weight" and row["beta"] == 0.5 else None
        if found is not None and found > best.get(name, -1.0):
            best[name] = found
    return best


def _bars(best: Sequence[Row], out: Path) -> dict[str, str]:
    table = [
        {"name": row["name"], **{part: row["scores"]["pooled"][part] for part in ("value", "low", "high")}}
        for row in best
        if row["scores"]
    ]
    labels = Labels(
        "Best cell of each kind, 95 % Wilson interval", "exact answers, all prompts (share)", "system"
    )
    figure = bars(table, labels, name="name", value="value", low="low", high="high")
    return {save(figure, out / "best.png").name: labels.title}
