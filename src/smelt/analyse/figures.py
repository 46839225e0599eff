"""Pictures of tables: a table (rows of named figures) in, one matplotlib figure out, one file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smelt.core.errors import MissingExtraError, OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Table = Sequence[Mapping[str, Any]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
STYLES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))


@dataclass(frozen=True, slots=True)
class Labels:
    """What is written on a figure; axis labels name their unit."""

    title: str
    x: str
    y: str
    value: str = ""


def new_figure(width: float = 7.0, height: float = 4.5) -> Figure:
    """An empty figure that belongs to no window and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plots") from None
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG: equal figures give equal bytes."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", metadata={"Software": None})
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path)) from None
    return path


def heat_map(
    table: Table,
    labels: Labels,
    *,
    x: str,
    y: str,
    value: str,
    low: float | None = None,
    high: float | None = None,
) -> Figure:
    """Every row of ``table`` as a coloured field at (x, y), its figure written in it; missing ones stay grey."""
    columns = _ordered(row[x] for row in table)
    lines = _ordered(row[y] for row in table)
    grid = [[float("nan")] * len(columns) for _ in lines]
    for row in table:
        if row[value] is not None:
            grid[lines.index(row[y])][columns.index(row[x])] = float(row[value])
    figure = new_figure(2.6 + 0.9 * len(columns), 1.9 + 0.42 * len(lines))
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    figure.colorbar(image, ax=axes, label=labels.value)
    axes.set_xticks(range(len(columns)), [_tick(one) for one in columns])
    axes.set_yticks(range(len(lines)), [_tick(one) for one in lines])
    _write_fields(axes, grid, image)
    _label(axes, labels)
    return figure


def _write_fields(axes: Axes, grid: Sequence[Sequence[float]], image: Any) -> None:
    for line, figures in enumerate(grid):
        for column, number in enumerate(figures):
            if number == number:
                ink = "black" if image.norm(number) > 0.6 else "white"
                axes.text(column, line, f"{number:.2f}", ha="center", va="center", color=ink, fontsize=8)


@dataclass(frozen=True, slots=True)
class Curves:
    """Which columns of a table are drawn: ``y`` over ``x``, a line for each ``series``, a band ``low``..``high``."""

    x: str
    y: str
    series: str
    low: str | None = None
    high: str | None = None
    levels: Mapping[str, float] = field(default_factory=dict)  # horizontal lines by name


def curves(table: Table, labels: Labels, what: Curves) -> Figure:
    """Lines with bands over a common axis, and baselines as horizontal lines; the legend names all of them."""
    figure = new_figure(8.0, 4.6)
    axes = figure.add_subplot()
    for index, name in enumerate(dict.fromkeys(str(row[what.series]) for row in table)):
        rows = [row for row in table if str(row[what.series]) == name and row[what.y] is not None]
        rows.sort(key=lambda row: row[what.x])
        colour = COLOURS[index % len(COLOURS)]
        places = [row[what.x] for row in rows]
        axes.plot(places, [row[what.y] for row in rows], marker="o", markersize=4, color=colour, label=name)
        if what.low and what.high and all(row[what.low] is not None for row in rows):
            bounds = [row[what.low] for row in rows], [row[what.high] for row in rows]
            axes.fill_between(places, *bounds, color=colour, alpha=0.12, linewidth=0)
    first = len({str(row[what.series]) for row in table})
    for index, (name, level) in enumerate(what.levels.items()):
        colour = COLOURS[(first + index) % len(COLOURS)]
        axes.axhline(level, color=colour, linestyle=STYLES[index % len(STYLES)], linewidth=1.3, label=name)
    axes.set_xticks(_ordered(row[what.x] for row in table))
    axes.grid(alpha=0.25)
    _label(axes, labels)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def bars(
    table: Table, labels: Labels, *, name: str, value: str, low: str | None = None, high: str | None = None
) -> Figure:
    """A horizontal bar for each row, top to bottom, with its interval."""
    figure = new_figure(7.5, 1.2 + 0.34 * len(table))
    axes = figure.add_subplot()
    shown = [row for row in table if row[value] is not None]
    places = range(len(shown))
    figures = [float(row[value]) for row in shown]
    axes.barh(places, figures, color=COLOURS[0], alpha=0.85)
    if low and high:
        reach = [
            [max(0.0, one - float(row[low])) for one, row in zip(figures, shown, strict=True)],
            [max(0.0, float(row[high]) - one) for one, row in zip(figures, shown, strict=True)],
        ]
        axes.errorbar(figures, places, xerr=reach, fmt="none", ecolor="black", capsize=3, linewidth=1)
    axes.set_yticks(places, [str(row[name]) for row in shown])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25)
    _label(axes, labels)
    return figure


def _ordered(values: Any) -> list[Any]:
    return sorted(set(values))


def _tick(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _label(axes: Axes, labels: Labels) -> None:
    axes.set_title(labels.title, fontsize=10)
    axes.set_xlabel(labels.x)
    axes.set_ylabel(labels.y)
