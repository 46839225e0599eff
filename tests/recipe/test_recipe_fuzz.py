"""Whatever is thrown at ``load_recipe``, the answer is a recipe that reads back, or a RecipeError."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_methods import METHODS

from smelt.core.errors import RecipeError
from smelt.recipe import load_recipe
from smelt.recipe.document import parse_yaml
from smelt.recipe.schema import json_schema

HERE = Path(__file__).parent
TEXTS = [
    case["recipe"]
    for name in ("good_recipes.yml", "bad_recipes.yml")
    for case in yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
]
DATA = [case["recipe"] for case in yaml.safe_load((HERE / "good_recipes.yml").read_text(encoding="utf-8"))]
DATA = [parse_yaml(text)[0].data for text in DATA]
VALIDATOR = jsonschema.Draft202012Validator(json_schema(METHODS))

bounded = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

WORDS = [
    "merge_method", "models", "slices", "modules", "sources", "model", "parameters", "base_model",
    "layer_range", "weight", "density", "t", "normalize", "value", "filter", "dtype", "tokenizer", "tokens",
    "source", "kind", "linear", "ties", "slerp", "passthrough", "org/a", "a+b", "a@b", "x.yml", "union",
    "base", "zero", "path", "lora", "0.5", "010", "1e-5", "mlp", "*", "/(/", "float16", "auto", "{{ x }}",
    "seed", "name", "",
]  # fmt: skip
numbers = st.integers(-3, 3) | st.integers() | st.floats()
scalars = st.none() | st.booleans() | numbers | st.sampled_from(WORDS) | st.text(max_size=5)
keys = st.sampled_from(WORDS) | st.text(max_size=3) | st.integers(0, 2) | st.none() | st.booleans()
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True, scope="module")
def in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        yield


def check(source: Any) -> bool:
    """Load; what loads must read back as itself and please the schema."""
    try:
        recipe = load_recipe(source, methods=METHODS)
    except RecipeError as error:
        assert error.problems and all(problem.what for problem in error.problems)
        return False
    assert load_recipe(recipe.to_dict(), methods=METHODS) == recipe
    assert load_recipe(recipe.to_yaml(), methods=METHODS) == recipe
    VALIDATOR.validate(recipe.to_dict())
    assert repr(recipe) and recipe.refs() and recipe.digest
    return True


@bounded
@given(st.dictionaries(keys, junk, max_size=6) | junk)
def test_random_structures(data: Any) -> None:
    check(data if isinstance(data, dict) else {"merge_method": "linear", "models": data})


@bounded
@given(st.sampled_from(DATA), st.data())
def test_right_recipes_with_one_place_changed(recipe: Any, data: st.DataObject) -> None:
    changed = copy.deepcopy(recipe)
    mutate(changed, data)
    check(changed)


def mutate(root: Any, data: st.DataObject) -> None:
    """Walk down at random and replace, remove, rename, repeat or wrap what is there."""
    place: Any = root
    while True:
        steps = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not steps:
            return
        step = data.draw(st.sampled_from(steps))
        inside = place[step]
        if isinstance(inside, dict | list) and inside and data.draw(st.integers(0, 3)):
            place = inside
            continue
        break
    action = data.draw(st.sampled_from(["replace", "remove", "rename", "repeat", "wrap", "add"]))
    if action == "replace":
        place[step] = data.draw(junk)
    elif action == "wrap":
        place[step] = data.draw(
            st.sampled_from([[inside], {"value": inside}, {"model": inside}, str(inside)])
        )
    elif action == "remove":
        del place[step]
    elif isinstance(place, dict):
        place[data.draw(keys)] = inside if action != "add" else data.draw(junk)
        if action == "rename":
            place.pop(step, None)
    else:
        place.insert(step, inside if action == "repeat" else data.draw(junk))


@bounded
@given(st.sampled_from(TEXTS), st.data())
def test_recipes_with_characters_and_lines_changed(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 6)))
        text = text[:start] + data.draw(st.text(" \n\t:-[]{}&*!#'\"abc01.,|>%@", max_size=4)) + text[end:]
    check(text + "\n")


number = st.floats(0, 1) | st.integers(0, 1) | st.floats(0, 1).map(repr)
gradient = st.lists(number, min_size=1, max_size=4)
pattern = st.sampled_from(["mlp", "*", "a?b", "/x|y/"])
condition = st.fixed_dictionaries({"value": number | gradient}, optional={"filter": pattern})
setting = number | gradient | condition | st.lists(condition, min_size=1, max_size=3)
block = st.fixed_dictionaries({"weight": setting}, optional={"density": setting})
reference = st.sampled_from(["org/a", "org/b@main", "org/c+org/lora", "7", "./x"]) | st.fixed_dictionaries(
    {"path": st.text("a+@ .é", min_size=1).filter(str.strip)}
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    entries = st.lists(st.fixed_dictionaries({"model": inner, "parameters": block}), min_size=1, max_size=3)
    return st.fixed_dictionaries(
        {"merge_method": st.just("ties"), "base_model": st.just("org/base"), "models": entries},
        optional={"parameters": st.fixed_dictionaries({"lambda": setting}), "dtype": st.just("bf16")},
    )


@bounded
@given(st.lists(st.recursive(reference, nested, max_leaves=6), min_size=1, max_size=3), setting)
def test_made_up_right_recipes_always_load(nodes: list[Any], weight: Any) -> None:
    entries = [{"model": node} for node in nodes]
    assert check({"merge_method": "linear", "models": entries, "parameters": {"weight": weight}})


def test_the_fuzz_starts_from_right_recipes() -> None:
    assert all(check(text) for text in DATA)
