"""What programs with different random masks must have in common: shares kept, signs, sizes, independence."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import parity_models
from bench.parity_cases import Case

Tensors = Mapping[str, NDArray[Any]]
SIGMAS = 5.0
TWO_SIDED = 0.02  # relative: two independent draws of about 2e5 elements


@cache
def _inputs(family: str) -> dict[str, dict[str, NDArray[Any]]]:
    return parity_models.models_of(parity_models.FAMILIES[family])


def deviation(kept: int, count: int, density: float) -> float:
    """Standard deviations between the kept count and a binomial one.

    >>> deviation(50, 100, 0.5)
    0.0
    """
    return abs(kept - count * density) / float(np.sqrt(count * density * (1 - density)))


def one_model(out: Tensors, base: Tensors, model: Tensors, density: float, rescale: bool) -> list[str]:
    """Complaints about a single thinned task vector; none when all is as it must be."""
    complaints = []
    masks = {name: out[name] != base[name] for name in base}
    for name, mask in masks.items():
        if mask.size >= 1000 and (off := deviation(int(mask.sum()), mask.size, density)) > SIGMAS:
            complaints.append(f"{name}: kept {mask.mean():.3f}, {off:.1f} sigma from {density}")
        delta, got = (side[name].astype(np.float64) - base[name] for side in (model, out))
        if (np.sign(got[mask]) != np.sign(delta[mask])).mean() > 1e-4:
            complaints.append(f"{name}: signs turned")
        size = np.abs(got).sum() / np.abs(delta).sum()
        expected, slack = (1.0, 1e-4) if rescale else (density, SIGMAS * np.sqrt(2 / mask.size))
        if abs(size - expected) > slack:
            complaints.append(f"{name}: L1 norm {size:.4f} of the task vector's, expected {expected}")
    return complaints + _dependence(masks, density)


def _dependence(masks: Mapping[str, NDArray[np.bool_]], density: float) -> list[str]:
    """Complaints about masks of equal shape that overlap more or less than independent ones."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, mask in masks.items():
        if mask.size >= 1000:
            by_shape.setdefault(mask.shape, []).append(name)
    complaints = []
    for names in by_shape.values():
        for left, right in pairwise(names):
            both = int((masks[left] & masks[right]).sum())
            if deviation(both, masks[left].size, density**2) > SIGMAS:
                complaints.append(f"{left} and {right}: masks are not independent")
    return complaints


def summary(out: Tensors, base: Tensors) -> tuple[float, float]:
    """Share of elements changed and mean |change| over the whole model."""
    changes = np.concatenate([(out[name].astype(np.float64) - base[name]).ravel() for name in base])
    return float((changes != 0).mean()), float(np.abs(changes).mean())


def judge_random(case: Case, mine: Tensors, theirs: Tensors) -> tuple[bool, str, None]:
    """(agrees, what was found, no largest difference)."""
    inputs = _inputs(case.family)
    entries = case.recipe["models"]
    settings = case.recipe.get("parameters", {})
    (share, size), (peer_share, peer_size) = summary(mine, inputs["base"]), summary(theirs, inputs["base"])
    found = f"changed {share:.2%} and {peer_share:.2%}, mean change {size:.3e} and {peer_size:.3e}"
    complaints = []
    if abs(share / peer_share - 1) > TWO_SIDED or abs(size / peer_size - 1) > TWO_SIDED:
        complaints.append("not alike")
    if len(entries) == 1:
        density = float(entries[0]["parameters"]["density"])
        rescale = bool(settings.get("rescale", True))
        model = inputs[entries[0]["model"][1:]]
        for who, out in (("smelt", mine), ("mergekit", theirs)):
            complaints += [
                f"{who}: {text}" for text in one_model(out, inputs["base"], model, density, rescale)
            ]
    return not complaints, found + "".join(f"; {text}" for text in complaints[:3]), None
