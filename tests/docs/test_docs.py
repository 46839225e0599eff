"""Examples run, README blocks are true, generated pages are fresh, every method has an example."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smelt.checkpoint import verify_directory
from smelt.engine.merge import merge
from smelt.methods import REGISTRY
from smelt.methods._show import example_recipe
from smelt.recipe import load_recipe

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted(path.name for path in (ROOT / "examples").glob("*.yml"))
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Fenced code of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("name", RECIPES)
def test_every_example_recipe_makes_a_sound_model(name: str, example_folder: Path, tmp_path: Path) -> None:
    report = merge(example_folder / name, tmp_path / "out")
    checked = verify_directory(tmp_path / "out")
    assert checked.ok and checked.compared == report.tensors
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    layers = {int(name.split(".")[2]) for name in report.outputs if name.startswith("model.layers.")}
    assert layers == set(range(config["num_hidden_layers"]))


def test_every_method_has_an_example() -> None:
    used = {yaml.safe_load((ROOT / "examples" / name).read_text())["merge_method"] for name in RECIPES}
    assert used == set(REGISTRY)


def test_every_example_says_what_it_is_for() -> None:
    assert all((ROOT / "examples" / name).read_text().startswith("# ") for name in RECIPES)


def test_the_python_example_runs(example_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example_folder / "python_api.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "saved and verified 21 tensors" in done.stdout and "tensor([0.6250" in done.stdout


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_the_recipe_shown_for_a_method_is_valid(name: str) -> None:
    recipe = load_recipe(example_recipe(REGISTRY[name]), methods=REGISTRY)
    assert recipe.merge_method == name


def test_recipes_in_the_readme_are_valid() -> None:
    found = blocks(README, "yaml")
    assert found
    for text in found:
        assert load_recipe(text, methods=REGISTRY).merge_method in REGISTRY


def test_the_first_python_block_of_the_readme_runs(example_folder: Path, tmp_path: Path) -> None:
    for name, source in (("base", "base"), ("math", "math"), ("code", "letters"), ("chat", "base")):
        (tmp_path / name).symlink_to(example_folder / "models" / source)
    script = tmp_path / "block.py"
    script.write_text(blocks(README, "python")[0])
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert verify_directory(tmp_path / "merged").ok


def test_commands_in_the_readme_exist() -> None:
    import typer.main

    from smelt.cli import build_app

    known = set(typer.main.get_command(build_app()).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^smelt ([a-z-]+)", "\n".join(blocks(README, "bash")), re.MULTILINE))
    assert used and used <= known


def test_links_in_the_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\((?!http)([^)#]+)", prose):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_generated_pages_are_fresh(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_docs.py", "--check"])
    runpy.run_path(str(ROOT / "scripts" / "make_docs.py"), run_name="__main__")
    assert "fresh" in capsys.readouterr().out


def test_the_method_in_contributing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of CONTRIBUTING is a whole method: registered by its file alone, and right."""
    import numpy as np

    from smelt.core.method import discover
    from smelt.engine import memory

    package = tmp_path / "contributed"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "magmax.py").write_text(blocks((ROOT / "CONTRIBUTING.md").read_text(), "python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = discover("contributed")["magmax"]
    REGISTRY.add(spec)
    try:
        base, one, two = (np.float32(values) for values in ([1, 1, 1], [2, 1, 0.5], [1.5, -3, 1]))
        merged = memory.merge_dicts("magmax", [{"w": one}, {"w": two}], {"w": base}, 0, {})
        assert merged["w"].tolist() == [2, -3, 0.5]
    finally:
        del REGISTRY._specs["magmax"]
