"""Random bits from counters: uniform, independent between keys and indices, the same in every backend."""

from __future__ import annotations

import numpy as np
import pytest

from smelt.numerics.blocks import Block, Grid
from smelt.numerics.compiled import CompiledBackend
from smelt.numerics.counter import model_key, stream_key, uniform_24
from smelt.numerics.expr import Program, narrow, uniform
from smelt.numerics.reference import NumpyBackend

COUNT = 1 << 20
KEYS = [
    stream_key(seed, name, model) for seed in (0, 1) for name in ("a.weight", "b.weight") for model in (0, 1)
]
#: also keys that differ in a single bit, of either half
CLOSE = [0, 1, 2, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]


def draw(key: int, start: int = 0, count: int = COUNT) -> np.ndarray:
    return uniform_24(np.arange(start, start + count, dtype=np.int64), key)


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations the statistic is off its mean."""
    wanted = counts.sum() / counts.size
    statistic = float(((counts - wanted) ** 2 / wanted).sum())
    freedom = counts.size - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("key", [*KEYS, *CLOSE])
def test_uniform_in_all_bits(key: int) -> None:
    values = draw(key)
    assert values.min() >= 0 and values.max() < 1 << 24
    for shift in (0, 8, 16):  # low, middle and high byte
        assert abs(chi_square(np.bincount((values >> shift) & 255, minlength=256))) < 5
    assert abs(values.mean() / 2**23 - 1) < 0.004


@pytest.mark.parametrize("stride", [1, 2, 64, 4096])
def test_neighbours_are_independent(stride: int) -> None:
    """Pairs of an index and one further on fill a 16 x 16 board evenly."""
    values = draw(KEYS[0]) >> 20
    assert abs(chi_square(np.bincount(values[:-stride] * 16 + values[stride:], minlength=256))) < 5


@pytest.mark.parametrize(
    ("first", "second"), [(KEYS[0], key) for key in KEYS[1:]] + [(CLOSE[0], key) for key in CLOSE[1:]]
)
def test_streams_are_independent(first: int, second: int) -> None:
    a, b = draw(first), draw(second)
    assert abs(chi_square(np.bincount((a >> 20) * 16 + (b >> 20), minlength=256))) < 5
    assert (a == b).mean() < 1e-5
    for shift in (1, 7):  # nor is one a shifted copy of the other
        assert abs(np.corrcoef(a[shift:], b[:-shift])[0, 1]) < 0.006


def test_indices_beyond_four_billion_are_not_a_repetition() -> None:
    assert (draw(KEYS[0], 0, 4096) == draw(KEYS[0], 1 << 32, 4096)).mean() < 0.01
    assert (draw(KEYS[0], (1 << 32) - 2048, 4096)[2048:] == draw(KEYS[0], 1 << 32, 2048)).all()


@pytest.mark.parametrize("start", [0, 12345, (1 << 32) - 1500, 1 << 32, (1 << 40) + 3])
@pytest.mark.parametrize("key", [KEYS[3], *CLOSE])
def test_compiled_and_numpy_draw_the_same(key: int, start: int) -> None:
    program = Program.of([narrow(uniform(key))])
    found = []
    for backend in (NumpyBackend(), CompiledBackend()):
        out = np.zeros(1500)
        backend.combine(program, Block([], (), 1500, Grid(start)), np.dtype(np.float64), out, "F64")
        found.append(out)
    assert (found[0] == found[1]).all()
    assert (found[0] * 2**24 == draw(key, start, 1500)).all()
    assert found[0].min() >= 0 and found[0].max() < 1


def test_keys_depend_on_every_part() -> None:
    parts = [(0, "w", 1), (1, "w", 1), (0, "v", 1), (0, "w", 2), (0, "w", 11), (0, "w1", 1)]
    keys = [stream_key(*part) for part in parts]
    assert len(set(keys)) == len(parts)
    assert all(0 <= key < 1 << 64 for key in keys)


def test_keys_and_draws_are_the_same_on_every_machine() -> None:
    """Recorded once: a change here changes every random merge."""
    key = stream_key(0, "model.norm.weight", 0)
    assert key == 0x5FBD9AE75DE9AAC3
    assert draw(key, 0, 4).tolist() == [16176729, 2507800, 12829579, 12298484]


def test_models_of_a_tensor_share_the_first_round_and_nothing_else() -> None:
    keys = [model_key(7, "w", model) for model in range(4)]
    assert len({key & 0xFFFFFFFF for key in keys}) == 1 and len(set(keys)) == 4
    assert model_key(8, "w", 0) & 0xFFFFFFFF != keys[0] & 0xFFFFFFFF != model_key(7, "v", 0) & 0xFFFFFFFF
    program = Program.of([narrow(uniform(keys[0])) + narrow(uniform(keys[1]))])
    assert [instruction for instruction in program.code if instruction[0] == "uniform"] == [
        ("uniform", 0, 0), ("uniform", 1, 0),
    ]  # fmt: skip
    for first in range(4):
        for second in range(first):
            a, b = draw(keys[first]), draw(keys[second])
            assert abs(chi_square(np.bincount((a >> 20) * 16 + (b >> 20), minlength=256))) < 5
            kept = (a < 1 << 23) & (b < 1 << 23)
            assert abs(kept.mean() - 0.25) < 0.002  # masks of two models overlap as chance has it
