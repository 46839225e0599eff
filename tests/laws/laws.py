"""What every merge method must obey, as functions of its declaration; a method opts out by name, with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import permutations
from typing import Any

import numpy as np

from harness import Tensor, has_base, make_run, merge, model_count, sample_params, tensor, variants
from smelt.core.method import MethodSpec
from smelt.numerics.blocks import GRAIN, Block
from smelt.numerics.compiled import CompiledBackend
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.rounding import STORAGE, encode

COMPILED = CompiledBackend()
NUMPY = NumpyBackend()
#: one tensor that spans several sums and blocks, with rows that never end where a block does
SHAPE = (701, 197)


def sample(spec: MethodSpec, shape: tuple[int, ...] = (37, 19), dtype: str = "BF16", seed: int = 0) -> Any:
    """(base or None, models): weights of a fine-tuned family, with the parameters they need."""
    random = np.random.default_rng(seed)
    centre = random.normal(0, 0.02, shape)
    count = model_count(spec)
    models = [tensor(centre + random.normal(0, 0.004 * (i + 1), shape), dtype) for i in range(count)]
    return (tensor(centre, dtype) if has_base(spec) else None), models, sample_params(spec, count)


def odd_values(dtype: str) -> np.ndarray:
    """Zeros of both signs, the smallest and the largest numbers, and many ordinary ones."""
    small, large = {"BF16": (2.0**-133, 3.0e38), "F16": (2.0**-24, 65504.0), "F32": (2.0**-149, 3.0e38)}[
        dtype
    ]
    edge = [0.0, -0.0, small, -small, 3 * small, -large, large / 8, 1.0, -1.0]
    return np.concatenate([edge, np.random.default_rng(3).normal(0, 0.02, 400)])


def equal_models(spec: MethodSpec) -> None:
    """Merging a model with itself returns it, bit for bit."""
    for dtype in ("BF16", "F16", "F32"):
        for values in (odd_values(dtype)[2:], odd_values(dtype)[:2], odd_values(dtype).reshape(1, -1)):
            one = tensor(values, dtype)
            count = model_count(spec)
            base = one if has_base(spec) else None
            found = merge(spec, [one] * count, base, **sample_params(spec, count))
            different = np.flatnonzero(found.raw != one.raw)
            assert not different.size, (
                dtype,
                one.values.flat[different[:5]],
                found.values.flat[different[:5]],
            )
            if spec.base == "optional":
                found = merge(spec, [one] * count, one, **sample_params(spec, count))
                assert found.bytes == one.bytes, dtype


def inputs_untouched(spec: MethodSpec) -> None:
    """No backend writes to what it reads."""
    for backend in (NUMPY, COMPILED):
        base, models, params = sample(spec)
        run = make_run(spec, models, base, backend=backend, **params)
        held = [feed.source.held for feed in run.feeds]  # type: ignore[attr-defined]
        before = [one.bytes for one in held]
        merge(spec, models, base, backend=backend, **params)
        block = Block([one.raw for one in held], run.dtypes, models[0].raw.size, run.grid(0))
        _measured(run)
        backend.combine(run.program, block, run.acc, np.zeros(block.count, np.uint16), "BF16")
        assert [one.bytes for one in held] == before


def _measured(run: Any) -> None:
    from smelt.engine.crew import Crew
    from smelt.engine.measure import measure_all

    measure_all([run], Crew(4 * GRAIN))


def blocks_equal_whole(spec: MethodSpec) -> None:
    """The same bytes whatever the block; a formula may even be cut at any element."""
    base, models, params = sample(spec, SHAPE)
    for chosen in variants(spec, len(models)):
        whole = merge(spec, models, base, block=1 << 30, **chosen)
        for block in (GRAIN, 2 * GRAIN, 3 * GRAIN):
            assert merge(spec, models, base, block=block, **chosen).bytes == whole.bytes, (block, chosen)
    run = make_run(spec, models, base, backend=COMPILED, **params)
    _measured(run)
    plain = merge(spec, models, base, **params)
    for size in (1, 63, 1000, 65537):
        _cut_anywhere(run, plain, size)


def _cut_anywhere(run: Any, whole: Tensor, size: int) -> None:
    count = min(whole.raw.size, 40 * size)
    out = np.zeros(count, STORAGE[whole.dtype])
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        raws = [feed.source.held.raw[part] for feed in run.feeds]
        block = Block(raws, run.dtypes, part.stop - part.start, run.grid(start))
        run.backend.combine(run.program, block, run.acc, out[part], run.dtype)
    assert out.tobytes() == whole.raw[:count].tobytes(), size


def threads_do_not_matter(spec: MethodSpec) -> None:
    """The same bytes from one, two and eight threads."""
    base, models, _ = sample(spec, SHAPE)
    for chosen in variants(spec, len(models)):
        one = merge(spec, models, base, block=GRAIN, **chosen)
        for threads in (2, 8):
            assert merge(spec, models, base, block=GRAIN, threads=threads, **chosen).bytes == one.bytes, (
                threads
            )


def order_does_not_matter(spec: MethodSpec) -> None:
    """Models permuted together with their parameters give the same tensor.

    Sums run from the first model to the last. With weights that are whole eighths every product and sum of bf16
    numbers is exact, so nothing at all may change but the last bit of a coefficient (an angle, say), which moves
    a result to its neighbour once in a great many. With other weights float64 itself depends on the order
    wherever the exact result is a tie, or an election is.
    """
    base, models, _ = sample(spec, (120, 97))
    if spec.ordered or len(models) < 2:
        return
    for chosen in variants(spec, len(models)):
        exact = {key: _eighths(value) if isinstance(value, list) else value for key, value in chosen.items()}
        first = merge(spec, models, base, **exact)
        for order in permutations(range(len(models))):
            moved = {
                k: [value[i] for i in order] if isinstance(value, list) else value
                for k, value in exact.items()
            }
            found = merge(spec, [models[i] for i in order], base, **moved)
            assert (found.raw == first.raw).mean() > 0.9995, (order, exact)
            assert (np.abs(found.values - first.values) <= np.abs(first.values) * 2.0**-7).all(), (
                order,
                exact,
            )


def _eighths(values: list[Any]) -> list[Any]:
    return [max(round(value * 8), 1) / 8 if isinstance(value, float) else value for value in values]


def finite_everywhere(spec: MethodSpec) -> None:
    """Zero, constant, 1-D, scalar, empty, one-element tensors and a single model give finite numbers."""
    shapes: list[tuple[int, ...]] = [
        (5, 3),
        (7,),
        (),
        (0,),
        (3, 0),
        (0, 3),
        (1,),
        (1, 1),
        (1, 4),
        (4, 1),
        (2, 3, 4),
        (1, 8, 4),
    ]
    count = model_count(spec)
    for chosen in variants(spec, count):
        for shape in shapes:
            for values in _families(shape, count + 1):
                models = [
                    tensor(one, dtype)
                    for one, dtype in zip(values[1:], ("BF16", "F32", "F16") * 2, strict=False)
                ]
                _check_finite(spec, models, tensor(values[0]), shape, chosen)
    for base, models in _single(spec):
        chosen = sample_params(spec, len(models))
        _check_finite(spec, models, base, models[0].shape, chosen)


def _families(shape: tuple[int, ...], count: int) -> Iterable[list[np.ndarray]]:
    random = np.random.default_rng(1)
    ordinary = [np.asarray(random.normal(0, 1, shape)) for _ in range(count)]
    yield ordinary
    yield [np.zeros(shape)] * count
    yield [np.full(shape, 0.5)] * count
    yield [np.zeros(shape), *ordinary[1:]]
    yield [ordinary[0], np.zeros(shape), *ordinary[2:]]
    yield [ordinary[0], *[-ordinary[1] if i % 2 else ordinary[1] for i in range(count - 1)]]


def _single(spec: MethodSpec) -> Iterable[tuple[Tensor, list[Tensor]]]:
    """One model; with a base, the model being different from it or the same."""
    one, other = tensor([[1.0, -2.0], [0.5, 0.0]]), tensor([[1.5, -2.0], [0.0, 3.0]])
    yield other, [one]
    yield one, [one]


def _check_finite(
    spec: MethodSpec, models: list[Tensor], base: Tensor, shape: tuple[int, ...], params: dict[str, Any]
) -> None:
    bases = [base] if has_base(spec) else [None, base] if spec.base == "optional" else [None]
    for chosen in bases:
        found = merge(spec, models, chosen, **params)
        assert found.shape == shape
        assert np.isfinite(found.values).all(), (shape, params, found.values)


def rounded_once(spec: MethodSpec) -> None:
    """bf16 results are the float64 evaluation of the same formula, rounded once, in at least 99.98 % of elements."""
    base, models, _ = sample(spec, SHAPE)
    for chosen in variants(spec, len(models)):
        found = merge(spec, models, base, **chosen)
        exact = merge(spec, models, base, acc=np.float64, out="F64", **chosen)
        share = (encode(exact.values.reshape(-1), "BF16") == found.raw).mean()
        assert share >= 0.9998, (share, chosen)


def seed_matters_when_random(spec: MethodSpec) -> None:
    """The same seed gives the same bytes; another one gives others if and only if the method draws."""
    base, models, _ = sample(spec, (64, 64))
    differs = False
    for chosen in variants(spec, len(models)):
        first, again, other = (merge(spec, models, base, seed=seed, **chosen).bytes for seed in (5, 5, 6))
        assert first == again
        differs |= first != other
    assert differs == spec.random


def backends_agree(spec: MethodSpec) -> None:
    """The compiled loops give the bytes that plain numpy gives, for every parameter and dtype."""
    base, models, params = sample(spec, (67, 1001))
    for chosen in variants(spec, len(models)):
        plain = merge(spec, models, base, backend=NUMPY, **chosen)
        assert merge(spec, models, base, backend=COMPILED, **chosen).bytes == plain.bytes, chosen
    for dtype in ("F16", "F32"):
        base, models, params = sample(spec, (13, 1001), dtype)
        plain = merge(spec, models, base, backend=NUMPY, **params)
        assert merge(spec, models, base, backend=COMPILED, **params).bytes == plain.bytes, dtype


#: laws by the name that a method's ``exempt`` uses
LAWS: dict[str, Callable[[MethodSpec], None]] = {
    "equal models": equal_models,
    "inputs untouched": inputs_untouched,
    "blocks": blocks_equal_whole,
    "threads": threads_do_not_matter,
    "order": order_does_not_matter,
    "finite": finite_everywhere,
    "float64": rounded_once,
    "seed": seed_matters_when_random,
    "backends": backends_agree,
}
#: checked for all methods at once, in fresh interpreters
HASH_SEED = "hash seed"
