"""Finds the layers a donor has in common with the base, bit for bit, and stores shared tensors once."""

from __future__ import annotations

import torch
from torch import nn

from smelt.latent.adapters import Decoder


def same_tensors(left: nn.Module, right: nn.Module) -> bool:
    """Equal names, shapes, dtypes and bits in all parameters and buffers."""
    mine, theirs = left.state_dict(), right.state_dict()
    if mine.keys() != theirs.keys():
        return False
    return all(same_bits(mine[name], theirs[name]) for name in mine)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal shape, dtype and values; a strided sample decides most differences without reading everything."""
    if left is right or (left.data_ptr() == right.data_ptr() and left.shape == right.shape and left.numel()):
        return True
    if left.shape != right.shape or left.dtype != right.dtype or left.device != right.device:
        return False
    if left.device.type == "meta":
        return False
    stride = max(1, left.numel() // 4096)
    a, b = left.reshape(-1), right.reshape(-1)
    return torch.equal(a[::stride], b[::stride]) and torch.equal(a, b)


def prelude_modules(decoder: Decoder) -> nn.ModuleDict:
    """Everything in the shell before the layers that holds weights (token and position embeddings, norms)."""
    found: dict[str, nn.Module] = {}
    for name, module in decoder.shell.named_children():
        if name == decoder.layers_name:
            break
        if not name.startswith("final"):  # OPT lists its last norm first
            found[name] = module
    return nn.ModuleDict(found)


def shared_prefix(base: Decoder, donor: Decoder) -> int:
    """-1 when the embeddings differ, else the number of leading layers that are equal.

    What a layer computes also depends on numbers in its config, so the configs must agree as well.
    """
    if not same_tensors(prelude_modules(base), prelude_modules(donor)) or not _same_numbers(base, donor):
        return -1
    count = 0
    for mine, theirs in zip(base.layers, donor.layers, strict=False):
        if not same_tensors(mine, theirs):
            break
        count += 1
    return count


def _same_numbers(base: Decoder, donor: Decoder) -> bool:
    ignored = ("num_hidden_layers", "layer_types", "dtype", "use_cache", "smelt_full_depth")
    left, right = base.config.to_dict(), donor.config.to_dict()
    keys = {
        key
        for key in (*left, *right)
        if not key.startswith("_") and not key.endswith("_token_id") and key not in ignored
    }
    return all(left.get(key) == right.get(key) for key in keys - {"architectures", "transformers_version"})


def alias(base: Decoder, donor: Decoder) -> int:
    """Let the donor use the base's tensors for every equal prefix tensor; returns the bytes saved."""
    shared = shared_prefix(base, donor)
    if shared < 0:
        return 0
    saved = _alias_module(prelude_modules(base), prelude_modules(donor))
    for index in range(shared):
        saved += _alias_module(base.layers[index], donor.layers[index])
    return saved


def _alias_module(source: nn.Module, target: nn.Module) -> int:
    saved = 0
    for (_, mine), (_, theirs) in zip(source.named_modules(), target.named_modules(), strict=True):
        for name, parameter in mine._parameters.items():
            old = theirs._parameters.get(name)
            if parameter is not None and old is not None and old is not parameter:
                saved += old.numel() * old.element_size() * int(old.data_ptr() != parameter.data_ptr())
                theirs._parameters[name] = parameter
    return saved
