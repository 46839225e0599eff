"""The YAML reader: what plain scalars mean, where values stand, and what it refuses to expand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipe_methods import METHODS

from smelt.core.errors import RecipeError
from smelt.recipe import load_recipe
from smelt.recipe.document import MAX_BYTES, MAX_NODES, parse_yaml, show_path


def read(text: str) -> object:
    document, problems = parse_yaml(text)
    assert not problems
    return document.data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("-7", -7), ("1_000", 1000), ("0x1F", 31), ("0", 0), ("0.5", 0.5), (".5", 0.5), ("1.", 1.0),
        ("1.5e3", 1500.0), ("1.0E-2", 0.01), ("-.inf", float("-inf")), ("true", True), ("Off", False),
        ("YES", True), ("yEs", "yEs"), ("~", None), ("NULL", None), ("", None), ("1e-5", "1e-5"),
        ("010", "010"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("0o17", "0o17"), ("'7'", "7"),
        ('"on"', "on"),
        ("!!str 7", "7"), ("!!int '7'", 7), ("! 7", "7"), ("=", "="),
    ],
)  # fmt: skip
def test_plain_scalars(text: str, value: object) -> None:
    data = read(f"key: {text}\n")
    assert data == {"key": value}
    assert type(data["key"]) is type(value)  # type: ignore[index]


def test_keys_are_always_the_text_of_the_file() -> None:
    assert read("yes: 1\n7: 2\n~: 3\n1.50: 4\n") == {"yes": 1, "7": 2, "~": 3, "1.50": 4}


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcd_", min_size=1), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(plain)
def test_agrees_with_the_safe_loader_on_what_the_safe_dumper_writes(data: object) -> None:
    text = yaml.safe_dump({"key": data}, allow_unicode=True)
    assert read(text) == yaml.safe_load(text)


def test_lines_point_at_the_key_or_the_item() -> None:
    document, _ = parse_yaml("a: 1\nb:\n  - x\n  - c:\n      d\n")
    assert document.where(("b",)) == "b (line 2)"
    assert document.where(("b", 1)) == "b[1] (line 4)"
    assert document.where(("b", 1, "c")) == "b[1].c (line 4)"
    assert document.where(("b", 1, "absent")) == "b[1].absent (line 4)"
    assert show_path(("tokens", "<s>", 0)) == "tokens['<s>'][0]"


def test_merge_keys_follow_yaml() -> None:
    text = (
        "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {<<: *a, x: 9}\ne: {'<<': 1}\n"
    )
    assert read(text) == yaml.safe_load(text) | {"e": {"<<": 1}}
    with pytest.raises(RecipeError, match="<< merges something that is not a mapping"):
        parse_yaml("a: &a [1]\nb: {<<: *a}\n")


def test_every_repeated_key_is_found() -> None:
    _, problems = parse_yaml("a: 1\nb: {c: 1, c: 2}\na: 2\n")
    assert [problem.what for problem in problems] == ["key 'c' stands twice", "key 'a' stands twice"]


def test_alias_bombs_are_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    start = time.process_time()
    with pytest.raises(RecipeError, match="aliases expand to too many values"):
        parse_yaml("\n".join(lines))
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000 + "x", "? " * 5000])
def test_deep_nests_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="nested too deeply"):
        parse_yaml(text)


def test_long_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        parse_yaml("#" * MAX_BYTES + "\na: 1")
    with pytest.raises(RecipeError, match=f"too many values.*at most {MAX_NODES}"):
        parse_yaml("[" + "1," * MAX_NODES + "]")
    (tmp_path / "big.yml").write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        load_recipe(tmp_path / "big.yml", methods=METHODS)


@given(st.text(max_size=60))
def test_any_text_is_data_or_an_error(text: str) -> None:
    try:
        parse_yaml(text + "\n")
    except RecipeError as error:
        assert str(error)


@given(st.text("ab:-{}[],&*!|>'\"%@`#?<= \n\t0159.", max_size=40))
def test_any_jumble_of_yaml_signs_is_data_or_an_error(text: str) -> None:
    try:
        parse_yaml(text)
    except RecipeError as error:
        assert str(error)
