"""Exact order statistics: any data, any rank, any cut into blocks, any sample, however misleading."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import finish, make_run, merge, tensor
from smelt.methods import REGISTRY
from smelt.numerics import select
from smelt.numerics.blocks import GRAIN, Block, Grid
from smelt.numerics.compiled import CompiledBackend
from smelt.numerics.expr import Program, Sym
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.select import Selector

PROGRAM = Program.of([abs(Sym.input(0))])
BACKENDS = {"numpy": NumpyBackend(), "numba": CompiledBackend()}


def search(
    values: np.ndarray, keep: int, cuts: list[int], sample: np.ndarray | None = None, backend: str = "numpy"
) -> tuple[float, np.ndarray, int]:
    """The value where the largest end, which elements are kept, and how many passes it took."""
    acc, dtype = values.dtype, {4: "F32", 8: "F64"}[values.itemsize]
    blocks = [
        Block([values[a:b]], (dtype,), b - a, Grid(a))
        for a, b in zip([0, *cuts], [*cuts, values.size], strict=True)
    ]
    unsigned = f"u{values.itemsize}"
    patterns = None if sample is None else np.abs(sample).view(unsigned).astype(np.uint64)
    selector, passes = Selector(values.size, keep, 8 * values.itemsize, patterns), 0
    tool = BACKENDS[backend]
    while not selector.done:
        passes += 1
        assert passes < 30, "the search does not end"
        wanted = selector.next
        if wanted.kind == "bracket":
            bins = ((wanted.high - wanted.low) >> wanted.shift) + 1
            assert bins <= select.BINS
            selector.take_bracket(
                selector.fold(tool.bracket(PROGRAM, block, acc, wanted.low, wanted.high, wanted.shift, bins))
                for block in blocks
            )
        else:
            selector.take_collected(
                tool.collect(PROGRAM, block, acc, wanted.low, wanted.high) for block in blocks
            )
    return selector.value(), _kept(np.abs(values), selector, blocks), passes


def _kept(values: np.ndarray, selector: Selector, blocks: list[Block]) -> np.ndarray:
    if selector.trivial:
        return np.full(values.size, selector.keep > 0)
    value, split = selector.value(), selector.split()
    equal = values == value
    if split is not None:
        number, left = split
        start = blocks[number].grid.start
        before = np.flatnonzero(equal[start:])[left - 1] + start
        equal[before + 1 :] = False
    return (values > value) | equal


def check(values: np.ndarray, keep: int, found: np.ndarray) -> None:
    """Against numpy's partial sort and the index rule."""
    size, wanted = np.abs(values), np.zeros(values.size, bool)
    if 0 < keep < size.size:
        value = np.partition(size, size.size - keep)[size.size - keep]
        wanted |= size > value
        wanted[np.flatnonzero(size == value)[: keep - int(wanted.sum())]] = True
    else:
        wanted[:] = keep > 0
    assert (found == wanted).all()


@pytest.fixture(autouse=True, params=["small groups at once", "always brackets"])
def thresholds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search with its own limits, and with limits so low that every stage runs on little data."""
    if request.param == "always brackets":
        monkeypatch.setattr(select, "SMALL", 0)
        monkeypatch.setattr(select, "COLLECT_AT_MOST", 3)
        monkeypatch.setattr(select, "BINS", 16)


coarse = st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-40, 3e38]), min_size=1, max_size=60)
fine = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), values=st.one_of(coarse, fine), wide=st.booleans())
def test_any_data_rank_blocks_and_sample(data: st.DataObject, values: list[float], wide: bool) -> None:
    array = np.array(values, np.float64 if wide else np.float32)
    keep = data.draw(st.integers(0, array.size))
    cuts = sorted(data.draw(st.lists(st.integers(0, array.size), max_size=4)))
    misleading = np.abs(np.array(data.draw(st.one_of(coarse, fine)), array.dtype))
    sample = data.draw(st.sampled_from([None, np.abs(array), misleading, misleading[:1]]))
    _, found, _ = search(array, keep, cuts, sample)
    check(array, keep, found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_data_with_a_good_sample_takes_one_or_two_passes(dtype: type, backend: str) -> None:
    random = np.random.default_rng(0)
    values = random.normal(0, 1, 300_000).astype(dtype)
    for keep in (1, 2, 3000, 150_000, 299_999):
        value, found, passes = search(values, keep, [100_000], values[::5].copy(), backend)
        check(values, keep, found)
        assert passes <= 3 + (select.BINS < 100) * 12
        assert value == np.sort(np.abs(values))[-keep]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_from_elsewhere_only_costs_time(backend: str) -> None:
    values = np.random.default_rng(1).normal(0, 1, 80_000).astype(np.float32)
    for factor in (1e-30, 1e30, 0.0):
        _, found, _ = search(values, 40_000, [7, 50_000], np.abs(values[:500]) * np.float32(factor), backend)
        check(values, 40_000, found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_one_pattern_beside_the_bracket(backend: str) -> None:
    """The sample ends exactly where the answer begins, on either side; everything in it is a tie."""
    values = np.repeat(np.array([1.0, 2.0, 3.0], np.float32), 30_000)
    for keep in (1, 29_999, 30_000, 30_001, 60_000, 60_001, 89_999):
        for guess in (1.0, 2.0, 3.0):
            _, found, _ = search(values, keep, [45_000], np.full(100, guess, np.float32), backend)
            check(values, keep, found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_numbers_count_as_largest_and_end_nothing(bad: float, backend: str) -> None:
    values = np.random.default_rng(2).normal(0, 1, 70_000).astype(np.float32)
    values[:100] = bad
    _, found, _ = search(values, 100, [30_000], np.abs(values[100:600]), backend)
    assert found[:100].sum() == 100 or bad != bad
    _, found, _ = search(values, 35_000, [30_000], np.abs(values), backend)
    assert bad != bad or found.sum() == 35_000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_merge_over_nonfinite_numbers_ends(bad: float) -> None:
    values = np.random.default_rng(3).normal(0, 1, 70_000)
    values[5:5000] = bad
    for name in ("ties", "karcher", "model_stock", "slerp", "nuslerp", "multislerp", "dare_ties"):
        spec = REGISTRY[name]
        base, model = tensor(np.zeros(70_000)), tensor(values)
        models = [model, base] if spec.max_models is None else [model]
        options = {key: 0.5 for key in ("weight", "density", "t") if spec.param(key)}
        assert merge(spec, models, None if spec.base == "ignored" else base, **options).values.size == 70_000


def test_streams_of_one_tensor_are_found_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three models, three thresholds: each block is loaded once for all of them."""
    random = np.random.default_rng(4)
    base, *models = (tensor(random.normal(0, 1, 3 * GRAIN)) for _ in range(4))
    run = make_run(REGISTRY["ties"], models, base, weight=1.0, density=0.3, backend=BACKENDS["numba"])
    loads: list[int] = []
    plain = run.block
    monkeypatch.setattr(run, "block", lambda *args, **kw: loads.append(1) or plain(*args, **kw))
    finish([run], GRAIN)
    sampled = 3 * GRAIN // 2048 + 3  # places looked at first, at most
    assert len(loads) <= sampled + 3 * (3 + (select.BINS < 100) * 12) + 3
