"""From hidden states of base, donor and blend to tidy rows, with the published column names."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from smelt.core.errors import LatentError
from smelt.latent.metrics import linear_cka, midness_seq
from smelt.latent.states import States

METRICS = (
    "midpoint_cos",
    "arc_mid_deviation",
    "arc_ratio",
    "cka_base_vs_ft",
    "cka_base_vs_mixed",
    "cka_ft_vs_mixed",
)
CSV_COLUMNS = ("layer", "beta", "n", *(f"{name}_{part}" for name in METRICS for part in ("mean", "std")))
SUMMARY_COLUMNS = (
    "Method",
    "Merge Type",
    "Last Token Only",
    "Midpoint Cos (↑)",
    "Arc Mid Dev (rad, ↓)",
    "Arc Ratio (≈0.5, ↑center)",
    "CKA Base–FT (↑)",
    "CKA Base–Mixed (↑)",
    "CKA FT–Mixed (↑)",
)
SYSTEM_COST_COLUMNS = (
    *("mode", "base_model", "ft_model", "device", "dtype", "load_in_8bit", "load_in_4bit", "max_new_tokens"),
    *("ttft_s", "latency_s", "decode_tokens", "decode_tps", "gpu_peak_alloc_mb", "gpu_peak_reserved_mb"),
    *("cpu_rss_mb", "notes"),
)


def compare(base: Tensor, donor: Tensor, merged: Tensor, *, beta: float | None = None) -> dict[str, float]:
    """All metrics of one prompt at one site: midness of the blend, and CKA of the three pairs."""
    return {
        **midness_seq(base, donor, merged, beta=beta),
        "cka_base_vs_ft": linear_cka(base, donor),
        "cka_base_vs_mixed": linear_cka(base, merged),
        "cka_ft_vs_mixed": linear_cka(donor, merged),
    }


def compare_prompts(
    base: Iterable[States],
    donor: Iterable[States],
    merged: Iterable[States],
    *,
    site: int | None = None,
    beta: float | None = None,
) -> list[dict[str, float]]:
    """``compare`` for every prompt, at one fixed ``site`` (None: the last one, as in published tables).

    The three may be lists, or the running iterators of ``iterate_states``.
    """
    samples = []
    for index, (b, d, m) in enumerate(zip(base, donor, merged, strict=True)):
        at = max(b) if site is None else site
        for name, states in (("base", b), ("donor", d), ("merged", m)):
            if at not in states:
                raise LatentError(
                    f"no state at site {at}", where=f"{name}, prompt {index}", fix=f"has {sorted(states)}"
                )
        try:
            samples.append(compare(b[at], d[at], m[at], beta=beta))
        except LatentError as error:
            raise LatentError(str(error), where=f"prompt {index}, site {at}") from error
    return samples


def layerwise(
    base: Iterable[States], donor: Iterable[States], merged: Iterable[States], *, beta: float | None = None
) -> list[dict[str, Any]]:
    """One row per site: means and deviations over prompts of every metric at that very site.

    Unlike the published tables, which always look at the last state, this shows where in the depth the blend
    leaves its sources.
    """
    cells: dict[int, list[dict[str, float]]] = {}
    for b, d, m in zip(base, donor, merged, strict=True):
        for site in b:
            cells.setdefault(site, []).append(compare(b[site], d[site], m[site], beta=beta))
    return [{"site": site, "n": len(cells[site]), **_spread(cells[site])} for site in sorted(cells)]


def layerwise_cka(x: Iterable[States], y: Iterable[States]) -> dict[int, float]:
    """Mean linear CKA over prompts at every site that both hold."""
    found: dict[int, list[float]] = {}
    for a, b in zip(x, y, strict=True):
        for site in sorted(a.keys() & b.keys()):
            found.setdefault(site, []).append(linear_cka(a[site], b[site]))
    return {site: statistics.fmean(values) for site, values in found.items()}


def _spread(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean and sample deviation of each metric; undefined values (NaN) are left out."""
    row: dict[str, float] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples if not math.isnan(sample[name])]
        row[f"{name}_mean"] = statistics.fmean(values) if values else math.nan
        row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0 if values else math.nan
    return row


def metric_row(
    samples: Sequence[Mapping[str, float]],
    *,
    layer: int,
    beta: float | None = None,
    lambda_reg: float | None = None,
    extra: bool = False,
) -> dict[str, Any]:
    """One row of a layer table: ``layer, beta, n``, then mean and std over prompts of the published metrics.

    RegMean tables have ``lambda_reg`` where the others have ``beta``. ``extra`` adds the columns that the
    published tables lack: medians, ``arc_deviation``, the beta-aware midness, token counts.

    >>> row = metric_row([dict.fromkeys(METRICS, 0.5), dict.fromkeys(METRICS, 0.7)], layer=3, beta=0.25)
    >>> list(row) == list(CSV_COLUMNS), row["n"], round(row["arc_ratio_std"], 4)
    (True, 2, 0.1414)
    """
    if (beta is None) == (lambda_reg is None):
        raise LatentError("a row is keyed by beta or by lambda_reg", fix="pass exactly one of them")
    if not samples:
        raise LatentError("no samples", where=f"layer {layer}", fix="compare at least one prompt")
    spread = _spread(samples)
    key = {"beta": beta} if lambda_reg is None else {"lambda_reg": lambda_reg}
    row: dict[str, Any] = {"layer": layer, **key, "n": len(samples)}
    row |= {column: spread[column] for column in CSV_COLUMNS[3:]}
    return {**row, **spread} if extra else row


def summary_row(
    rows: Sequence[Mapping[str, Any]],
    *,
    method: str,
    merge_type: str = "Latent",
    last_token_only: bool = False,
) -> dict[str, Any]:
    """The grand mean over a layer table, under the headings of the published summaries."""
    if not rows:
        raise LatentError("no rows to summarise", where=method)
    means = [statistics.fmean(row[f"{name}_mean"] for row in rows) for name in METRICS]
    return dict(zip(SUMMARY_COLUMNS, (method, merge_type, last_token_only, *means), strict=True))
