"""Task vectors thinned at random and scaled up again; signs elected as in TIES."""

from __future__ import annotations

from collections.abc import Sequence

from smelt.core.method import method
from smelt.methods._deltas import Thinning, add_elected, measure_random
from smelt.methods._params import Density, Int8Mask, Lambda, Normalize, Rescale, RescaleNorm, Weight
from smelt.numerics.expr import Sym


@method(
    base="required",
    summary="Task vectors thinned at random and scaled up again; signs elected as in TIES.",
    measure=measure_random,
    random=True,
    formula="base + lambda * sum(w_i thin(x_i - base))",
    paper="https://arxiv.org/abs/2311.03099",
    group="robust",
    exempt={"order": "each model is thinned by the random stream of its place in the recipe"},
)
def dare_ties(
    base: Sym, models: Sequence[Sym], stats: Thinning, *,
    weight: Weight, density: Density, lambda_: Lambda = 1.0, normalize: Normalize = False,
    rescale: Rescale = True, rescale_norm: RescaleNorm = "l1", int8_mask: Int8Mask = False,
) -> Sym:  # fmt: skip
    deltas = stats.apply([model - base for model in models])
    return add_elected(base, deltas, weight, normalize, lambda_)
