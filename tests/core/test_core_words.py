"""Words everyone shares: errors that say what to do, declarations that refuse bad ones, small types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest

from smelt.core import errors
from smelt.core.errors import (
    MethodError,
    MissingExtraError,
    Problem,
    SmeltError,
    VerificationError,
    did_you_mean,
)
from smelt.core.method import MethodSpec, Param, Registry, discover, method, spec_of
from smelt.core.types import DTYPE_NAMES, FLOATS, ITEMSIZE, TensorMeta, TensorSpec


def test_a_problem_reads_as_one_line() -> None:
    assert str(Problem("is wrong")) == "is wrong"
    full = Problem("has 3 rows", where="tensor 'w'", expected="4 rows", fix="add one")
    assert str(full) == "tensor 'w': has 3 rows; expected 4 rows; add one"


def test_an_error_holds_every_problem() -> None:
    error = SmeltError([Problem("one"), Problem("two", where="here")])
    assert str(error) == "one\nhere: two"
    assert len(error.problems) == 2
    assert SmeltError("alone", fix="do it").problems == (Problem("alone", fix="do it"),)


def test_every_error_derives_from_one_and_has_an_exit_code() -> None:
    found = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(found) > 8
    assert all(issubclass(kind, SmeltError) for kind in found)
    assert {kind.exit_code for kind in found if kind is not VerificationError} == {2}
    assert VerificationError.exit_code == 1


def test_a_missing_extra_prints_the_line_that_installs_it() -> None:
    assert str(MissingExtraError("peft", "hf")) == "this needs the package 'peft'; pip install 'smelt[hf]'"


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("lienar", "did you mean 'linear'?"),
        ("slrep", "did you mean 'slerp'?"),
        ("qqq", "known: linear, slerp"),
        ("", "known: linear, slerp"),
    ],
)
def test_advice(word: str, advice: str) -> None:
    assert did_you_mean(word, ["slerp", "linear"]) == advice


def declare(**options: Any) -> MethodSpec:
    """A method with one parameter of each kind."""

    @method(base="required", summary="Test.", **options)
    def sample(
        base: Any, models: Any, stats: Any, *,
        weight: Annotated[list[float], Param(doc="weight", lo=0)],
        lambda_: Annotated[float, Param(doc="scale", hi=2)] = 1.0,
        steps: Annotated[int, Param(doc="steps", lo=1, hi=9)] = 3,
        flag: Annotated[bool, Param(doc="flag")] = False,
        mode: Annotated[str, Param(doc="mode", choices=("a", "b"))] = "a",
        share: Annotated[list[float], Param(doc="share", lo=0, hi=1, default=0.5)],
    ) -> Any:  # fmt: skip
        return base

    return spec_of(sample)


def test_the_signature_is_the_schema() -> None:
    spec = declare()
    shown = {
        param.name: (param.kind, param.per_model, param.required, param.expected()) for param in spec.params
    }
    assert shown == {
        "weight": ("float", True, True, "a number of at least 0"), "lambda": ("float", False, False, "a number of at most 2"),
        "steps": ("int", False, False, "a whole number from 1 to 9"), "flag": ("bool", False, False, "true or false"),
        "mode": ("choice", False, False, "one of a, b"), "share": ("float", True, False, "a number from 0 to 1"),
    }  # fmt: skip
    assert [param.name for param in spec.per_model_params] == ["weight", "share"]
    assert [param.name for param in spec.global_params] == ["lambda", "steps", "flag", "mode"]
    assert spec.param("share").default == 0.5 and spec.param("nothing") is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("weight", [0, 0.5, 3], [-1, "1", None, True, float("nan")]), ("lambda", [2, -5.5], [2.1, float("nan")]),
        ("steps", [1, 9, 4.0], [0, 10, 2.5, "3"]), ("flag", [True, False, 1, 0], [2, "yes", None]),
        ("mode", ["a", "b"], ["c", 1, None]), ("share", [0, 1, 0.2], [-0.1, 1.1]),
    ],
)  # fmt: skip
def test_values_are_held_against_the_declaration(name: str, good: list[Any], bad: list[Any]) -> None:
    param = declare().param(name)
    assert param is not None
    assert all(param.accepts(value) for value in good)
    assert not any(param.accepts(value) for value in bad)


def no_note(base, models, stats, *, weight: float = 1.0): ...  # type: ignore[no-untyped-def]
def no_doc(base, models, stats, *, weight: Annotated[float, Param()] = 1.0): ...  # type: ignore[no-untyped-def]
def no_hint(base, models, stats, *, weight=1.0): ...  # type: ignore[no-untyped-def]
def odd_type(base, models, stats, *, weight: Annotated[dict, Param(doc="x")]): ...  # type: ignore[no-untyped-def]
def odd_list(base, models, stats, *, weight: Annotated[list[bytes], Param(doc="x")]): ...  # type: ignore[no-untyped-def]
def positional(base, models, stats, weight): ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_note, "argument weight: has no Annotated type; write it like"), (no_hint, "argument weight: has no Annotated type"),
        (no_doc, r"argument weight: has no Param\(doc=...\) note"), (odd_type, "has type <class 'dict'>; expected float, int"),
        (odd_list, "has type <class 'bytes'>"),
        (positional, "unknown positional argument 'weight'; expected base, models, stats"),
    ],
)  # fmt: skip
def test_bad_signatures_are_refused_where_they_are_declared(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(MethodError, match=f"method {function.__name__}.*{said}"):
        method(base="required", summary="Test.")(function)


def test_the_decorator_returns_the_function_itself() -> None:
    def plain(base, models, stats):  # type: ignore[no-untyped-def]
        return base

    assert method(base="optional", summary="Test.")(plain) is plain
    assert spec_of(plain).name == "plain"
    with pytest.raises(MethodError, match="is not a merge method; decorate it"):
        spec_of(test_advice)


def test_the_registry_finds_refuses_and_advises() -> None:
    registry, spec = Registry(), declare()
    registry.add(spec)
    registry.add(spec)
    assert dict(registry) == {"sample": spec} and len(registry) == 1 and registry.find("sample") is spec
    with pytest.raises(MethodError, match="'sample' is declared twice"):
        registry.add(declare())
    with pytest.raises(SmeltError, match="unknown merge method 'sampel'; did you mean 'sample'"):
        registry.find("sampel")


def test_discovery_finds_the_methods_of_the_package() -> None:
    found = discover("smelt.methods")
    files = {path.stem for path in Path(discover.__code__.co_filename).parents[1].glob("methods/[!_]*.py")}
    assert set(found) == files and len(files) >= 11


def test_exemptions_and_specs_cannot_be_changed_afterwards() -> None:
    spec = declare(exempt={"order": "because"})
    with pytest.raises(TypeError):
        spec.exempt["order"] = "no"  # type: ignore[index]
    with pytest.raises(AttributeError):
        spec.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("shape", "numel", "nbytes"),
    [((), 1, 2), ((0,), 0, 0), ((3, 0, 5), 0, 0), ((3, 4), 12, 24), ((1,), 1, 2)],
)
def test_sizes(shape: tuple[int, ...], numel: int, nbytes: int) -> None:
    for one in (TensorSpec("w", "BF16", shape), TensorMeta("w", "BF16", shape, Path("x"), 8)):
        assert (one.numel, one.nbytes) == (numel, nbytes)


def test_dtype_tables_agree() -> None:
    assert set(DTYPE_NAMES.values()) <= set(ITEMSIZE)
    assert set(ITEMSIZE) >= FLOATS and {ITEMSIZE[dtype] for dtype in FLOATS} == {2, 4, 8}
