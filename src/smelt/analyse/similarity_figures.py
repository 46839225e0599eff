"""Pictures of similarity layer by layer: blends beside weight merges, one figure for each metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smelt.analyse.figures import Curves, Labels, curves, save
from smelt.analyse.sweep_figures import METRIC_TITLES

DRAWN = ("cka_base_vs_mixed", "cka_ft_vs_mixed", "midpoint_cos", "arc_ratio", "arc_mid_deviation")


def draw_similarity(table: Sequence[Mapping[str, Any]], out: str | Path) -> dict[str, str]:
    """``table``: rows of system ``name``, ``layer`` looked at, ``<metric>_mean``; captions by file name."""
    shown = [row for row in table if row["kind"] in ("latent", "weight")]
    drawn: dict[str, str] = {}
    for op in dict.fromkeys(row["op"] for row in shown if row["kind"] == "latent"):
        rival = "slerp" if op == "slerp" else "linear"
        members = [row for row in shown if row["op"] == (op if row["kind"] == "latent" else rival)]
        shares = {row["ratio"] for row in members if row["kind"] == "latent"}
        members = [row for row in members if row["kind"] == "latent" or row["ratio"] in shares]
        for metric in DRAWN:
            title = f"{op}, latent and weight: {METRIC_TITLES[metric]}"
            labels = Labels(
                title,
                "layer whose input is compared (the last: before the final norm)",
                METRIC_TITLES[metric],
            )
            figure = curves(members, labels, Curves("layer", f"{metric}_mean", "name"))
            drawn[save(figure, Path(out) / f"layerwise_{metric}_{op.replace(':', '-')}.png").name] = title
    return drawn
