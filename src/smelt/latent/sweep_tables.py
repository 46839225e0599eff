"""Views of a sweep's rows: tables with the published headings, pivots of layer by ratio, best cells, a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smelt.evaluate._text import write_atomically
from smelt.latent.costs import cost_row
from smelt.latent.metric_rows import CSV_COLUMNS, METRICS, SUMMARY_COLUMNS, SYSTEM_COST_COLUMNS, summary_row
from smelt.latent.sweep import Swept, best_rows, family
from smelt.latent.sweep_file import Row
from smelt.latent.sweep_grid import BASELINES

FLAT_METRICS = (*METRICS, "beta_cos", "beta_arc_deviation", "arc_deviation")
COST_FIGURES = ("ttft_s", "decode_tps", "gpu_peak_alloc_mb", "cpu_rss_mb")
UNCHOSEN = "No prompt has an exact answer, so no cell is called best: midness grows with the layer by itself."


def is_latent(row: Mapping[str, Any]) -> bool:
    """Whether a row is a blend."""
    return bool(row["kind"] == "latent")


def layer_table(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Blends of one operator at one site each, under the published headings: ``layer, beta, n, ...``."""
    table = []
    for row in rows:
        if row["metrics"] is None or len(row["layers"]) != 1:
            continue
        key = {"beta": row["beta"]} if row["lambda"] is None else {"lambda_reg": row["lambda"]}
        figures = {
            f"{name}_{part}": row["metrics"][name][part] for name in METRICS for part in ("mean", "std")
        }
        count = row["metrics"]["midpoint_cos"]["n"]
        table.append({"layer": row["layers"][0], **key, "n": count, **figures})
    return table


def layer_columns(op: str) -> tuple[str, ...]:
    """The headings of an operator's layer table."""
    return tuple(
        "lambda_reg" if name == "beta" and op.startswith("regmean") else name for name in CSV_COLUMNS
    )


def summaries(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The grand mean of every family that has states, under the published headings."""
    found = []
    for name, members in grouped(rows).items():
        table = [
            {f"{metric}_mean": row["metrics"][metric]["mean"] for metric in METRICS}
            for row in members
            if row["metrics"] is not None
        ]
        whole = [one for one in table if None not in one.values()]
        if whole and members[0]["kind"] in ("latent", "weight"):
            kind = members[0]["kind"].capitalize()
            last = members[0]["scope"] == "generated"
            found.append(
                summary_row(whole, method=name.split(" ", 1)[1], merge_type=kind, last_token_only=last)
            )
    return found


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by family (and scope), in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = family(row) + (" generated" if row["scope"] == "generated" else "")
        found.setdefault(name, []).append(row)
    return found


def flat_row(row: Row) -> dict[str, Any]:
    """One line of ``sweep.csv``: every cell and baseline with its scores, metrics and costs."""
    scores, costs = row["scores"] or {}, row["costs"] or {}
    pooled = scores.get("pooled", {})
    line = {name: row[name] for name in ("name", "status", "split", "kind", "op")}
    line["layers"] = "+".join(map(str, row["layers"]))
    line |= {name: row[name] for name in ("beta", "lambda", "ratio", "scope", "n")}
    line |= {"score_mean": scores.get("mean"), "score_worst": scores.get("worst")}
    line |= {f"score_pooled_{part}": pooled.get(part) for part in ("value", "low", "high")}
    for name in FLAT_METRICS:
        figures = (row["metrics"] or {}).get(name, {})
        line |= {f"{name}_{part}": figures.get(part) for part in ("mean", "std", "low", "high")}
    return line | {name: costs.get(name) for name in COST_FIGURES}


def to_csv(table: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Comma-separated text; an undefined figure is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def pivot(rows: Sequence[Row], value: str = "score") -> str:
    """Markdown: layers down, ratios across; ``value`` is ``score`` or a metric.

    The published ratio of regmean is λ: its columns are headed by it.
    """
    ratios = sorted({_ratio(row) for row in rows})
    places = sorted({tuple(row["layers"]) for row in rows})
    letter = "λ" if rows and rows[0]["lambda"] is not None else "β"
    cells = {(tuple(row["layers"]), _ratio(row)): figure(row, value) for row in rows}
    lines = [
        _line(["layer", *(f"{letter}={ratio:g}" for ratio in ratios)]),
        _line(["---"] * (len(ratios) + 1)),
    ]
    for place in places:
        shown = [_number(cells.get((place, ratio))) for ratio in ratios]
        lines.append(_line(["+".join(map(str, place)), *shown]))
    return "\n".join(lines)


def _ratio(row: Row) -> float:
    return float(row["beta"] if row["lambda"] is None else row["lambda"])


def figure(row: Row, value: str) -> float | None:
    """A row's mean score, or the mean of one of its metrics."""
    if value == "score":
        return row["scores"]["mean"] if row["scores"] else None
    return row["metrics"][value]["mean"] if row["metrics"] else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def scored_lines(rows: Sequence[Row]) -> str:
    """Markdown table of systems: mean over skills, worst skill, pooled share with interval, speed."""
    lines = [
        "| system | mean over skills | worst skill | pooled, 95 % interval | tokens/s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row["status"] != "ok":
            lines.append(_line([row["name"], "–", "–", f"impossible: {_cell(row['reason'])}", "–"]))
            continue
        scores, costs = row["scores"] or {}, row["costs"] or {}
        worst = f"{_number(scores.get('worst'))} ({_cell(scores['worst_skill'])})" if scores else "–"
        speed = costs.get("decode_tps")
        shown = "–" if speed is None else f"{speed:.1f}"
        lines.append(_line([row["name"], _number(scores.get("mean")), worst, _interval(scores), shown]))
    return "\n".join(lines)


def _interval(scores: Mapping[str, Any]) -> str:
    if not scores:
        return "–"
    pooled = scores["pooled"]
    return f"{pooled['value']:.3f} [{pooled['low']:.3f}, {pooled['high']:.3f}] of {pooled['n']}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def best_lines(swept: Swept) -> list[str]:
    """The best cell of each family, and what its figures are worth."""
    best = best_rows(swept.rows)
    if not best:
        return [UNCHOSEN]
    if swept.report:
        head = "Chosen on the selection prompts, measured on the report prompts, which played no part in the choice."
        return [head, "", scored_lines(swept.report)]
    tried = ", ".join(f"{name} {len(members)}" for name, members in grouped(swept.rows).items())
    head = (
        "Chosen and measured on the same prompts: the best of many looks better than it is. "
        f"Give `--report` another file for figures without that bias. Cells tried: {tried}."
    )
    return [head, "", scored_lines(best)]


def page(swept: Swept, figures: Mapping[str, str] | None = None) -> str:
    """The markdown report of a sweep; ``figures`` are captions by file name."""
    rows = swept.rows
    models = rows[0]["models"]
    lines = ["# Latent sweep", ""]
    lines += [
        f"Base `{models['base']['name']}`, donor `{models['donor']['name']}`, {rows[0]['n']} prompts.",
        "",
    ]
    lines += ["## Best of each kind", "", *best_lines(swept), "", "## Baselines", ""]
    lines += [scored_lines([row for row in rows if row["kind"] in BASELINES]), ""]
    value, title = (
        ("score", "mean score over skills") if best_rows(rows) else ("beta_cos", "midness at its own β")
    )
    for name, members in grouped(row for row in rows if is_latent(row)).items():
        shown = value if figure(members[0], value) is not None else "midpoint_cos"
        lines += [f"## {name}: {title if shown == value else 'midpoint_cos'}", "", pivot(members, shown), ""]
    for file, caption in (figures or {}).items():
        lines += [f"![{caption}]({file})", ""]
    notes = dict.fromkeys(note for row in rows for note in row["notes"])
    lines += ["## Notes", "", *(f"- {_cell(note)}" for note in notes), ""] if notes else []
    return "\n".join(lines)


def write_tables(swept: Swept, out: str | Path) -> list[Path]:
    """CSV views: one table for each operator, summaries, all cells, baselines, system costs."""
    out, rows = Path(out), swept.rows
    written: dict[str, str] = {}
    for name, members in grouped(row for row in rows if is_latent(row)).items():
        op = members[0]["op"]
        table = layer_table(members)
        if table:
            stem = name.removeprefix("latent ").replace(":", "-").replace(" ", "-")
            written[f"{stem}.csv"] = to_csv(table, layer_columns(op))
    flat = [flat_row(row) for row in [*rows, *swept.report]]
    written["sweep.csv"] = to_csv(flat, list(flat[0]))
    written["baselines.csv"] = to_csv([one for one in flat if one["kind"] in BASELINES], list(flat[0]))
    written["summary.csv"] = to_csv(summaries(rows), SUMMARY_COLUMNS)
    costs = [cost_row(row) for row in rows if row["costs"]]
    written["system_costs.csv"] = to_csv(costs, SYSTEM_COST_COLUMNS)
    for file, text in written.items():
        write_atomically(out / file, text)
    return [out / file for file in written]
