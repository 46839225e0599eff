"""Where recipes come from: files, text, mappings, other recipes, Python; and what becomes of them."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recipe_methods import METHODS

from smelt.core.errors import RecipeError
from smelt.recipe import Entry, ModelRef, Recipe, Setting, load_recipe

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n"


def write(folder: Path, **files: str) -> Path:
    """Recipes of one folder; returns the folder."""
    for name, text in files.items():
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
    return folder


def problems(source: Any, **options: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, methods=METHODS, **options)
    return [str(problem) for problem in caught.value.problems]


def test_a_file_a_text_and_a_mapping_are_the_same_recipe(tmp_path: Path) -> None:
    text = LINEAR + "  - model: org/a\n"
    data = {"merge_method": "linear", "parameters": {"weight": 1}, "models": [{"model": "org/a"}]}
    folder = write(tmp_path, r=text)
    found = [
        load_recipe(source, methods=METHODS)
        for source in (folder / "r.yml", str(folder / "r.yml"), text, data)
    ]
    assert found == [found[0]] * 4
    assert load_recipe(found[0], methods=METHODS) is found[0]
    assert data["models"] == [{"model": "org/a"}], "the mapping is left as it was"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yml").write_bytes(b"\x80\x81\xff")
    (tmp_path / "empty.yml").write_text("")
    absent = tmp_path / "absent.yml"
    assert problems(absent) == [
        f"no recipe file {str(absent)!r}; check the path, or pass YAML text of several lines"
    ]
    assert problems(tmp_path) == [f"{str(tmp_path)!r} is a folder; expected a YAML file"]
    assert problems(tmp_path / "binary.yml")[0].endswith("is not text; expected a YAML file in UTF-8")
    assert problems(tmp_path / "empty.yml")[0].startswith("the recipe is empty")
    assert problems("x" * 5000)[0].startswith("'xxx")
    assert problems(None) == ["a recipe cannot be nothing; expected a path, YAML text or a mapping"]
    assert (
        problems("nul\0byte")[0].startswith("no recipe file") or "cannot be read" in problems("nul\0byte")[0]
    )


def test_a_byte_order_mark_and_dos_lines_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_bytes(
        b"\xef\xbb\xbf" + (LINEAR + "  - model: a\n").replace("\n", "\r\n").encode()
    )
    assert load_recipe(tmp_path / "r.yml", methods=METHODS).merge_method == "linear"


def test_a_recipe_by_path_stands_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, top=LINEAR + "  - model: deep/one.yml\n  - model: org/z\n")
    write(
        tmp_path / "deep",
        one=LINEAR + "  - model: two.yml\n  - model: org/a\n",
        two=LINEAR + "  - model: org/b\n",
    )
    recipe = load_recipe(tmp_path / "top.yml", methods=METHODS)
    assert [str(ref) for ref in recipe.refs()] == ["org/b", "org/a", "org/z"]
    assert load_recipe(recipe.to_yaml(), methods=METHODS) == recipe, "the canonical form needs no other file"


def test_a_recipe_may_be_the_base(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        mean=LINEAR + "  - model: org/a\n  - model: org/b\n",
        top="merge_method: ties\nbase_model: mean.yml\nmodels: [{model: org/c, parameters: {weight: 1}}]\n",
    )
    recipe = load_recipe(folder / "top.yml", methods=METHODS)
    assert isinstance(recipe.base_model, Recipe)
    assert recipe.models is not None and recipe.models[-1].model is recipe.base_model


def test_problems_of_a_nested_file_name_the_file_and_its_lines(tmp_path: Path) -> None:
    inner = LINEAR + "  - model: a\n    parameters: {wieght: 2}\n"
    folder = write(tmp_path, top=LINEAR + "  - model: inner.yml\n    parametres: {}\n", inner=inner)
    assert problems(folder / "top.yml") == [
        "models[0].parametres (line 5): unknown key 'parametres'; did you mean 'parameters'?",
        "inner.yml: models[0].parameters.wieght (line 5): "
        "linear has no parameter 'wieght'; did you mean 'weight'?",
    ]


def test_broken_nested_files_do_not_hide_other_problems(tmp_path: Path) -> None:
    folder = write(tmp_path, top=LINEAR + "  - model: inner.yml\ndtype: f99\n", inner="a: [\n", blank="")
    found = problems(folder / "top.yml")
    assert found[0].startswith("inner.yml: line 2, column 1: not valid YAML")
    assert found[1].startswith("dtype (line 5): unknown dtype 'f99'")
    write(tmp_path, top=LINEAR + "  - model: blank.yml\n")
    assert problems(folder / "top.yml")[0].startswith("blank.yml: the recipe is empty")


def test_circles_are_shown(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        a=LINEAR + "  - model: b.yml\n",
        b=LINEAR + "  - model: ./c.yml\n",
        c=LINEAR + "  - model: b.yml\n",
    )
    assert problems(folder / "a.yml") == [
        "c.yml: models[0].model (line 4): recipes name each other in a circle: b.yml -> c.yml -> b.yml"
    ]
    write(tmp_path, self=LINEAR + "  - model: self.yml\n")
    assert problems(folder / "self.yml")[0].endswith("circle: self.yml -> self.yml")


def test_nesting_is_bounded(tmp_path: Path) -> None:
    data: Any = {"model": "a"}
    for _ in range(40):
        data = {"model": {"merge_method": "passthrough", "models": [data]}}
    assert problems(data["model"])[0].endswith("recipes are nested too deeply; expected at most 16 levels")
    for n in range(12):
        write(tmp_path, **{f"r{n}": LINEAR + f"  - model: r{n + 1}.yml\n" * 2})
    write(tmp_path, r12=LINEAR + "  - model: a\n")
    assert problems(tmp_path / "r0.yml")[0].endswith("too many nested recipes; expected at most 256")


def test_mappings_that_contain_themselves_end(tmp_path: Path) -> None:
    data: dict[str, Any] = {"merge_method": "linear", "parameters": {"weight": 1}}
    data["models"] = [{"model": data}]
    assert "recipes are nested too deeply" in problems(data)[0]


def test_base_dir_is_where_texts_look_for_files(tmp_path: Path) -> None:
    write(tmp_path, one=LINEAR + "  - model: org/a\n")
    recipe = load_recipe(LINEAR + "  - model: one.yml\n", methods=METHODS, base_dir=tmp_path)
    assert [str(ref) for ref in recipe.refs()] == ["org/a"]


def test_chat_templates_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    text = "merge_method: passthrough\nmodels: [{model: a}]\nchat_template: chat.jinja\n"
    assert load_recipe(text, methods=METHODS, base_dir=tmp_path).chat_template == str(tmp_path / "chat.jinja")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(text, methods=METHODS).chat_template == "chat.jinja"
    long = "{{ x }}" * 1000
    assert Recipe.build("passthrough", ["a"], methods=METHODS, chat_template=long).chat_template == long


def test_building_in_python_equals_the_file() -> None:
    built = Recipe.build(
        "ties",
        [
            ("org/a", {"weight": 0.5, "density": [0.2, 1]}),
            {"model": "org/b", "parameters": {"weight": Setting.of(0.5)}},
            Entry(model=ModelRef(path="org/c"), parameters={"weight": 1}),
        ],
        base_model=ModelRef(path="org/base"),
        parameters={"lambda": 0.7},
        methods=METHODS,
        dtype="bf16",
    )
    text = """
merge_method: ties
base_model: org/base
dtype: bfloat16
parameters: {lambda: 0.7}
models:
  - {model: org/a, parameters: {density: [0.2, 1.0], weight: 0.5}}
  - {model: org/b, parameters: {weight: 0.5}}
  - {model: org/c, parameters: {weight: 1.0}}
"""
    assert built == load_recipe(text, methods=METHODS)


def test_building_with_recipes_nests_them() -> None:
    inner = Recipe.build("linear", [("org/a", {"weight": 1}), ("org/b", {"weight": 1})], methods=METHODS)
    outer = Recipe.build("slerp", [inner, "org/c"], inner, {"t": 0.5}, methods=METHODS)
    assert outer.models is not None and outer.models[0].model is inner
    assert [str(ref) for ref in outer.refs()] == ["org/a", "org/b", "org/c"]


def test_building_wrongly_gives_the_same_messages() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.build("ties", [("a", {"wieght": 1}), ("b", {"t": 1})], methods=METHODS, dtpye="bf16")
    assert [str(problem) for problem in caught.value.problems] == [
        "dtpye: unknown key 'dtpye'; did you mean 'dtype'?",
        "ties needs base_model; expected the model that deltas are taken from; add `base_model: PATH`",
        "models[0].parameters.wieght: ties has no parameter 'wieght'; did you mean 'weight'?",
        "models[1].parameters.t: ties has no parameter 't'; it is a parameter of slerp; "
        "known: density, int8_mask, lambda, normalize, scope, weight",
    ]


def test_ready_made_settings_are_checked_too() -> None:
    with pytest.raises(RecipeError, match="density is 2"):
        Recipe.build("ties", [("a", {"weight": 1, "density": Setting.of([1, 2])})], "b", methods=METHODS)


def test_recipes_are_frozen_copy_and_pickle() -> None:
    recipe = Recipe.build("linear", [("a", {"weight": [0, 1]})], methods=METHODS)
    with pytest.raises(ValueError, match="frozen"):
        recipe.merge_method = "ties"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(recipe)) == recipe == copy.deepcopy(recipe)
    assert {recipe: 1}[copy.deepcopy(recipe)] == 1
    assert recipe != "linear"


def test_equality_is_about_meaning_not_spelling() -> None:
    one = load_recipe(
        "parameters: {normalize: 1, weight: '1'}\nmodels: [{model: a}]\nmerge_method: linear\n",
        methods=METHODS,
    )
    two = load_recipe(
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: [1.0], normalize: true}\n",
        methods=METHODS,
    )
    assert one == two
    assert one.digest == two.digest
    assert one.to_yaml() == two.to_yaml()
    other = load_recipe(
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 2}\n", methods=METHODS
    )
    assert one != other and one.digest != other.digest


def test_warnings_are_no_part_of_the_recipe() -> None:
    text = "merge_method: linear\nmodels: [{model: a}, {model: a}]\nparameters: {weight: 1}\n"
    recipe = load_recipe(text, methods=METHODS)
    assert len(recipe.warnings) == 1
    assert "warnings" not in recipe.to_dict()
    assert recipe.model_copy(update={"warnings": ()}) == recipe


def test_slices_know_their_length_and_nodes_come_in_order() -> None:
    text = """
merge_method: ties
base_model: z
parameters: {weight: 1}
slices:
  - sources: [{model: b, layer_range: [2, 6]}]
  - sources: [{model: a, layer_range: [0, 3]}]
    base_model: y
"""
    recipe = load_recipe(text, methods=METHODS)
    assert recipe.slices is not None
    assert [piece.length for piece in recipe.slices] == [4, 3]
    assert [[str(source.model) for source in piece.sources] for piece in recipe.slices] == [
        ["b", "z"],
        ["a", "y"],
    ]
    assert [source.layer_range for source in recipe.slices[0].sources] == [(2, 6), (2, 6)]
    assert [str(ref) for ref in recipe.refs()] == ["b", "z", "a", "y"]


def test_constructing_a_recipe_by_hand_needs_one_form() -> None:
    with pytest.raises(RecipeError, match="exactly one of models, slices and modules"):
        Recipe(merge_method="linear")


def test_importing_recipes_costs_little_more_than_pydantic_and_pulls_in_no_numerics() -> None:
    """pydantic takes 0.09 s of a budget of 0.15 s on a quiet machine; a ratio holds on a busy one, too."""
    code = (
        "import sys, time; start = time.process_time(); import yaml\n"
        "from pydantic import BaseModel, BeforeValidator, InstanceOf; pydantic = time.process_time()\n"
        "import smelt.recipe; print((time.process_time() - pydantic) / (pydantic - start))\n"
        "print([name for name in ('torch', 'numpy', 'numba', 'transformers', 'rich') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.9
    assert {run.stdout.split("\n")[1] for run in runs} == {"[]"}
