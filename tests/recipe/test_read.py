"""What ends up in the recipe: every field, read from every form it may have."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_methods import METHODS

from smelt.core.errors import RecipeError
from smelt.recipe import (
    Entry,
    ModelPath,
    ModelRef,
    ModelToken,
    Recipe,
    Tokenizer,
    TokenRule,
    ZeroRow,
    load_recipe,
)

A, B = ModelRef(path="org/a"), ModelRef(path="org/b")


def load(text: str) -> Recipe:
    return load_recipe("merge_method: linear\nparameters: {weight: 1}\n" + text, methods=METHODS)


def top(text: str) -> Recipe:
    return load("models: [{model: org/a}, {model: org/b}]\n" + text)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("bf16", "bfloat16"),
        ("torch.float16", "float16"),
        ("HALF", "float16"),
        ("f32", "float32"),
        ("double", "float64"),
    ],
)
def test_dtypes_have_one_name(spelling: str, name: str) -> None:
    recipe = top(f"dtype: {spelling}\nout_dtype: {spelling}\n")
    assert (recipe.dtype, recipe.out_dtype) == (name, name)


def test_plain_fields() -> None:
    recipe = top('name: 007\nseed: "12"\n')
    assert (recipe.name, recipe.seed) == ("007", 12)
    assert top(f"seed: {2**64 - 1}\n").seed == 2**64 - 1
    with pytest.raises(RecipeError):
        top(f"seed: {2**64}\n")
    plain = top("")
    assert (plain.name, plain.seed, plain.dtype, plain.tokenizer, plain.chat_template) == (None,) * 5


@pytest.mark.parametrize(
    "text", ["auto", "alpaca", "chatml", "exaone", "llama3", "mistral", "{{ messages[0].content }}"]
)
def test_chat_templates(text: str) -> None:
    assert top(f'chat_template: "{text}"\n').chat_template == text


@pytest.mark.parametrize(
    ("text", "source"), [("union", "union"), ("base", "base"), ("org/x", ModelRef(path="org/x"))]
)
def test_tokenizer_sources(text: str, source: Any) -> None:
    assert top(f"tokenizer_source: {text}\n").tokenizer_source == source
    assert top(f"tokenizer: {{source: {text}}}\n").tokenizer == Tokenizer(source=source)


def test_tokenizer_defaults() -> None:
    assert top("tokenizer: {}\n").tokenizer == Tokenizer(source="union", tokens={}, pad_to_multiple_of=None)
    assert top("tokenizer: {}\n").to_dict()["tokenizer"] == {"source": "union"}


def test_token_rules() -> None:
    recipe = top(
        """
tokenizer:
  pad_to_multiple_of: 8
  tokens:
    a: {source: org/a, force: true}
    b: {source: {model: org/b}}
    c: {source: {kind: model_token, model: org/a, token: 7}}
    d: {source: {kind: model_token, model: {path: org/b}, token_id: "7"}}
    e: {source: {kind: zero}, force: true}
    f:
      source:
"""
    )
    assert recipe.tokenizer == Tokenizer(
        pad_to_multiple_of=8,
        tokens={
            "a": TokenRule(source=A, force=True),
            "b": TokenRule(source=B),
            "c": TokenRule(source=ModelToken(model=A, token="7")),
            "d": TokenRule(source=ModelToken(model=B, token_id=7)),
            "e": TokenRule(source=ZeroRow(), force=True),
            "f": TokenRule(),
        },
    )
    assert recipe.tokenizer is not None
    rebuilt = Recipe.build(
        "linear", ["org/a", "org/b"], None, {"weight": 1}, methods=METHODS, tokenizer=recipe.tokenizer
    )
    assert rebuilt == recipe
    ready = {"tokens": {"c": TokenRule(source=ZeroRow()), "d": {"source": ModelToken(model=A, token="x")}}}
    built = Recipe.build("linear", ["org/a"], None, {"weight": 1}, methods=METHODS, tokenizer=ready)
    assert built.tokenizer is not None
    assert built.tokenizer.tokens["d"].source == ModelToken(model=A, token="x")


def test_reference_mappings() -> None:
    recipe = load(
        """
models:
  - model: {model: {path: x+y, revision: 12e4567}, lora: l@z, override_architecture: Arch}
  - model: {path: 7, revision: 010}
  - model: {model: m@n}
"""
    )
    assert recipe.refs() == (
        ModelRef(path="x+y", revision="12e4567", lora=ModelPath(path="l@z"), override_architecture="Arch"),
        ModelRef(path="7", revision="010"),
        ModelRef(path="m@n"),
    )


def test_models_in_order_with_their_settings() -> None:
    recipe = load("models:\n - {model: b, parameters: {weight: [0, 1]}}\n - {model: a, parameters: }\n")
    assert recipe.models == (
        Entry(model=ModelRef(path="b"), parameters={"weight": [0.0, 1.0]}),
        Entry(model=ModelRef(path="a")),
    )


def test_slices_and_modules() -> None:
    recipe = load(
        """
modules:
  text:
    parameters: {normalize: no}
    slices:
      - sources: [{model: a, layer_range: ["0", 4.0]}, {model: a, layer_range: [4, 8]}]
        parameters: {weight: 3}
        residual_weight: 1
  default:
    models: [{model: b}]
"""
    )
    assert recipe.modules is not None and list(recipe.modules) == ["text", "default"]
    text, rest = recipe.modules.values()
    assert text.slices is not None and rest.models is not None
    (piece,) = text.slices
    assert [source.layer_range for source in piece.sources] == [(0, 4), (4, 8)]
    assert piece.parameters["weight"].constant == 3.0
    assert piece.residual_weight == 1.0
    assert text.parameters["normalize"].constant is False
    assert rest.models[0].model == ModelRef(path="b")


@pytest.mark.parametrize(
    ("method", "form", "models"),
    [
        ("ties", "models: [{model: a}]", ["a", "base"]),
        ("ties", "models: [{model: base}, {model: a}]", ["base", "a"]),
        ("nuslerp", "models: [{model: a}, {model: b}]", ["a", "b", "base"]),
        ("slerp", "models: [{model: a}]", ["a", "base"]),
        ("slerp", "models: [{model: base}]", ["base"]),
        ("karcher", "models: [{model: a}]", ["a", "base"]),
        ("passthrough", "models: [{model: a}]", ["a"]),
        ("ties", "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]", ["a", "base"]),
        ("slerp", "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]", ["a", "base"]),
        ("karcher", "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]", ["a"]),
        ("passthrough", "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]", ["a"]),
        ("midpoint", "models: [{model: a}, {model: base}]", ["a", "base"]),
    ],
)
def test_the_base_joins_where_the_method_needs_it(method: str, form: str, models: list[str]) -> None:
    words = {"ties": "{weight: 1}", "nuslerp": "{weight: 1}", "slerp": "{t: 0.5}"}
    text = f"merge_method: {method}\nbase_model: base\nparameters: {words.get(method, '{}')}\n{form}\n"
    recipe = load_recipe(text, methods=METHODS)
    members = recipe.models or (recipe.slices or ())[0].sources
    assert [str(member.model) for member in members] == models
    assert str(recipe.base_model) == "base"


def test_levels_of_required_settings() -> None:
    """A required setting of each model may stand at any level; a global one at any but the model's."""
    slices = "slices: [{sources: [{model: a, layer_range: [0, 2]}]"
    for text in (
        f"merge_method: linear\nparameters: {{weight: 1}}\n{slices}}}]\n",
        f"merge_method: linear\n{slices}, parameters: {{weight: 1}}}}]\n",
        f"merge_method: linear\nmodules: {{m: {{parameters: {{weight: 1}}, {slices}}}]}}}}\n",
        f"merge_method: slerp\nbase_model: a\n{slices}, parameters: {{t: 1}}}}]\n",
    ):
        assert load_recipe(text, methods=METHODS).warnings == ()


def test_what_is_missing_in_every_slice_is_said_once() -> None:
    piece = "  - sources: [{model: a, layer_range: [0, 2]}]\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe("merge_method: slerp\nbase_model: a\nslices:\n" + piece * 3, methods=METHODS)
    assert len(caught.value.problems) == 1
