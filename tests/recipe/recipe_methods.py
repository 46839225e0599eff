"""A small set of method declarations for the tests of recipes; only their signatures matter."""

from __future__ import annotations

from typing import Annotated, Any

from smelt.core.method import MethodSpec, Param, method, spec_of

Weight = Annotated[list[float], Param(doc="weight of this model")]
Density = Annotated[list[float], Param(doc="share that is kept", lo=0, hi=1, default=1.0)]
Normalize = Annotated[bool, Param(doc="divide by the sum of weights")]
Int8 = Annotated[bool, Param(doc="accepted for compatibility", no_effect="masks take no memory here")]
Scope = Annotated[str, Param(doc="over what is ranked", choices=("tensor", "layer", "model"))]


@method(base="ignored", summary="Weighted average.")
def linear(models: Any, *, weight: Weight, normalize: Normalize = True) -> None: ...


@method(base="member", summary="Along the sphere.", max_models=2)
def slerp(base: Any, models: Any, *, t: Annotated[float, Param(doc="0 is the base", lo=0, hi=1)]) -> None: ...


@method(base="optional", summary="By weights along the sphere.", max_models=2)
def nuslerp(base: Any, models: Any, *, weight: Weight) -> None: ...


@method(base="required", summary="Largest task vector elements, signs elected.")
def ties(
    base: Any,
    models: Any,
    *,
    weight: Weight,
    density: Density,
    lambda_: Annotated[float, Param(doc="scale")] = 1.0,
    normalize: Normalize = True,
    int8_mask: Int8 = False,
    scope: Scope = "tensor",
) -> None: ...


@method(base="required", summary="Random task vector elements, signs elected.", random=True)
def dare_ties(base: Any, models: Any, *, weight: Weight, density: Density) -> None: ...


@method(base="required", summary="Average pulled to the base.", min_models=2)
def model_stock(
    base: Any, models: Any, *, filter_wise: Annotated[bool, Param(doc="by row")] = False
) -> None: ...


@method(base="ignored", summary="Centre of mass.")
def karcher(
    models: Any,
    *,
    max_iter: Annotated[int, Param(doc="most steps", lo=0)] = 10,
    tol: Annotated[float, Param(doc="step that ends it", lo=0)] = 1e-5,
) -> None: ...


@method(base="ignored", summary="Tensors as they are.", max_models=1)
def passthrough(models: Any, *, scale: Annotated[list[float], Param(doc="factor", default=1.0)]) -> None: ...


@method(base="forbidden", summary="Nothing to set.", min_models=2)
def midpoint(models: Any) -> None: ...


METHODS: dict[str, MethodSpec] = {
    spec.name: spec
    for spec in map(
        spec_of, (linear, slerp, nuslerp, ties, dare_ties, model_stock, karcher, passthrough, midpoint)
    )
}
