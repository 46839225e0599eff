"""Smaller donors: int8 weights with one scale per output row, or bitsandbytes nf4 where it is installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from smelt.core.errors import MissingExtraError


class Int8Linear(nn.Module):
    """A linear layer whose weight is int8 times a scale per output row; bias and inputs keep their dtype."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", torch.round(weight.float() / scale).to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))
        self.register_buffer("bias", bias)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y = x @ (scale * weight)ᵀ + bias; the scale is applied to the product, not to the weight."""
        out = nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale[:, 0].to(x.dtype)
        return out if self.bias is None else out + self.bias


def quantize_int8(module: nn.Module) -> int:
    """Replace every linear layer below ``module`` in place; returns the bytes saved.

    >>> layer = nn.Sequential(nn.Linear(64, 64, bias=False))
    >>> quantize_int8(layer) > 0.7 * 64 * 64 * 4
    True
    """
    saved = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | Conv1D):
                weight = child.weight.detach()
                weight = weight.T.contiguous() if isinstance(child, Conv1D) else weight
                small = Int8Linear(weight, None if child.bias is None else child.bias.detach())
                setattr(parent, name, small)
                saved += (
                    weight.numel() * (weight.element_size() - 1)
                    - small.scale.numel() * small.scale.element_size()
                )
    return saved


def nf4_config(dtype: torch.dtype) -> Any:
    """The transformers config for 4-bit NormalFloat weights."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "hf") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
