"""Figures: valid PNG files whose axes, units, legends and fields say what the table says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from smelt.analyse.figures import Curves, Labels, bars, curves, heat_map, save
from smelt.analyse.similarity_figures import draw_similarity
from smelt.core.errors import OutputError

LABELS = Labels("title", "β (share of the donor)", "layer", "score (share)")
FIELDS = [{"b": b, "l": layer, "v": None if layer == 2 else b} for b in (0.75, 0.25) for layer in (2, 0)]


def size(path: Path) -> tuple[int, int]:
    """Width and height in the header of a PNG."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])  # type: ignore[return-value]


def test_a_heat_map_orders_its_axes_and_leaves_holes(tmp_path: Path) -> None:
    figure = heat_map(FIELDS, LABELS, x="b", y="l", value="v", low=0.0, high=1.0)
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == (
        "β (share of the donor)",
        "layer",
        "title",
    )
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.25", "0.75"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "2"]
    assert sorted(text.get_text() for text in axes.texts) == ["0.25", "0.75"]
    assert bar.get_ylabel() == "score (share)" and axes.images[0].get_clim() == (0.0, 1.0)
    width, height = size(save(figure, tmp_path / "deep" / "heat.png"))
    assert width > 300 and height > 200


def test_curves_name_every_line(tmp_path: Path) -> None:
    table = [
        {"x": x, "y": x / 4 + k, "s": "ab"[k], "lo": x / 4 - 1, "hi": x / 4 + 1}
        for x in (4, 0, 2)
        for k in (0, 1)
    ]
    figure = curves(table, LABELS, Curves("x", "y", "s", "lo", "hi", {"base": 0.5}))
    axes = figure.axes[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "base"]
    assert list(axes.lines[0].get_xdata()) == [0, 2, 4] and list(axes.lines[1].get_ydata()) == [1.0, 1.5, 2.0]
    assert len(axes.collections) == 2 and list(axes.get_xticks()) == [0, 2, 4]
    size(save(figure, tmp_path / "c.png"))


def test_bars_stand_in_the_order_of_the_table() -> None:
    table = [{"n": "best", "v": 0.9, "lo": 0.8, "hi": 0.95}, {"n": "base", "v": 0.5, "lo": 0.4, "hi": 0.6}]
    axes = bars(table, LABELS, name="n", value="v", low="lo", high="hi").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["best", "base"] and axes.yaxis_inverted()
    assert [patch.get_width() for patch in axes.patches] == [0.9, 0.5]


def test_equal_tables_give_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        save(heat_map(FIELDS, LABELS, x="b", y="l", value="v"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_path_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save(heat_map(FIELDS, LABELS, x="b", y="l", value="v"), tmp_path / "file" / "x.png")


def test_similarity_sets_each_blend_beside_its_own_weight_merge(tmp_path: Path) -> None:
    metrics = ("cka_base_vs_mixed", "cka_ft_vs_mixed", "midpoint_cos", "arc_ratio", "arc_mid_deviation")
    table = [
        {
            "name": f"{kind} {op}",
            "kind": kind,
            "op": op,
            "ratio": 0.5,
            "layer": layer,
            **{f"{m}_mean": 0.5 for m in metrics},
        }
        for kind, op in (("base", ""), ("weight", "linear"), ("weight", "slerp"), ("latent", "slerp"))
        for layer in (0, 1)
    ]
    drawn = draw_similarity(table, tmp_path)
    assert set(drawn) == {f"layerwise_{metric}_slerp.png" for metric in metrics}
    assert all(size(tmp_path / name)[0] > 300 for name in drawn)
