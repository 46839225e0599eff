"""Model references: every string form, what lies on disk, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_methods import METHODS

from smelt.recipe import ModelPath, ModelRef, Recipe, load_recipe
from smelt.recipe.reference import ReferenceProblem


def ref(path: str, revision: str | None = None, lora: ModelPath | None = None) -> ModelRef:
    return ModelRef(path=path, revision=revision, lora=lora)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", ref("org/model")),
        ("org/model@main", ref("org/model", "main")),
        ("org/model@refs/pr/3", ref("org/model", "refs/pr/3")),
        ("org/model+org/lora", ref("org/model", None, ModelPath(path="org/lora"))),
        ("org/m@a+org/l@b", ref("org/m", "a", ModelPath(path="org/l", revision="b"))),
        (r"C:\models\my model", ref(r"C:\models\my model")),
        (r"C:\users\me@home\model", ref(r"C:\users\me@home\model")),
        ("/data/me@host/model", ref("/data/me@host/model")),
        ("../a@b", ref("../a@b")),
        ("modèles/モデル", ref("modèles/モデル")),
        (" spaced name ", ref(" spaced name ")),
    ],
)
def test_strings(text: str, expected: ModelRef) -> None:
    assert ModelRef.parse(text) == expected


@pytest.mark.parametrize("text", ["a+b+c", "a@b@c", "a+", "+a", "a@", "@a", "a+@b", "a@b+c@d@e"])
def test_strings_that_mean_nothing(text: str) -> None:
    with pytest.raises(ReferenceProblem):
        ModelRef.parse(text)


def test_what_exists_under_its_whole_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a+b", "c@d", "e+f+g", "x+y@z"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("a+b", "c@d", "e+f+g", "x+y@z"):
        assert ModelRef.parse(name) == ref(name)
        assert ModelRef.parse(str(tmp_path / name)) == ref(str(tmp_path / name))
    assert ModelRef.parse("a+b+org/lora") == ref("a+b", None, ModelPath(path="org/lora"))
    assert ModelRef.parse("org/m+a+b") == ref("org/m", None, ModelPath(path="a+b"))
    assert ModelRef.parse("a+b+e+f+g") == ref("a+b", None, ModelPath(path="e+f+g"))
    assert ModelRef.parse("c@d@main") == ref("c@d", "main")


def test_paths_are_found_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "near").mkdir()
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipes" / "r.yml"
    file.write_text(
        "merge_method: linear\nparameters: {weight: 1}\n"
        "models: [{model: near}, {model: far}, {model: org/hub}, {model: ../far/}, {model: ./far}]\n"
    )
    models = [str(ref) for ref in load_recipe(Path("recipes/r.yml"), methods=METHODS).refs()]
    assert models == ["recipes/near", "far", "org/hub", "recipes/../far"]
    assert load_recipe(str(file), methods=METHODS).refs()[0].path == str(tmp_path / "recipes" / "near")


def test_one_folder_spelled_in_two_ways_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    text = "merge_method: ties\nbase_model: ./base/\nmodels: [{model: base}, {model: a}]\n"
    text += "parameters: {weight: 1}\n"
    recipe = load_recipe(text, methods=METHODS)
    assert recipe.models is not None and len(recipe.models) == 2


def test_home_is_expanded_when_something_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ModelRef.parse("~/m").path == str(tmp_path / "m")
    assert ModelRef.parse("~/absent").path == "~/absent"
    assert ModelRef.parse("~nobody_of_that_name/m").path == "~nobody_of_that_name/m"


def test_a_revision_of_a_folder_is_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.build("passthrough", ["m@main"], methods=METHODS)
    assert recipe.refs() == (ref("m", "main"),)
    assert ["'m' is a folder on disk" in str(warning) for warning in recipe.warnings] == [True]


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
names = names.filter(lambda text: text.strip() and text[0] not in "~./")  # these may exist on disk
paths = st.builds(ModelPath, path=names, revision=st.none() | names)
refs = st.builds(
    ModelRef,
    path=names,
    revision=st.none() | names,
    lora=st.none() | paths,
    override_architecture=st.none() | names,
)


@given(refs)
def test_any_reference_survives_the_way_through_yaml(model: ModelRef) -> None:
    recipe = Recipe.build("passthrough", [model], methods=METHODS)
    assert load_recipe(recipe.to_yaml(), methods=METHODS).refs() == (model,)
    assert load_recipe(recipe.to_dict(), methods=METHODS) == recipe


def test_references_are_frozen_and_hashable() -> None:
    model = ref("a", "b", ModelPath(path="c"))
    assert {model: 1}[ref("a", "b", ModelPath(path="c"))] == 1
    assert str(model) == "a@b+c"
    with pytest.raises(ValueError, match="frozen"):
        model.path = "z"  # type: ignore[misc]
