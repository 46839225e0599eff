"""Parameter notes that several methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from smelt.core.method import Param
from smelt.numerics.expr import Sym

Weight = Annotated[list[float], Param(doc="weight of this model")]
Lambda = Annotated[float, Param(doc="scale of the merged task vector before it is added to the base")]
Normalize = Annotated[bool, Param(doc="divide by the sum of the weights that take part")]
Density = Annotated[
    list[float], Param(doc="share of each task vector's elements that is kept", lo=0, hi=1, default=1.0)
]
Rescale = Annotated[bool, Param(doc="scale what is left of a thinned task vector up again")]
RescaleNorm = Annotated[
    str,
    Param(doc="rescale to the L1 norm before thinning (l1), or by 1/density (inverse_density)",
          choices=("l1", "inverse_density")),
]  # fmt: skip
ScopeParam = Annotated[
    str,
    Param(doc="over what the largest elements are chosen: each tensor, each layer, or the whole model",
          choices=("tensor", "layer", "model")),
]  # fmt: skip
Int8Mask = Annotated[bool, Param(doc="accepted for compatibility", no_effect="masks take no memory here")]


def weighed(values: Sequence[Sym], weight: Sequence[float]) -> list[Sym]:
    """w_i x_i. Weights that are all 1, as they mostly are, cost no multiplications."""
    if all(w == 1.0 for w in weight):
        return list(values)
    return [value * w for value, w in zip(values, weight, strict=True)]
