"""All methods against independent float64 references: correctly rounded bf16, and within one unit in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import references as ref

from harness import Tensor, merge, tensor
from smelt.methods import REGISTRY
from smelt.numerics.compiled import CompiledBackend
from smelt.numerics.rounding import encode

COMPILED = CompiledBackend()
SHAPE = (1024, 1031)  # two spreads of it are more than two million elements a case
SPREADS = {"near": 3e-4, "far": 1e-2}
THIRDS, TENTHS, PAIR = [1.0, 1.0, 1.0], [0.5, 0.3, 0.2], [0.4, 0.6]
DENSITY = [0.5, 0.3, 0.7]
Formula = Callable[[Any, list[Any]], Any]


class Case:
    """A method with parameters, whether it gets the base, how many models, and what must come out."""

    def __init__(
        self, method: str, formula: Formula, *, base: bool = False, count: int = 3, **params: Any
    ) -> None:
        self.method, self.formula, self.base, self.count, self.params = method, formula, base, count, params

    def __repr__(self) -> str:
        shown = "-".join(f"{key}={value}".replace(" ", "") for key, value in self.params.items())
        return f"{self.method}{'-base' if self.base else ''}-{self.count}-{shown}"


def thin(base: Any, models: list[Any], density: list[float], norm: str | None, random: bool) -> list[Any]:
    """Task vectors thinned by magnitude or at random, and rescaled."""
    found = []
    for position, (x, share) in enumerate(zip(models, density, strict=True)):
        full = x - base
        part = ref.keep_random(full, share, 7, "w", position) if random else ref.keep_largest(full, share)
        found.append(part if norm is None else ref.rescaled(part, full, share, norm))
    return found


def family(
    method: str, *, norm: str | None, normalize: bool, lambda_: float = 1.0, weight: Any = TENTHS
) -> Case:
    """One of the task-arithmetic family."""
    random, elect = method.startswith("dare"), method.endswith("ties")

    def formula(base: Any, models: list[Any]) -> Any:
        deltas = thin(base, models, DENSITY, norm, random)
        return ref.add_deltas(base, deltas, weight, normalize, lambda_, elect)

    return Case(
        method, formula, base=True, weight=weight, density=DENSITY, normalize=normalize, rescale=norm is not None,
        rescale_norm=norm or "l1", **{"lambda": lambda_},
    )  # fmt: skip


CASES = [
    Case("linear", lambda b, x: ref.linear(x, TENTHS), weight=TENTHS),
    Case("linear", lambda b, x: ref.linear(x, THIRDS), weight=THIRDS),
    Case("linear", lambda b, x: ref.linear(x, [1.3, -0.4, 0.7], False), weight=[1.3, -0.4, 0.7], normalize=False),
    Case("passthrough", lambda b, x: ref.passthrough(x[0], 0.7), count=1, scale=[0.7]),
    Case("slerp", lambda b, x: ref.slerp(b, x[0], 0.4), base=True, count=1, t=0.4),
    Case("nuslerp", lambda b, x: ref.nuslerp(x, PAIR), count=2, weight=PAIR),
    Case("nuslerp", lambda b, x: ref.nuslerp(x, PAIR, b), base=True, count=2, weight=PAIR),
    Case("nuslerp", lambda b, x: ref.nuslerp(x, PAIR, None, False), count=2, weight=PAIR, nuslerp_flatten=False),
    Case("nuslerp", lambda b, x: ref.nuslerp(x, PAIR, b, False, True), base=True, count=2, weight=PAIR,
         nuslerp_flatten=False, nuslerp_row_wise=True),
    Case("multislerp", lambda b, x: ref.multislerp(x, TENTHS), weight=TENTHS),
    Case("multislerp", lambda b, x: ref.multislerp(x, TENTHS, b), base=True, weight=TENTHS),
    Case("multislerp", lambda b, x: ref.multislerp(x, [1.0, 2.0, 3.0], None, False), weight=[1.0, 2.0, 3.0],
         normalize_weights=False),
    Case("karcher", lambda b, x: ref.karcher(x)),
    Case("karcher", lambda b, x: ref.karcher(x, [3.0, 1.0, 2.0], 100, 1e-9), weight=[3.0, 1.0, 2.0], max_iter=100, tol=1e-9),
    Case("model_stock", lambda b, x: ref.model_stock(b, x), base=True),
    Case("model_stock", lambda b, x: ref.model_stock(b, x, True), base=True, filter_wise=True),
    Case("model_stock", lambda b, x: ref.model_stock(b, x, True, True), base=True, filter_wise=True, clamp=True),
    Case("task_arithmetic", lambda b, x: ref.add_deltas(b, [m - b for m in x], TENTHS, False, 1.0, False), base=True,
         weight=TENTHS),
    Case("task_arithmetic", lambda b, x: ref.add_deltas(b, [m - b for m in x], THIRDS, True, 0.4, False), base=True,
         weight=THIRDS, normalize=True, **{"lambda": 0.4}),
    family("ties", norm=None, normalize=True),
    family("ties", norm="l1", normalize=False, lambda_=0.7),
    family("ties", norm="inverse_density", normalize=True, weight=[1.0, -0.5, 0.25]),
    family("dare_linear", norm="l1", normalize=False),
    family("dare_linear", norm="inverse_density", normalize=True, lambda_=1.5),
    family("dare_ties", norm="l1", normalize=False),
    family("dare_ties", norm=None, normalize=True, weight=THIRDS),
]  # fmt: skip


@cache
def inputs(spread: str, dtype: str, shape: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """A base and three fine-tunes that share a direction."""
    random = np.random.default_rng(len(spread))
    base, common = random.normal(0, 0.02, shape), random.normal(0, 1, shape)
    size = SPREADS[spread]
    models = [
        base + size * (0.6 * common + 0.8 * random.normal(0, 1, shape)) * (1 + 0.5 * i) for i in range(3)
    ]
    return tensor(base, dtype), [tensor(x, dtype) for x in models]


def both(case: Case, spread: str, dtype: str, shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    """What smelt makes, and the float64 reference."""
    base, models = inputs(spread, dtype, shape)
    models = models[: case.count]
    found = merge(
        REGISTRY[case.method], models, base if case.base else None, seed=7, backend=COMPILED, **case.params
    )
    return found, case.formula(base.values, [x.values for x in models])


def test_every_method_has_a_reference() -> None:
    assert {case.method for case in CASES} == set(REGISTRY)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_bf16_is_the_float64_result_rounded_once(
    case: Case, record_property: Callable[[str, object], None]
) -> None:
    equal = count = 0
    for spread in SPREADS:
        found, exact = both(case, spread, "BF16", SHAPE)
        equal += int((encode(exact.reshape(-1), "BF16") == found.raw).sum())
        count += found.raw.size
    record_property("equal", f"{equal} of {count}")
    assert count > 2_000_000
    assert equal / count >= 0.9998


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_float32_is_within_one_unit(case: Case) -> None:
    for spread in SPREADS:
        found, exact = both(case, spread, "F32", (131, 257))
        assert (np.float32(exact).reshape(-1) == found.raw).mean() > 0.999  # the rest are ties of float32
        assert (np.abs(found.values - exact) <= np.spacing(np.abs(np.float32(exact)))).all()


def test_averages_that_cancel_are_not_left_to_float32() -> None:
    """base + mean(deltas) near zero: a float32 quotient's last bit would be worth many units of the result."""
    random = np.random.default_rng(3)
    base = random.normal(0, 1, 1 << 16)
    models = [base * random.normal(0, 1e-3, base.size) for _ in range(3)]  # each delta is about -base
    models[2] = -(models[0] + models[1]) * (1 + random.normal(0, 1e-2, base.size))
    held = [tensor(model.reshape(256, 256), "BF16") for model in models]
    start = tensor(base.reshape(256, 256), "BF16")
    found = merge(
        REGISTRY["task_arithmetic"], held, start, backend=CompiledBackend(), weight=1.0, normalize=True
    )
    b, (x, y, z) = start.values, [item.values for item in held]
    wanted = encode((b + ((x - b) + (y - b) + (z - b)) / 3).reshape(-1), "BF16")
    assert (found.raw.reshape(-1) == wanted).mean() >= 0.9998
