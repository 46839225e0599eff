"""TIES and DARE: exactly which elements survive, over a tensor, a layer or the model, ties and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import Tensor, finish, make_run, merge, tensor
from smelt.methods import REGISTRY
from smelt.numerics.blocks import GRAIN
from smelt.numerics.compiled import CompiledBackend
from smelt.numerics.reference import NumpyBackend

TIES, DARE = REGISTRY["ties"], REGISTRY["dare_linear"]
BACKENDS = {"numpy": NumpyBackend(), "numba": CompiledBackend()}


def survivors(delta: Any, density: float, **options: Any) -> np.ndarray:
    """Which elements of one task vector TIES keeps: with a zero base and one model the result is the thinned delta."""
    model = tensor(delta, options.pop("dtype", "BF16"))
    zero = tensor(np.zeros(model.shape), model.dtype)
    return merge(TIES, [model], zero, weight=[1.0], density=[density], **options).values != 0


def expected(delta: np.ndarray, keep: int) -> np.ndarray:
    """The ``keep`` largest magnitudes; equal ones in index order."""
    kept = np.zeros(delta.size, bool)
    kept[np.lexsort((np.arange(delta.size), -np.abs(delta.reshape(-1))))[:keep]] = True
    return kept.reshape(delta.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.001, 0.2, 0.5, 0.9999, 1.0])
def test_exactly_the_promised_number_is_kept(density: float, dtype: str, backend: str) -> None:
    delta = tensor(np.random.default_rng(0).normal(0, 1, (301, 7)), dtype).values
    kept = survivors(delta, density, dtype=dtype, backend=BACKENDS[backend])
    assert kept.sum() == int(density * delta.size)
    assert (kept == expected(delta, int(density * delta.size))).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("density", [0.01, 0.37, 0.5, 0.77])
def test_ties_in_coarse_data_are_kept_in_index_order(density: float, backend: str) -> None:
    """Three magnitudes and both signs over several blocks: nearly everything is a tie."""
    delta = np.random.default_rng(1).choice([-1.0, 1.0, 0.5, -0.25], size=3 * GRAIN + 17)
    for block in (GRAIN, 2 * GRAIN, 8 * GRAIN):
        kept = survivors(delta, density, block=block, backend=BACKENDS[backend])
        assert (kept == expected(delta, int(density * delta.size))).all(), block


def test_a_tied_cut_at_every_place_of_a_block() -> None:
    """All equal: the first k survive, wherever k falls."""
    delta = np.ones(2 * GRAIN + 5)
    for keep in (1, 2, GRAIN - 1, GRAIN, GRAIN + 1, 2 * GRAIN, delta.size - 1):
        kept = survivors(delta, (keep + 0.5) / delta.size, block=GRAIN, backend=BACKENDS["numba"])
        assert kept[:keep].all() and not kept[keep:].any(), keep


def test_one_element() -> None:
    assert survivors([3.0], 1.0).tolist() == [True]
    assert survivors([3.0], 0.99).tolist() == [False]
    assert survivors([3.0], 0.0).tolist() == [False]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, -2.0]), min_size=1, max_size=40), st.floats(0, 1))
def test_any_coarse_delta_any_density(delta: list[float], density: float) -> None:
    values = np.array(delta)
    wanted = expected(values, int(density * values.size)) & (values != 0)
    assert (survivors(values, density) == wanted).all()


def scoped(groups: Sequence[tuple[str, Tensor, float]], scope: str, **options: Any) -> list[np.ndarray]:
    """Thinned deltas of several tensors (layer, delta, density) measured together."""
    runs = [
        make_run(
            TIES, [delta], tensor(np.zeros(delta.shape), delta.dtype), layer=layer, name=str(number), weight=[1.0],
            density=[density], scope=scope, **options,
        )
        for number, (layer, delta, density) in enumerate(groups)
    ]  # fmt: skip
    return [found.values for found in finish(runs, GRAIN)]


def brute(groups: Sequence[tuple[str, Tensor, float]], scope: str) -> list[np.ndarray]:
    """The same by sorting everything of a group at once."""
    keys = {"tensor": lambda i, layer: i, "layer": lambda i, layer: layer, "model": lambda i, layer: 0}[scope]
    found = [np.zeros(delta.shape) for _, delta, _ in groups]
    for key in {keys(i, layer) for i, (layer, _, _) in enumerate(groups)}:
        members = [i for i, (layer, _, _) in enumerate(groups) if keys(i, layer) == key]
        flat = np.concatenate([groups[i][1].values.reshape(-1) for i in members])
        shares: dict[float, int] = {}
        for i in members:
            shares[groups[i][2]] = shares.get(groups[i][2], 0) + groups[i][1].values.size
        kept = expected(flat, int(sum(share * number for share, number in shares.items())))
        at = 0
        for i in members:
            size = groups[i][1].values.size
            found[i] = (np.where(kept, flat, 0.0)[at : at + size]).reshape(groups[i][1].shape)
            at += size
    return found


def tensors(coarse: bool) -> list[tuple[str, Tensor, float]]:
    """Tensors of three layers with different spreads, an empty one and a scalar among them."""
    random = np.random.default_rng(2)
    shapes = [("a", (300, 301)), ("a", (77,)), ("b", (0, 5)), ("b", (64, 3)), ("b", ()), ("c", (70000,))]

    def draw(number: int, shape: tuple[int, ...]) -> np.ndarray:
        return random.choice([1.0, -1.0, 2.0], shape) if coarse else random.normal(0, 1 + number, shape)

    return [(layer, tensor(draw(i, shape)), 0.29) for i, (layer, shape) in enumerate(shapes)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coarse", [False, True], ids=["fine", "coarse"])
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_scope_equals_sorting_everything(scope: str, coarse: bool, backend: str) -> None:
    groups = tensors(coarse)
    for found, wanted in zip(
        scoped(groups, scope, backend=BACKENDS[backend]), brute(groups, scope), strict=True
    ):
        assert (found == wanted).all()


def test_density_may_differ_from_tensor_to_tensor_of_a_model() -> None:
    groups = [(layer, delta, 0.1 + 0.2 * (i % 3)) for i, (layer, delta, _) in enumerate(tensors(False))]
    for found, wanted in zip(scoped(groups, "model"), brute(groups, "model"), strict=True):
        assert (found == wanted).all()


def test_a_model_that_is_not_thinned_in_one_tensor_does_not_lend_its_threshold_to_another() -> None:
    """Model 0 keeps everything of the first tensor; the threshold of model 1 is still found over both."""
    random = np.random.default_rng(3)
    small, large = (tensor(random.normal(0, size, 500)) for size in (0.01, 1.0))
    zero = tensor(np.zeros(500))

    def run(name: str, density: list[float], models: list[Tensor]) -> Any:
        return make_run(
            TIES, models, zero, name=name, weight=[1.0, 1.0], density=density, scope="model", normalize=False
        )

    runs = [run("x", [1.0, 0.5], [zero, large]), run("y", [0.5, 0.5], [zero, small])]
    first, second = finish(runs)
    wanted = expected(np.concatenate([large.values, small.values]), 500)
    assert ((first.values != 0) == wanted[:500]).all()
    assert ((second.values != 0) == wanted[500:]).all()


def test_election_of_an_exact_draw_is_positive() -> None:
    """Opposite deltas of equal weight cancel: zero counts as positive, and the positive one stays."""
    base, up, down = tensor([0.0]), tensor([0.5]), tensor([-0.5])
    assert merge(TIES, [up, down], base, weight=[1.0, 1.0]).values.tolist() == [0.5]
    assert merge(TIES, [down, up], base, weight=[1.0, 1.0]).values.tolist() == [0.5]


def test_zero_deltas_do_not_take_part_in_normalisation() -> None:
    base, moved = tensor([1.0]), tensor([2.0])
    assert merge(TIES, [moved, base], base, weight=[1.0, 3.0]).values.tolist() == [2.0]


@pytest.mark.parametrize("density", [0.1, 0.5, 0.93])
def test_dare_keeps_about_its_density_and_the_size(density: float) -> None:
    delta = tensor(np.random.default_rng(5).normal(0, 1, 200_000), "F32")
    zero = tensor(np.zeros(200_000), "F32")
    found = merge(DARE, [delta], zero, weight=[1.0], density=[density], seed=11).values
    share = (found != 0).mean()
    assert abs(share - density) < 5 * (density * (1 - density) / found.size) ** 0.5
    assert abs(np.abs(found).sum() / np.abs(delta.values).sum() - 1) < 1e-6
    paper = merge(
        DARE, [delta], zero, weight=[1.0], density=[density], seed=11, rescale_norm="inverse_density"
    ).values
    assert np.allclose(paper[paper != 0], delta.values[paper != 0] / density, rtol=1e-6)
    assert ((paper != 0) == (found != 0)).all()


def test_dare_masks_of_models_tensors_and_seeds_are_independent() -> None:
    ones, zero = tensor(np.ones(100_000)), tensor(np.zeros(100_000))

    def mask(seed: int, name: str, weight: list[float]) -> np.ndarray:
        options = {"weight": weight, "density": [0.5, 0.5], "rescale": False, "seed": seed, "name": name}
        return merge(DARE, [ones, ones], zero, **options).values != 0

    masks = [mask(0, "a", [1, 0]), mask(0, "a", [0, 1]), mask(0, "b", [1, 0]), mask(1, "a", [1, 0])]
    assert (mask(0, "a", [1, 0]) == masks[0]).all()
    for i, first in enumerate(masks):
        for second in masks[:i]:
            assert abs((first & second).mean() - 0.25) < 0.01
