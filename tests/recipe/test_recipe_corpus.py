"""Every recipe of the two corpora: wrong ones give exactly the messages beside them, good ones load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from recipe_methods import METHODS

from smelt.core.errors import RecipeError
from smelt.recipe import load_recipe
from smelt.recipe.document import parse_yaml
from smelt.recipe.schema import json_schema

HERE = Path(__file__).parent
BAD = yaml.safe_load((HERE / "bad_recipes.yml").read_text(encoding="utf-8"))
GOOD = yaml.safe_load((HERE / "good_recipes.yml").read_text(encoding="utf-8"))
SCHEMA = json_schema(METHODS)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def by_name(case: dict[str, Any]) -> str:
    return case["name"]


@pytest.mark.parametrize("case", BAD, ids=by_name)
def test_a_wrong_recipe_gives_all_its_problems_in_these_words(case: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(case["recipe"], methods=METHODS)
    assert [str(problem) for problem in caught.value.problems] == case["problems"]


@pytest.mark.parametrize("case", [case for case in BAD if "schema" in case], ids=by_name)
def test_the_schema_refuses_wrong_recipes_too(case: dict[str, Any]) -> None:
    document, _ = parse_yaml(case["recipe"])
    assert VALIDATOR.is_valid(document.data) == (case["schema"] == "accepts")


@pytest.mark.parametrize("case", GOOD, ids=by_name)
def test_a_good_recipe_loads_with_these_warnings(case: dict[str, Any]) -> None:
    recipe = load_recipe(case["recipe"], methods=METHODS)
    assert [str(warning) for warning in recipe.warnings] == case.get("warnings", [])


@pytest.mark.parametrize("case", GOOD, ids=by_name)
def test_the_canonical_forms_read_back_as_the_same_recipe(case: dict[str, Any]) -> None:
    recipe = load_recipe(case["recipe"], methods=METHODS)
    for again in (
        load_recipe(recipe.to_yaml(), methods=METHODS),
        load_recipe(recipe.to_dict(), methods=METHODS),
    ):
        assert again == recipe
        assert again.to_yaml() == recipe.to_yaml()
        assert again.digest == recipe.digest
        assert hash(again) == hash(recipe)


@pytest.mark.parametrize("case", GOOD, ids=by_name)
def test_the_schema_accepts_good_recipes_and_their_canonical_form(case: dict[str, Any]) -> None:
    VALIDATOR.validate(parse_yaml(case["recipe"])[0].data)
    VALIDATOR.validate(load_recipe(case["recipe"], methods=METHODS).to_dict())


def test_the_schema_itself_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_corpora_are_as_large_as_promised() -> None:
    assert len(BAD) >= 100
    assert len({case["name"] for case in BAD + GOOD}) == len(BAD) + len(GOOD)
