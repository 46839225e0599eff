"""Settings: gradients, filters and the order of levels, held against the formulas they promise."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.core.errors import RecipeError
from smelt.core.method import REQUIRED, Param
from smelt.recipe import Rule, Setting, resolve
from smelt.recipe.setting import read_number

finite = st.floats(-1e6, 1e6)


def interpolated(anchors: list[float], t: float) -> float:
    """The formula of the recipe language, written out."""
    scaled = t * (len(anchors) - 1)
    low = math.trunc(scaled)
    high = min(len(anchors) - 1, low + 1)
    share = scaled - low
    return (1 - share) * anchors[low] + share * anchors[high]


@given(st.lists(finite, min_size=1, max_size=9), st.floats(0, 1))
def test_gradients_interpolate_between_evenly_spread_anchors(anchors: list[float], t: float) -> None:
    assert Setting.of(anchors).evaluate("any", t) == pytest.approx(
        interpolated(anchors, t), rel=1e-12, abs=1e-9
    )


@given(st.lists(finite, min_size=2, max_size=9), st.data())
def test_gradients_meet_their_anchors_exactly(anchors: list[float], data: st.DataObject) -> None:
    index = data.draw(st.sampled_from([0, len(anchors) - 1]))
    assert Setting.of(anchors).evaluate("any", index / (len(anchors) - 1)) == anchors[index]


@pytest.mark.parametrize(
    ("t", "value"), [(0, 0), (0.25, 0.5), (0.375, 0.4), (0.5, 0.3), (0.75, 0.7), (0.875, 0.85), (1, 1)]
)
def test_a_gradient_over_layers(t: float, value: float) -> None:
    assert Setting.of([0, 0.5, 0.3, 0.7, 1]).evaluate("x", t) == pytest.approx(value)


def test_flags_and_words_step_from_anchor_to_anchor() -> None:
    flags = Setting.of([False, True, False])
    assert [flags.evaluate("x", t) for t in (0, 0.49, 0.5, 0.99, 1)] == [False, False, True, True, False]
    words = Setting.of(["tensor", "layer"])
    assert [words.evaluate("x", t) for t in (0, 0.9, 1)] == ["tensor", "tensor", "layer"]


def test_the_first_filter_that_passes_decides_and_none_means_unset() -> None:
    setting = Setting.of([{"filter": "self_attn", "value": 0.1}, {"filter": "attn", "value": 0.2}])
    assert setting.evaluate("model.layers.0.self_attn.q_proj.weight", 0) == 0.1
    assert setting.evaluate("model.layers.0.attn.q_proj.weight", 0) == 0.2
    assert setting.evaluate("model.layers.0.mlp.up_proj.weight", 0) is None


@pytest.mark.parametrize(
    ("pattern", "name", "passes"),
    [
        ("mlp", "model.layers.0.mlp.up_proj.weight", True),
        ("layers.1.", "model.layers.11.mlp.weight", False),
        ("layers.1", "model.layers.11.mlp.weight", True),
        ("m.p", "model.layers.0.mlp.weight", False),
        ("[0-9]", "model.layers.0.mlp.weight", False),
        ("*", "anything", True),
        ("*.mlp.*", "model.layers.0.mlp.weight", True),
        ("mlp*", "model.layers.0.mlp.weight", False),
        ("model.layers.?.mlp.*", "model.layers.12.mlp.weight", False),
        ("model.layers.[0-3].mlp.*", "model.layers.2.mlp.weight", True),
        ("/layers[.](0|2)[.]/", "model.layers.2.mlp.weight", True),
        ("/layers[.](0|2)[.]/", "model.layers.12.mlp.weight", False),
        ("/", "a/b", True),
        ("//", "a//b", True),
    ],
)
def test_filters(pattern: str, name: str, passes: bool) -> None:
    assert (Setting.of({"filter": pattern, "value": 1}).evaluate(name, 0) == 1) is passes


def test_a_single_condition_works() -> None:
    setting = Setting.of({"value": [0, 1], "filter": "mlp"})
    assert setting.evaluate("mlp", 0.5) == 0.5
    assert setting.evaluate("attn", 0.5) is None


def test_shapes_with_one_meaning_are_one_setting() -> None:
    assert (
        Setting.of(0.5) == Setting.of([0.5]) == Setting.of({"value": 0.5}) == Setting.of([{"value": [0.5]}])
    )
    assert Setting.of({"value": 1, "filter": "*"}) == Setting.of(1) == Setting((Rule((1,)),))


values = st.one_of(finite, st.booleans(), st.integers(-5, 5))
plain = values | st.lists(finite, min_size=1, max_size=4)
filters = st.text("abc.*?/[]", min_size=1, max_size=6).filter(lambda text: not text.startswith("/"))
rules = st.fixed_dictionaries({"value": plain}, optional={"filter": filters})


@given(plain | rules | st.lists(rules, min_size=1, max_size=4))
def test_the_plain_form_of_a_setting_reads_back(raw: object) -> None:
    setting = Setting.of(raw)
    assert Setting.of(setting.to_plain()) == setting
    assert Setting.of(setting) is setting


def test_numpy_scalars_and_vectors_count_as_numbers() -> None:
    np = pytest.importorskip("numpy")
    assert Setting.of(np.float32(0.5)) == Setting.of(0.5)
    assert Setting.of(np.array([0.0, 1.0])) == Setting.of([0.0, 1.0])


@pytest.mark.parametrize(
    "raw", [None, [], {}, [1, {"value": 2}], {"value": []}, float("nan"), 10**400, object(), b"x"]
)
def test_what_is_no_setting_is_refused(raw: object) -> None:
    with pytest.raises(RecipeError):
        Setting.of(raw)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("+0", 0),
        ("0.10", 0.1),
        (" 2 ", 2),
    ],
)
def test_numbers_as_text(text: str, number: float) -> None:
    assert read_number(text) == (number, "")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("010", "write 10 or 8: YAML versions disagree on what a leading zero means"),
        ("0o17", "write 17 or 15: YAML versions disagree on what a leading zero means"),
        ("09", "write 9: YAML versions disagree on what a leading zero means"),
        ("50%", "write 0.5"),
        ("0,25", "write 0.25"),
        ("2/3", "write 0.666667"),
        ("1:30", "write it as one number: some YAML versions read a:b as base sixty"),
        ("1e999", ""),
        ("0x10", ""),
        ("inf", ""),
        ("", ""),
        ("half", ""),
    ],
)
def test_what_is_nearly_a_number_gets_advice(text: str, advice: str) -> None:
    assert read_number(text) == (None, advice)


WEIGHT = Param(name="weight", per_model=True)
T = Param(name="t")


def setting(value: object) -> dict[str, Setting]:
    return {"weight": Setting.of(value), "t": Setting.of(value)}


def test_the_innermost_level_wins() -> None:
    levels = {"entry": setting(1), "slice_": setting(2), "module": setting(3), "top": setting(4)}
    names = {"entry": "model", "slice_": "slice", "module": "module", "top": "recipe"}
    for expected, outermost in enumerate(list(levels), start=1):
        found = resolve(WEIGHT, output_name="x", **levels)  # type: ignore[arg-type]
        assert (found.value, found.level) == (expected, names[outermost])
        del levels[outermost]
    assert resolve(WEIGHT, output_name="x").value is REQUIRED
    assert resolve(WEIGHT, output_name="x").level == "missing"


def test_a_global_parameter_never_reads_the_model_level() -> None:
    found = resolve(T, entry=setting(1), slice_=setting(2), output_name="x")
    assert (found.value, found.level) == (2.0, "slice")


def test_a_level_whose_filters_do_not_pass_is_skipped() -> None:
    entry = setting([{"filter": "mlp", "value": 0.9}])
    assert resolve(WEIGHT, entry=entry, top=setting(0.1), output_name="attn").level == "recipe"
    assert resolve(WEIGHT, entry=entry, top=setting(0.1), output_name="mlp").value == 0.9


def test_filters_see_the_input_name_for_models_and_the_output_name_for_the_merge() -> None:
    by_name = setting([{"filter": "layers.3.", "value": 3}, {"filter": "layers.7.", "value": 7}])
    names = {"output_name": "layers.3.w", "input_name": "layers.7.w"}
    assert resolve(WEIGHT, entry=by_name, **names).value == 7
    assert resolve(WEIGHT, top=by_name, **names).value == 7
    assert resolve(T, top=by_name, **names).value == 3


def test_required_is_waived_for_the_base_only() -> None:
    assert resolve(WEIGHT, output_name="x", is_base=True).value is None
    assert resolve(WEIGHT, output_name="x", is_base=True).level == "base"
    assert resolve(WEIGHT, top=setting(2), output_name="x", is_base=True).value == 2.0
    optional = Param(name="weight", per_model=True, default=1.0)
    assert resolve(optional, output_name="x", is_base=True).value == 1.0
    assert resolve(optional, output_name="x").level == "default"


def test_levels_may_be_anything_with_parameters() -> None:
    assert resolve(T, top=SimpleNamespace(parameters=setting(0.25)), output_name="x").value == 0.25


def test_values_take_the_kind_the_method_declares() -> None:
    whole = resolve(Param(name="t", kind="int"), top=setting([1, 4]), output_name="x", t=0.5)
    assert (whole.value, type(whole.value)) == (2, int)
    flag = resolve(Param(name="t", kind="bool"), top=setting(1), output_name="x")
    assert flag.value is True
    number = resolve(T, top=setting(1), output_name="x")
    assert type(number.value) is float
    word = resolve(Param(name="t", kind="choice", choices=("l1",)), top=setting("l1"), output_name="x")
    assert word.value == "l1"
