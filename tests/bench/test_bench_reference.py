"""The float64 references, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bench import reference as ref

X, Y = np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 0.0]])


def test_slerp_of_a_right_angle_keeps_the_lengths_apart() -> None:
    half = np.sqrt(0.5)
    assert ref.slerp(X, Y, 0.5) == pytest.approx(half * X + half * Y)
    assert ref.slerp(X, 1.001 * X, 0.5) == pytest.approx(1.0005 * X)  # nearly parallel: a straight line
    assert ref.nuslerp(X, Y, [1, 3]) == pytest.approx(np.sin(np.pi / 8) * X + np.sin(3 * np.pi / 8) * Y)


def test_nuslerp_by_rows_turns_each_row_alone() -> None:
    a, b = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 4.0]])
    rows = ref.nuslerp(a, b, [1, 1], axis=-1)
    assert rows[0] == pytest.approx([np.sqrt(0.5), np.sqrt(0.5)]) and rows[1] == pytest.approx([0, 3])


def test_means_on_the_sphere_lie_half_way() -> None:
    for mean in (ref.karcher([X, Y]), ref.multislerp([X, Y], [1, 1])):
        assert np.linalg.norm(mean) == pytest.approx(2.0)  # the mean of the norms 3 and 1
        assert mean[0, 0] == pytest.approx(mean[0, 1])


def test_model_stock_stays_at_the_base_when_task_vectors_are_at_right_angles() -> None:
    base = np.ones((2, 2))
    assert ref.model_stock(base, [base + X, base + Y]) == pytest.approx(base)
    assert ref.model_stock(base, [base + X, base + X]) == pytest.approx(base + X)


def test_ties_keeps_the_first_of_equal_magnitudes_and_elects_signs() -> None:
    assert ref.keep_largest(np.array([1.0, -1.0, 1.0, 0.5]), 0.5).tolist() == [1, -1, 0, 0]
    many = np.random.default_rng(0).choice([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0], 2000)
    first = sorted(range(2000), key=lambda i: (-abs(many[i]), i))[:900]
    assert np.flatnonzero(ref.keep_largest(many, 0.45)).tolist() == sorted(first)
    trimmed = ref.ties(np.zeros(2), [np.array([4.0, 1.0]), np.array([2.0, 4.0])], [1, 1], [0.5, 0.5])
    assert trimmed.tolist() == [4, 4]  # a trimmed element has no share in the divisor
    base = np.zeros(3)
    models = [np.array([1.0, -2.0, 4.0]), np.array([-3.0, -1.0, 2.0])]
    assert ref.ties(base, models, [1, 1], [1, 1]).tolist() == [-3, -1.5, 3]
    assert ref.ties(base, models, [1, 1], [1, 1], normalize=False).tolist() == [-3, -3, 6]
    assert ref.ties(base, models, [1, 0.5], [1, 1], normalize=False).tolist() == [-1.5, -2.5, 5]


def test_task_arithmetic_and_linear() -> None:
    base = np.ones(2)
    models = [np.array([2.0, 1.0]), np.array([1.0, 3.0])]
    assert ref.task_arithmetic(base, models, [0.5, 0.25], scale=2).tolist() == [2, 2]
    assert ref.task_arithmetic(base, models, [0.5, 0.5], normalize=True).tolist() == [1.5, 2]
    assert ref.linear(models, [1, 3]).tolist() == [1.25, 2.5]
