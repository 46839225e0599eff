"""Coefficients from Gram matrices against the vectors themselves, degenerate cases and leading axes included."""

from __future__ import annotations

import numpy as np
import pytest

from smelt.numerics import spheres

RANDOM = np.random.default_rng(0)


def gram(vectors: np.ndarray) -> np.ndarray:
    """[..., n, d] -> [..., n, n]."""
    return np.einsum("...id,...jd->...ij", vectors, vectors)


def apply(coefficients: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...id->...d", coefficients, vectors)


def pair(cosine: float, sizes: tuple[float, float] = (1.0, 1.0), length: int = 7) -> np.ndarray:
    """Two vectors with a given angle and lengths."""
    basis, _ = np.linalg.qr(RANDOM.normal(size=(length, 2)))
    first, second = basis.T
    return np.stack([sizes[0] * first, sizes[1] * (cosine * first + np.sqrt(1 - cosine**2) * second)])


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("cosine", [0.9, 0.0, -0.5, 0.999, -0.999])
def test_slerp_turns_at_constant_speed(cosine: float, t: float) -> None:
    vectors = pair(cosine)
    for rule in (spheres.slerp, spheres.nuslerp):
        made = apply(rule(gram(vectors), t), vectors)
        assert np.linalg.norm(made) == pytest.approx(1, abs=1e-12)
        assert np.arccos(np.clip(made @ vectors[0], -1, 1)) == pytest.approx(t * np.arccos(cosine), abs=1e-7)


def test_ends_are_the_inputs_exactly() -> None:
    for cosine in (0.3, -0.9, 1.0, 0.99999):
        matrix = gram(pair(cosine, (2.0, 3.0)))
        for rule in (spheres.slerp, spheres.nuslerp):
            assert rule(matrix, 0.0).tolist() == [1.0, 0.0]
            assert rule(matrix, 1.0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("cosine", [0.9996, -0.9996, 1.0, -1.0])
def test_slerp_is_a_line_when_nearly_colinear(cosine: float) -> None:
    assert spheres.slerp(gram(pair(cosine, (2.0, 5.0))), 0.3).tolist() == [0.7, 0.3]


def test_nuslerp_is_a_line_only_when_colinear() -> None:
    straight = np.array([[1.0, 2.0], [2.0, 4.0]])
    assert spheres.nuslerp(straight, 0.3) == pytest.approx(np.array([0.7, 0.3]), abs=1e-9)
    assert spheres.nuslerp(-straight * np.eye(2) * -2 - straight, 0.3).sum() == pytest.approx(1.0), "opposite"
    turned = spheres.nuslerp(gram(pair(0.9996)), 0.3)
    assert turned.sum() != 1.0


@pytest.mark.parametrize("zeros", [(0,), (1,), (0, 1)])
def test_a_zero_vector_gives_a_line(zeros: tuple[int, ...]) -> None:
    vectors = pair(0.4)
    vectors[list(zeros)] = 0
    for rule in (spheres.slerp, spheres.nuslerp):
        assert rule(gram(vectors), 0.25).tolist() == [0.75, 0.25]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_multislerp_is_the_direction_of_the_mean_of_units(count: int) -> None:
    vectors = RANDOM.normal(size=(count, 9)) * np.arange(1, count + 1)[:, None]
    weights = RANDOM.uniform(0.1, 1, count)
    norms = np.linalg.norm(vectors, axis=1)
    mean = (weights[:, None] * vectors / (norms + 1e-8)[:, None]).sum(0)
    wanted = mean / np.linalg.norm(mean) * (weights * norms).sum()
    assert apply(spheres.multislerp(gram(vectors), weights, 1e-8), vectors) == pytest.approx(
        wanted, abs=1e-12
    )


def test_multislerp_of_opposite_vectors_is_the_weighted_sum() -> None:
    vectors = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert spheres.multislerp(gram(vectors), np.array([0.5, 0.5]), 1e-8).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_multislerp_of_zeros_is_zero(eps: float) -> None:
    vectors = np.zeros((3, 4))
    assert np.isfinite(spheres.multislerp(gram(vectors), np.full(3, 1 / 3), eps)).all()
    vectors[0, 0] = 2.0
    made = apply(spheres.multislerp(gram(vectors), np.full(3, 1 / 3), eps), vectors)
    assert made == pytest.approx([2 / 3, 0, 0, 0])


def log_map(at: np.ndarray, to: np.ndarray) -> np.ndarray:
    cosine = np.clip(at @ to, -1, 1)
    angle = np.arccos(cosine)
    return (to - cosine * at) * (angle / np.sin(angle) if angle > 1e-12 else 1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_karcher_mean_has_no_pull_left(count: int) -> None:
    """The defining property: the weighted logarithms at the mean cancel."""
    vectors = RANDOM.normal(size=(count, 12)) + 1.5
    weights = RANDOM.uniform(0.2, 1, count)
    weights /= weights.sum()
    made = apply(spheres.karcher(gram(vectors), weights, 500, 1e-12), vectors)
    norms = np.linalg.norm(vectors, axis=1)
    assert np.linalg.norm(made) == pytest.approx(weights @ norms, rel=1e-12)
    centre = made / np.linalg.norm(made)
    pull = sum(w * log_map(centre, x / n) for w, x, n in zip(weights, vectors, norms, strict=True))
    assert np.linalg.norm(pull) < 1e-9


def test_karcher_of_two_is_the_middle_of_the_arc() -> None:
    vectors = pair(0.2, (1.0, 3.0))
    made = apply(spheres.karcher(gram(vectors), np.array([0.5, 0.5]), 50, 1e-12), vectors)
    half = vectors[0] + vectors[1] / 3
    assert made == pytest.approx(2 * half / np.linalg.norm(half), abs=1e-12)


def test_karcher_with_zero_vectors() -> None:
    vectors = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    thirds = np.full(3, 1 / 3)
    assert apply(spheres.karcher(gram(vectors), thirds, 10, 1e-5), vectors) == pytest.approx([1.0, 4 / 3])
    assert spheres.karcher(np.zeros((3, 3)), thirds, 10, 1e-5).tolist() == [0, 0, 0]
    assert spheres.karcher(gram(vectors), np.array([1.0, 0.0, 0.0]), 10, 1e-5).tolist() == [0, 0, 0], (
        "only zeros weigh"
    )


def test_karcher_of_opposites_stays_finite_and_on_the_sphere() -> None:
    for vectors in (np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])):
        weights = np.full(len(vectors), 1 / len(vectors))
        made = apply(spheres.karcher(gram(vectors), weights, 20, 1e-9), vectors)
        assert np.linalg.norm(made) == pytest.approx(1.0)


def test_karcher_resolves_fine_tunes_that_float32_could_not() -> None:
    """Models a thousandth apart: the mean is as far from the plain mean as theory says, not at random."""
    base = RANDOM.normal(size=2000)
    vectors = base + 1e-4 * RANDOM.normal(size=(4, 2000))
    made = apply(spheres.karcher(gram(vectors), np.full(4, 0.25), 10, 1e-12), vectors)
    delta = np.linalg.norm(vectors.mean(0) - base)
    assert np.linalg.norm(made - vectors.mean(0)) < 1e-3 * delta


@pytest.mark.parametrize("count", [2, 3, 5])
def test_stock_ratio_is_the_formula(count: int) -> None:
    vectors = RANDOM.normal(size=(count, 6)) + 0.5
    units = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    cosines = [units[i] @ units[j] for i in range(count) for j in range(i)]
    c = np.mean(cosines)
    assert spheres.stock_ratio(gram(vectors), False) == pytest.approx(
        count * c / (1 + (count - 1) * c), rel=1e-12
    )


def test_stock_ratio_at_its_edges() -> None:
    same = np.ones((3, 4))
    assert spheres.stock_ratio(gram(same), False) == pytest.approx(1.0)
    assert spheres.stock_ratio(np.zeros((3, 3)), False) == 0.0, "no task vector: the base"
    assert spheres.stock_ratio(np.ones((1, 1)), False) == 1.0, "one model: no angle, the model"
    opposite = gram(np.array([[1.0], [-1.0]]))
    assert spheres.stock_ratio(opposite, False) == 0.0, "the pole of the formula"
    blunt = gram(np.array([[1.0, 0.0], [-0.6, 0.8]]))
    assert spheres.stock_ratio(blunt, False) == pytest.approx(-3.0)
    assert spheres.stock_ratio(blunt, True) == 0.0


@pytest.mark.parametrize("rule", ["slerp", "nuslerp", "multislerp", "stock_ratio"])
def test_leading_axes_are_independent_vectors(rule: str) -> None:
    vectors = RANDOM.normal(size=(4, 3, 2, 8))
    vectors[1, 1, 0] = 0
    vectors[2, 0, 1] = 2 * vectors[2, 0, 0]

    def run(matrix: np.ndarray) -> np.ndarray:
        if rule == "multislerp":
            return spheres.multislerp(matrix, np.array([0.3, 0.7]), 1e-8)
        return (
            spheres.stock_ratio(matrix, False)
            if rule == "stock_ratio"
            else getattr(spheres, rule)(matrix, 0.3)
        )

    whole = run(gram(vectors))
    for i in range(4):
        for j in range(3):
            assert whole[i, j] == pytest.approx(run(gram(vectors[i, j])), rel=1e-13, abs=1e-300)
    assert run(np.zeros((0, 2, 2))).shape[0] == 0
