"""One flat key/value cache for all towers: base layers first, then each donor's; every tower sees its own
slice."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from smelt.core.errors import LatentError


def tower_view(flat: Cache, offset: int, depth: int) -> Cache:
    """A cache over ``depth`` layers of ``flat`` from ``offset``: the very same layer objects."""
    return Cache(layers=flat.layers[offset : offset + depth])


def ready(flat: Any, total: int) -> Cache:
    """A cache the towers can share, or a LatentError.

    An empty ``DynamicCache()`` without a config is filled up to ``total`` plain layers.
    """
    if not isinstance(flat, Cache):
        raise LatentError(
            f"past_key_values is {type(flat).__name__}",
            expected="a transformers Cache, or None for a new one",
        )
    if getattr(flat, "offloading", False):
        raise LatentError(
            "offloaded caches are not supported", fix="use cache_implementation='dynamic' or 'static'"
        )
    if flat.layer_class_to_replicate is not None:
        while len(flat.layers) < total:
            flat.layers.append(flat.layer_class_to_replicate())
    if len(flat.layers) != total:
        raise LatentError(
            f"the cache has {len(flat.layers)} layers",
            expected=f"{total} (base and donors)",
            fix="build it with DynamicCache(config=model.config)",
        )
    return flat


def new_cache(config: Any) -> Cache:
    """An empty cache for all towers."""
    return DynamicCache(config=config)


def length(view: Cache, layer: int = 0) -> int | torch.Tensor:
    """Tokens seen so far by one layer: an int, or for static caches a tensor (a copy: theirs counts on in
    place)."""
    seen = view.get_seq_length(layer)
    return seen.clone() if isinstance(seen, torch.Tensor) else seen


def check_in_step(base: Cache, donor: Cache, first: int, which: int) -> None:
    """Donor and base must have seen the same tokens; known on the host for dynamic caches only."""
    seen, known = length(base), length(donor, first)
    if isinstance(seen, int) and isinstance(known, int) and seen != known:
        raise LatentError(
            f"the cache holds {seen} tokens of the base and {known} of donor {which}",
            expected="a cache filled by this model with the same active sites",
            fix="start a new cache after changing sites or setting a ratio to zero",
        )


__all__ = ["check_in_step", "length", "new_cache", "ready", "tower_view"]
