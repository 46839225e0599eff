"""Rows of a sweep: baselines always there, ends of the ratio equal to them, resumable, nothing computed twice."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import latent_tiny as tiny
import pytest
import sweep_kit as kit
import torch

from smelt.core.errors import LatentError
from smelt.latent.baselines import Arena, fingerprint, stitch, weight_merge
from smelt.latent.metric_rows import CSV_COLUMNS, SUMMARY_COLUMNS, SYSTEM_COST_COLUMNS
from smelt.latent.sweep import ROWS, Swept, best_rows, run_sweep
from smelt.latent.sweep_grid import Cell, Grid
from smelt.latent.sweep_measure import Bench, How
from smelt.latent.sweep_tables import pivot, write_tables


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def swept(out: Path) -> Swept:
    return run_sweep(kit.arena(), kit.prompts(), kit.GRID, out, kit.HOW)


@pytest.fixture(scope="module")
def rows(swept: Swept) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in swept.rows}


def test_baselines_are_always_there(rows: dict[str, Any]) -> None:
    wanted = {"base", "donor", "stitched L0", "stitched L2", "stitched L4"}
    wanted |= {f"ensemble {op} β={share}" for op in ("logits", "probs") for share in ("0", "0.5", "1")}
    wanted |= {f"weight {op} β={share}" for op in ("linear", "slerp") for share in ("0", "0.5", "1")}
    wanted |= {"weight linear β=0.8", "weight linear β=0.666667"}
    assert {name for name, row in rows.items() if row["kind"] != "latent"} == wanted
    assert all(row["status"] == "ok" for row in rows.values())
    assert sum(row["kind"] == "latent" for row in rows.values()) == 3 * (3 + 3 + 2)


def test_a_row_holds_what_a_reader_needs(rows: dict[str, Any]) -> None:
    row = rows["latent regmean L2 λ=0.25"]
    assert (row["op"], row["layers"], row["beta"], row["lambda"], row["scope"], row["n"]) == (
        "regmean", [2], None, 0.25, "all", 6,
    )  # fmt: skip
    assert row["ratio"] == pytest.approx(0.8)
    assert {"mean", "std", "low", "high", "n"} == set(row["metrics"]["midpoint_cos"])
    assert (
        row["metrics"]["arc_ratio"]["low"]
        <= row["metrics"]["arc_ratio"]["mean"]
        <= row["metrics"]["arc_ratio"]["high"]
    )
    assert set(row["scores"]["skills"]) == {"r", "s"} and row["scores"]["pooled"]["high"] < 1
    assert (
        row["costs"]["decode_tokens"] > 0 and row["costs"]["cpu_rss_mb"] > 10 and row["costs"]["ttft_s"] > 0
    )
    assert row["generation"]["seed"] == 0 and row["generation"]["max_tokens"] == 4
    assert row["models"]["base"]["weights"] != row["models"]["donor"]["weights"]
    assert rows["ensemble probs β=0.5"]["metrics"] is None


@pytest.mark.parametrize("op", ["lerp", "slerp"])
def test_the_ends_of_the_ratio_are_base_and_stitched(rows: dict[str, Any], out: Path, op: str) -> None:
    for layer in (0, 2, 4):
        none, whole = rows[f"latent {op} L{layer} β=0"], rows[f"latent {op} L{layer} β=1"]
        assert none["metrics"] == rows["base"]["metrics"]
        assert kit.texts(none, out) == kit.texts(rows["base"], out)
        assert kit.texts(whole, out) == kit.texts(rows[f"stitched L{layer}"], out)
        for name, figure in rows[f"stitched L{layer}"]["metrics"].items():
            assert whole["metrics"][name]["mean"] == pytest.approx(figure["mean"], abs=2e-3), name
    assert kit.texts(rows["stitched L2"], out) != kit.texts(rows["base"], out)


def test_ends_of_weight_merges_and_ensembles_are_the_models(rows: dict[str, Any], out: Path) -> None:
    base, donor = kit.texts(rows["base"], out), kit.texts(rows["donor"], out)
    assert base != donor
    for name in ("weight linear", "weight slerp", "ensemble logits", "ensemble probs"):
        assert kit.texts(rows[f"{name} β=0"], out) == base
        assert kit.texts(rows[f"{name} β=1"], out) == donor


def test_running_again_computes_nothing(swept: Swept, out: Path) -> None:
    before = (out / ROWS).read_bytes()
    again = run_sweep(kit.arena(), kit.prompts(), kit.GRID, out, kit.HOW)
    assert (again.computed, again.reused) == (0, len(swept.rows))
    assert again.rows == swept.rows and (out / ROWS).read_bytes() == before


def test_other_weights_prompts_or_settings_are_measured_anew(tmp_path: Path) -> None:
    count = len(run_sweep(kit.arena(), kit.prompts(), kit.SMALL, tmp_path, kit.HOW).rows)
    other = Arena(tiny.tiny_causal(seed=0), tiny.tiny_causal(seed=2), tiny.byte_tokenizer(), ("b", "d"))
    longer = How(max_tokens=5, form="plain", draws=50)
    for case in (
        (other, kit.prompts(), kit.HOW),
        (kit.arena(), kit.prompts(5), kit.HOW),
        (kit.arena(), kit.prompts(), longer),
    ):
        assert run_sweep(case[0], case[1], kit.SMALL, tmp_path, case[2]).computed == count
    batched = How(max_tokens=4, form="plain", batch=3, draws=50)
    assert run_sweep(kit.arena(), kit.prompts(), kit.SMALL, tmp_path, batched).computed == 0


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_sweep(kit.arena(), kit.prompts(), kit.SMALL, tmp_path / "whole", kit.HOW)
    measured: list[str] = []
    real = Bench.measure

    def measure(self: Bench, cell: Cell) -> Any:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(cell.name)
        return real(self, cell)

    monkeypatch.setattr(Bench, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(kit.arena(), kit.prompts(), kit.SMALL, tmp_path / "cut", kit.HOW)
    monkeypatch.setattr(
        Bench, "measure", lambda self, cell: (measured.append(cell.name), real(self, cell))[1]
    )
    with (tmp_path / "cut" / ROWS).open("a") as file:
        file.write('{"key": "torn')  # what a crash in the middle of a write leaves
    after = run_sweep(kit.arena(), kit.prompts(), kit.SMALL, tmp_path / "cut", kit.HOW)
    assert [kit.timeless(row) for row in after.rows] == [kit.timeless(row) for row in whole.rows]
    assert sorted(measured) == sorted(row["name"] for row in whole.rows) and after.reused == 3
    assert run_sweep(kit.arena(), kit.prompts(), kit.SMALL, tmp_path / "cut", kit.HOW).computed == 0


KILLED = """
import sys; sys.path[:0] = {paths!r}
import torch; torch.set_num_threads(1)
import sweep_kit as kit
from smelt.latent.sweep import run_sweep
run_sweep(kit.arena(), kit.prompts(), kit.GRID, {out!r}, kit.HOW)
"""


def test_a_killed_sweep_loses_no_row(tmp_path: Path, swept: Swept) -> None:
    here = Path(__file__).parent
    code = KILLED.format(paths=[str(here), str(here.parent)], out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    file = tmp_path / ROWS
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not file.exists() or file.read_bytes().count(b"\n") < 3):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = file.read_bytes().count(b"\n")
    assert 3 <= kept < len(swept.rows)
    again = run_sweep(kit.arena(), kit.prompts(), kit.GRID, tmp_path, kit.HOW)
    assert (again.reused, again.computed) == (kept, len(swept.rows) - kept)
    assert [kit.timeless(row) for row in again.rows] == [kit.timeless(row) for row in swept.rows]


def test_a_second_writer_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    from smelt.latent.sweep_file import RowFile

    with RowFile(tmp_path / ROWS), pytest.raises(LatentError, match="another sweep is writing"):
        run_sweep(kit.arena(), kit.prompts(), kit.SMALL, tmp_path, kit.HOW)
    (tmp_path / ROWS).write_text("notes of mine\n")
    with pytest.raises(LatentError, match=r"rows\.jsonl:1: not a row that a sweep wrote"):
        run_sweep(kit.arena(), kit.prompts(), kit.SMALL, tmp_path, kit.HOW)
    assert (tmp_path / ROWS).read_text() == "notes of mine\n"


def test_the_best_are_measured_on_prompts_they_were_not_chosen_on(tmp_path: Path) -> None:
    found = run_sweep(
        kit.arena(), kit.prompts(), kit.SMALL, tmp_path, kit.HOW, report=kit.prompts(8, first=20)
    )
    assert [row["name"] for row in found.report] == [row["name"] for row in best_rows(found.rows)]
    assert {row["split"] for row in found.report} == {"report"} and {row["n"] for row in found.report} == {8}
    with pytest.raises(LatentError, match="1 prompts are in both splits"):
        run_sweep(kit.arena(), kit.prompts(), kit.SMALL, tmp_path, kit.HOW, report=kit.prompts(3, first=5))


def test_what_two_models_do_not_allow_has_a_reason(tmp_path: Path) -> None:
    wide = Arena(
        tiny.tiny_causal(seed=0), tiny.tiny_causal(seed=1, intermediate_size=64), tiny.byte_tokenizer()
    )
    found = {row["name"]: row for row in run_sweep(wide, kit.prompts(), kit.SMALL, tmp_path, kit.HOW).rows}
    weight = found["weight linear β=0.5"]
    assert weight["status"] == "impossible" and "shapes" in weight["reason"] and weight["scores"] is None
    assert found["latent lerp L2 β=0.5"]["status"] == "ok"


def test_tables_have_the_published_headings(swept: Swept, tmp_path: Path) -> None:
    write_tables(swept, tmp_path)
    tables = {
        path.name: list(csv.DictReader(path.read_text().splitlines())) for path in tmp_path.glob("*.csv")
    }
    assert tuple(tables["lerp.csv"][0]) == CSV_COLUMNS and len(tables["lerp.csv"]) == 9
    assert tuple(tables["regmean.csv"][0]) == tuple("lambda_reg" if c == "beta" else c for c in CSV_COLUMNS)
    assert tuple(tables["summary.csv"][0]) == SUMMARY_COLUMNS
    assert tuple(tables["system_costs.csv"][0]) == SYSTEM_COST_COLUMNS
    assert len(tables["sweep.csv"]) == len(swept.rows) == len(tables["system_costs.csv"])
    assert {row["kind"] for row in tables["baselines.csv"]} == {
        "base",
        "donor",
        "weight",
        "ensemble",
        "stitched",
    }
    half = next(row for row in tables["slerp.csv"] if row["layer"] == "4" and row["beta"] == "0.5")
    assert float(half["midpoint_cos_mean"]) == pytest.approx(1.0, abs=1e-5)


def test_a_pivot_has_layers_down_and_ratios_across(swept: Swept) -> None:
    blends = [row for row in swept.rows if row["kind"] == "latent" and row["op"] == "slerp"]
    lines = pivot(blends, "midpoint_cos").split("\n")
    assert lines[0] == "| layer | β=0 | β=0.5 | β=1 |" and [line[:4] for line in lines[2:]] == [
        "| 0 ",
        "| 2 ",
        "| 4 ",
    ]
    assert lines[-1].split(" | ")[2] == "1.000"


def test_scope_generated_leaves_the_prompt_alone(tmp_path: Path) -> None:
    grid = Grid(("2",), ("lerp", "regmean:gram"), (0.5,), scopes=("generated",))
    rows = {row["name"]: row for row in run_sweep(kit.arena(), kit.prompts(3), grid, tmp_path, kit.HOW).rows}
    row = rows["latent lerp L2 β=0.5 generated"]
    assert 0 < row["metrics"]["arc_ratio"]["mean"] < 0.3  # one blended token among six
    assert rows["latent regmean:gram L2 λ=0.5 generated"]["ratio"] is None
    with pytest.raises(LatentError, match="regmean:gram at all tokens"):
        Grid(("2",), ("regmean:gram",), (0.5,))


def test_layerwise_metrics_end_in_the_fixed_state(tmp_path: Path) -> None:
    how = How(max_tokens=2, form="plain", layerwise=True, answers=False, draws=50)
    row = run_sweep(kit.arena(), kit.prompts(3), kit.SMALL, tmp_path, how).rows[-1]
    assert [layer["site"] for layer in row["layerwise"]] == [0, 1, 2, 3, 4]
    assert row["layerwise"][1]["arc_ratio"]["mean"] == 0 and row["layerwise"][2]["arc_ratio"]["mean"] > 0.1
    assert row["metrics"]["cka_base_vs_ft"] == row["layerwise"][-1]["cka_base_vs_ft"]
    assert row["scores"] is None and best_rows([row]) == []


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox", "opt", "bloom", "qwen2", "gemma2"])
def test_a_stitched_model_is_the_blend_at_one(arch: str) -> None:
    arena = Arena(tiny.tiny_causal(arch, 0), tiny.tiny_causal(arch, 1), tiny.byte_tokenizer())
    ids = tiny.prompt(6)
    before = arena.base(ids).logits
    stitched = stitch(arena.base, arena.donor, 2)(ids).logits
    with arena.wrapper.using(Cell("latent", "lerp", (2,), 1.0).sites()):
        assert torch.allclose(arena.wrapper(ids).logits, stitched, atol=1e-4)
    assert torch.equal(arena.base(ids).logits, before) and not torch.allclose(stitched, before, atol=1e-2)


def test_a_weight_merge_is_of_its_own_tensors() -> None:
    base, donor = tiny.tiny_causal(seed=0), tiny.tiny_causal(seed=1)
    prints = fingerprint(base), fingerprint(donor)
    merged = weight_merge(base, donor, "linear", 0.25)
    name = "model.layers.1.mlp.up_proj.weight"
    mixed = 0.75 * base.state_dict()[name] + 0.25 * donor.state_dict()[name]
    assert torch.allclose(merged.state_dict()[name], mixed, atol=1e-7)
    assert (fingerprint(base), fingerprint(donor)) == prints


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (lambda: Grid(("1",), ("lrep",)), "did you mean 'lerp'"),
        (lambda: Grid((), ("lerp",)), "no sites to try"),
        (lambda: Grid(("1",), ("slerp",), (1.5,)), "slerp with ratio 1.5"),
        (lambda: Grid(("9",), ("lerp",)).cells(4), "beyond the last"),
        (lambda: Grid(("1+0.25n",), ("lerp",)).cells(4), "one layer twice"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(grid: Any, said: str) -> None:
    with pytest.raises(LatentError, match=said):
        grid()


def test_prompts_too_long_are_refused_before_any_work() -> None:
    with pytest.raises(LatentError, match="at most 256 in all"):
        Bench(kit.arena(), kit.prompts(), How(max_tokens=300, form="plain"))


def test_rows_are_plain_json(out: Path, swept: Swept) -> None:
    lines = (out / ROWS).read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [row["key"] for row in swept.rows]
    assert not any("NaN" in line for line in lines) and math.isfinite(swept.rows[0]["seconds"])
