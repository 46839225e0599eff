"""CKA and midness against hand-computed cases, float64 numpy, and the laws they must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smelt.core.errors import LatentError
from smelt.latent import operators
from smelt.latent.metrics import angle, arc_deviation, linear_cka, midness_seq


def states(tokens: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))


def numpy_cka(x: Tensor, y: Tensor) -> float:
    """The definition, feature Gram matrices in float64."""
    a, b = x.double().numpy(), y.double().numpy()
    a, b = a - a.mean(0), b - b.mean(0)
    return float(np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


@pytest.mark.parametrize(("tokens", "size"), [(40, 8), (8, 40), (16, 16), (2, 5)])
def test_cka_equals_the_definition_whichever_gram_is_smaller(tokens, size):
    x, y = states(tokens, size), states(tokens, size, 1) + 0.5 * states(tokens, size)
    assert linear_cka(x, y) == pytest.approx(numpy_cka(x, y), abs=1e-13)


def test_cka_by_hand():
    """Columns (1, 0, -1) and (1, -2, 1) are orthogonal; (2, 1, 0) is (1, 0, -1) shifted."""
    x = torch.tensor([[1.0], [0.0], [-1.0]])
    assert linear_cka(x, torch.tensor([[1.0], [-2.0], [1.0]])) == pytest.approx(0.0, abs=1e-15)
    assert linear_cka(x, torch.tensor([[2.0], [1.0], [0.0]])) == pytest.approx(1.0)
    assert linear_cka(x, torch.tensor([[1.0, 1.0], [0.0, -2.0], [-1.0, 1.0]])) == pytest.approx(
        2 / math.sqrt(40)
    )


def test_cka_ignores_rotation_scale_and_shift_and_allows_other_widths():
    x = states(12, 6)
    rotation = torch.linalg.qr(states(6, 6, 9).double()).Q
    assert linear_cka(x, (x.double() @ rotation) * 7 - 3) == pytest.approx(1.0)
    assert 0 <= linear_cka(x, states(12, 20, 2)) <= 1


def test_cka_of_half_precision_states_with_a_large_offset_is_exact():
    x = (states(6, 64) + 300).to(torch.bfloat16)
    y = (states(6, 64, 1) - 900).to(torch.bfloat16)
    assert linear_cka(x, y) == pytest.approx(numpy_cka(x, y), abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (states(3, 4), states(5, 4), "X has 3 tokens and Y has 5"),
        (states(3, 4)[None], states(3, 4), r"X has shape \(1, 3, 4\)"),
        (states(1, 4), states(1, 4), "single token"),
        (torch.full((5, 3), 0.1), states(5, 3), "X is constant"),
        (states(5, 3), states(5, 3) * float("nan"), "Y holds NaN"),
    ],
)
def test_cka_refuses_what_has_no_answer(x, y, said):
    with pytest.raises(LatentError, match=said):
        linear_cka(x, y)


@pytest.mark.parametrize("theta", [1e-10, 1e-4, 0.01, 1.0, math.pi - 1e-6, math.pi])
def test_angles_are_accurate_where_arccos_is_not(theta):
    """Trap 7: arccos in half precision says 0 for .01 and .001."""
    u = torch.tensor([1.0, 0.0], dtype=torch.float64)
    v = torch.tensor([math.cos(theta), math.sin(theta)], dtype=torch.float64)
    assert float(angle(3 * u, 0.5 * v)) == pytest.approx(theta, rel=1e-6)


def on_circle(*degrees: float, length: float = 1.0) -> Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return length * torch.stack([radians.cos(), radians.sin()], dim=-1)


def test_midness_by_hand():
    """Base at 0, donor at 90, merged at 30 and 60 degrees; lengths are irrelevant."""
    found = midness_seq(
        on_circle(0, 0, length=5), on_circle(90, 90), on_circle(30, 60, length=0.1), beta=0.25
    )
    degree = math.pi / 180
    assert found["midpoint_cos"] == pytest.approx(math.cos(15 * degree))
    assert found["arc_mid_deviation"] == pytest.approx(15 * degree)
    assert found["arc_ratio"] == pytest.approx(0.5)
    assert found["arc_deviation"] == pytest.approx(0.0, abs=1e-12)
    assert found["arc_ratio_median"] == pytest.approx(0.5)
    assert found["beta_cos"] == pytest.approx((math.cos(7.5 * degree) + math.cos(37.5 * degree)) / 2)
    assert found["beta_arc_deviation"] == pytest.approx((7.5 + 37.5) / 2 * degree)
    assert found["beta_ratio_deviation"] == pytest.approx(0.25)
    assert found["tokens"] == found["arc_ratio_tokens"] == 2


def test_the_two_arc_deviations_are_different_numbers():
    """At 20 of 40 + 40 of 40 degrees: radians average 10 degrees, the mean ratio is 3/4."""
    found = midness_seq(on_circle(0, 0), on_circle(40, 40), on_circle(20, 40))
    assert found["arc_mid_deviation"] == pytest.approx(math.radians(10))
    assert found["arc_deviation"] == pytest.approx(0.25) == arc_deviation(0.75)


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_spherical_blend_lies_exactly_where_it_was_asked_to(beta):
    base, donor = states(20, 16).double(), states(20, 16, 1).double()
    found = midness_seq(base, donor, operators.slerp(base, donor, beta), beta=beta)
    assert found["beta_cos"] == pytest.approx(1.0)
    assert found["arc_ratio"] == pytest.approx(beta, abs=1e-9)
    assert found["beta_arc_deviation"] == pytest.approx(0.0, abs=1e-7)


def test_tokens_where_both_models_agree_do_not_blow_up_the_ratio():
    """An attention sink that base and donor share has no arc; the old formula gave a ratio near 1e12."""
    base, donor, merged = on_circle(0, 0), on_circle(0, 90), on_circle(10, 45)
    found = midness_seq(base, donor, merged)
    assert found["arc_ratio"] == pytest.approx(0.5)
    assert found["arc_ratio_tokens"] == 1
    assert math.isnan(midness_seq(base, base, merged)["arc_ratio"])


def test_the_median_stands_still_when_one_token_runs_away():
    base, donor = on_circle(0, 0, 0), on_circle(40, 40, 0.001)
    found = midness_seq(base, donor, on_circle(20, 20, 20))
    assert found["arc_ratio"] > 100
    assert found["arc_ratio_median"] == pytest.approx(0.5)


def test_one_token_may_come_as_a_vector():
    assert midness_seq(on_circle(0)[0], on_circle(90)[0], on_circle(45)[0])["midpoint_cos"] == pytest.approx(
        1
    )


def test_shapes_must_agree():
    with pytest.raises(LatentError, match=r"Hb \(3, 4\), Hf \(3, 4\), Hm \(2, 4\)"):
        midness_seq(states(3, 4), states(3, 4), states(2, 4))
    with pytest.raises(LatentError, match="Hm holds NaN"):
        midness_seq(states(3, 4), states(3, 4), states(3, 4) / 0)


def old_midness(base: Tensor, donor: Tensor, merged: Tensor) -> tuple[float, float, float]:
    """The published definition, in float64 numpy with arccos."""
    b, f, m = (
        x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
        for x in (base, donor, merged)
    )
    middle = (b + f) / np.linalg.norm(b + f, axis=1, keepdims=True)
    d_bf, d_bm = np.arccos((b * f).sum(1)), np.arccos((b * m).sum(1))
    return (m * middle).sum(1).mean(), np.abs(d_bm - d_bf / 2).mean(), (d_bm / d_bf).mean()


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 12), size=st.integers(2, 24), seed=st.integers(0, 10_000))
def test_midness_agrees_with_the_published_definition_on_ordinary_states(tokens, size, seed):
    base, donor, merged = (states(tokens, size, 3 * seed + k) for k in range(3))
    found = midness_seq(base, donor, merged)
    expected = old_midness(base, donor, merged)
    for name, value in zip(("midpoint_cos", "arc_mid_deviation", "arc_ratio"), expected, strict=True):
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
