"""Where a model's decoder layers are, and which of them a caller may name."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import Tensor, nn

from smelt.core.errors import LatentError
from smelt.latent.adapters import find_decoder


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal model (of the base, for a latent merge)."""
    return find_decoder(getattr(model, "base", model), "model").layers


def get_decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a causal model as a list, found by structure, or a LatentError saying why not."""
    return list(decoder_layers(model))


def sanitize_layers(
    model: nn.Module, requested: Iterable[int], *, strict: bool = True, final: bool = False
) -> tuple[list[int], int]:
    """The requested layers, sorted, each once, and how many layers the model has.

    A layer outside 0..n-1 is an error that names it; ``strict=False`` leaves such layers out instead (compare
    the result with the request to see which). ``final`` also allows n, the place before the final norm.
    """
    depth = len(decoder_layers(model))
    last = depth if final else depth - 1
    wanted = sorted({_whole(layer) for layer in requested})
    bad = [layer for layer in wanted if not 0 <= layer <= last]
    if bad and strict:
        named = ", ".join(map(str, bad))
        expected = f"0..{last} of a model with {depth} layers; negative numbers do not count from the end"
        raise LatentError(f"no such layer: {named}", expected=expected, fix="strict=False leaves them out")
    return [layer for layer in wanted if layer not in bad], depth


def _whole(layer: object) -> int:
    try:
        if not isinstance(layer, bool):
            return operator.index(layer)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise LatentError(f"layer {layer!r}", expected="a whole number")


def to_device_dtype(x: Tensor, like: nn.Module) -> Tensor:
    """``x`` on the device and in the dtype of a model's first floating-point parameter."""
    for parameter in like.parameters():
        if parameter.is_floating_point():
            return x.to(device=parameter.device, dtype=parameter.dtype)
    raise LatentError(f"{type(like).__name__} has no floating-point parameter to match")
