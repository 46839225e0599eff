"""The documentation of recipes is true: its recipes load, its wrong one fails as shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from smelt.cli import build_app
from smelt.core.errors import RecipeError
from smelt.methods import REGISTRY
from smelt.recipe import Recipe, load_recipe, resolve
from smelt.recipe.document import parse_yaml
from smelt.recipe.fields import CHAT_TEMPLATES, DTYPES

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- (.*?) -->\n)?```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
RECIPES = [(note, text) for note, kind, text in BLOCKS if kind in ("yaml", "yml") and note != "wrong"]
SCHEMA = json.loads((DOCS / "recipe.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the recipes name."""
    for note, text in RECIPES:
        if note.startswith("file: "):
            (tmp_path / note.removeprefix("file: ")).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("text", [text for _, text in RECIPES], ids=range(len(RECIPES)))
def test_every_recipe_loads_without_warnings(text: str, folder: Path) -> None:
    recipe = load_recipe(text, methods=REGISTRY, base_dir=folder)
    assert recipe.warnings == ()
    assert load_recipe(recipe.to_yaml(), methods=REGISTRY) == recipe


@pytest.mark.parametrize("text", [text for _, text in RECIPES], ids=range(len(RECIPES)))
def test_editors_accept_every_recipe(text: str) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(parse_yaml(text)[0].data)


def test_the_wrong_recipe_fails_as_shown() -> None:
    (wrong,) = [text for note, _, text in BLOCKS if note == "wrong"]
    (shown,) = [text for _, kind, text in BLOCKS if kind == "text"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(wrong, methods=REGISTRY)
    assert shown.splitlines() == [str(problem) for problem in caught.value.problems]


def test_the_tables_name_everything() -> None:
    keys = set(Recipe.model_fields) - {"warnings"}
    assert keys == {
        key for row in re.findall(r"^\| (`.*?) \|", section("The keys"), re.M) for key in ticked(row)
    }
    assert set(DTYPES) <= ticked(section("The keys"))
    assert set(CHAT_TEMPLATES) <= ticked(section("Tokenizer and chat template"))


def test_what_the_docs_say_about_the_base_is_what_the_methods_declare() -> None:
    words = {"required": "required. Deltas", "optional": "optional", "member": "required, and one"}
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|$", section("The base model"), re.M)
    described = {name: text for names, text in rows for name in ticked(names)}
    for name, spec in REGISTRY.items():
        if name in described:
            role = "only donates" if spec.max_models == 1 else words.get(spec.base, "one more model")
            assert described[name].startswith(role), name
    assert len(described) >= 11


def test_the_head_of_one_model_is_kept() -> None:
    (text,) = [text for _, text in RECIPES if "org/keep" in text]
    recipe = load_recipe(text, methods=REGISTRY)
    weight = REGISTRY["linear"].param("weight")
    assert weight is not None and recipe.models is not None
    for name, expected in (
        ("lm_head.weight", [1.0, 0.0]),
        ("model.embed_tokens.weight", [1.0, 0.0]),
        ("model.layers.0.mlp.up_proj.weight", [0.5, 0.5]),
    ):
        found = [
            resolve(weight, entry=entry, output_name=name, input_name=name).value for entry in recipe.models
        ]
        assert found == expected


def test_links_inside_the_page_lead_somewhere() -> None:
    titles = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", TEXT, re.M)
    }
    assert set(re.findall(r"\]\(#(.*?)\)", TEXT)) <= titles


def test_the_committed_schema_is_fresh() -> None:
    printed = CliRunner().invoke(build_app(), ["schema"])
    assert printed.exit_code == 0
    assert json.loads(printed.output) == SCHEMA, "run: smelt schema > docs/recipe.schema.json"


def test_the_schema_can_be_written_to_a_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(build_app(), ["schema", "-o", str(tmp_path / "s.json")])
    assert (done.exit_code, done.output) == (0, "")
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == SCHEMA
    failed: Any = CliRunner().invoke(build_app(), ["schema", "-o", str(tmp_path / "absent" / "s.json")])
    assert "cannot be written" in str(failed.exception)


def section(title: str) -> str:
    """The text below a heading, without its blocks of code."""
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    return re.split(r"^#+ ", prose.split(f"## {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def ticked(text: str) -> set[str]:
    """Words in backticks."""
    return set(re.findall(r"`([^`]+)`", text))
