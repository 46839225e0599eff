"""The commands: sweep and the three experiments from files to tables, plots and pages; light help."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import latent_tiny as tiny
import pytest
import sweep_kit as kit
from typer.testing import CliRunner

from smelt.latent.sweep_cli import SWEEP_APP


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("bd"):
        tiny.tiny_causal(seed=seed).save_pretrained(folder / name)
        tiny.byte_tokenizer().save_pretrained(folder / name)
    prompts = kit.write_prompts(folder / "q.jsonl", kit.prompts(4))
    return [
        "--base",
        str(folder / "b"),
        "--donor",
        str(folder / "d"),
        "--prompts",
        str(prompts),
        "--format",
        "plain",
    ]


def call(*words: str) -> dict[str, Any]:
    """The JSON a command prints."""
    result = CliRunner().invoke(SWEEP_APP, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_sweep_from_files_to_page(models: list[str], tmp_path: Path) -> None:
    other = kit.write_prompts(tmp_path / "other.jsonl", kit.prompts(6, first=10))
    words = [
        "sweep",
        *models,
        "--out",
        str(tmp_path / "o"),
        "--sites",
        "0,last",
        "--ops",
        "slerp",
        "--ratios",
        ".5,1",
    ]
    words += ["--max-tokens", "3", "--report", str(other)]
    first = call(*words)
    assert first["computed"] == 2 + 2 + 4 + 2 + 4 + len(first["report"]) and first["reused"] == 0
    names = {Path(path).name for path in first["files"]}
    assert {
        "slerp.csv",
        "sweep.csv",
        "system_costs.csv",
        "heat_score_slerp.png",
        "curve_score.png",
        "report.md",
    } <= names
    assert all(Path(path).stat().st_size > 0 for path in first["files"])
    page = (tmp_path / "o" / "report.md").read_text()
    assert "played no part in the choice" in page and "![" in page and "| layer | β=0.5 | β=1 |" in page
    assert call(*words)["computed"] == 0
    assert call(*words, "--fresh")["reused"] == 0


def test_experiment_a_sets_blends_against_weight_merges(models: list[str], tmp_path: Path) -> None:
    found = call("experiment", "a", *models, "--out", str(tmp_path), "--max-tokens", "3", "--no-plots")
    assert [duel["op"] for duel in found["duels"]] == ["lerp", "slerp", "regmean"]
    assert [duel["weight"] for duel in found["duels"]] == [
        f"weight {op} β=0.5" for op in ("linear", "slerp", "linear")
    ]
    for duel in found["duels"]:
        sides = [
            [json.loads(line) for line in Path(path).read_text().splitlines()] for path in duel["responses"]
        ]
        assert [row["id"] for row in sides[0]] == [row["id"] for row in sides[1]] == ["q0", "q1", "q2", "q3"]
        assert duel["exact"]["n"] == 4 and duel["judge"] is None
        assert duel["judge_command"].startswith("smelt latent judge --path-a ")
    assert "smelt latent judge" in (tmp_path / "experiment_a.md").read_text()


def test_the_printed_judge_command_is_accepted(models: list[str], tmp_path: Path) -> None:
    import shlex

    found = call(
        "experiment", "a", *models, "--out", str(tmp_path), "--max-tokens", "3", "--no-plots", "--ops", "lerp"
    )
    from smelt.evaluate.judge_cli import JUDGE_APP

    words = shlex.split(found["duels"][0]["judge_command"])[2:]
    result = CliRunner().invoke(JUDGE_APP, [*words, "--dry-run", "--json"], catch_exceptions=False)
    assert result.exit_code == 0 and '"requests"' in result.output


def test_experiment_b_looks_at_every_layer(models: list[str], tmp_path: Path) -> None:
    found = call("experiment", "b", *models, "--out", str(tmp_path), "--ops", "slerp", "--sites", "1,last")
    table = list(csv.DictReader((tmp_path / "layerwise.csv").read_text().splitlines()))
    assert {row["layer"] for row in table} == {"0", "1", "2", "3", "4"}
    assert {row["kind"] for row in table} == {"base", "donor", "weight", "stitched", "latent"}
    start = next(row for row in table if row["name"] == "latent slerp L1 β=0.5" and row["layer"] == "1")
    assert float(start["midpoint_cos_mean"]) == pytest.approx(1.0, abs=1e-5)
    assert len(found["plots"]) == 5 and all((tmp_path / name).stat().st_size > 0 for name in found["plots"])
    page = (tmp_path / "experiment_b.md").read_text()
    assert "arc deviation (rad)" in page and "| latent slerp |" in page and "| weight slerp |" in page


def test_experiment_c_is_the_published_grid_scaled(models: list[str], tmp_path: Path) -> None:
    found = call(
        "experiment", "c", *models, "--out", str(tmp_path), "--max-tokens", "2", "--ops", "lerp", "--no-plots"
    )
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    cells = {(tuple(row["layers"]), row["beta"]) for row in rows if row["kind"] == "latent"}
    assert cells == {((layer,), beta) for layer in range(4) for beta in (0.25, 0.5, 0.75)}
    assert found["computed"] == len(rows)


def test_errors_come_before_models_are_loaded(tmp_path: Path) -> None:
    from smelt.core.errors import LatentError

    prompts = kit.write_prompts(tmp_path / "q.jsonl", kit.prompts(2))
    words = [
        "sweep",
        "--base",
        "none",
        "--donor",
        "none",
        "--prompts",
        str(prompts),
        "--out",
        str(tmp_path / "o"),
    ]
    for extra, said in (
        (["--ratios", "half"], "'half' is no number"),
        (["--ops", "lrep"], "did you mean 'lerp'"),
    ):
        with pytest.raises(LatentError, match=said):
            CliRunner().invoke(SWEEP_APP, [*words, *extra], catch_exceptions=False)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("words", [["sweep"], ["experiment"], ["experiment", "c"]])
def test_help_imports_no_model_library(words: list[str]) -> None:
    code = (
        "import sys\nfrom smelt.cli import main\nsys.argv = ['smelt', 'latent', *sys.argv[1:], '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'matplotlib', 'openai'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout or words == ["experiment"]
