"""Finds embeddings, decoder layers and head of a causal language model by structure, and says why not when
it cannot."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from smelt.core.errors import LatentError

STATEFUL_LAYERS = ("linear", "mamba", "conv", "recurrent", "rwkv", "ssm", "hybrid", "compressed")


@dataclass(frozen=True, eq=False)
class Decoder:
    """One tower: the module that owns the layers, the layers, and the token embedding."""

    model: Any
    shell: Any
    layers_name: str
    embed: Any
    config: Any
    entry: tuple[Any, str]

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return getattr(self.shell, self.layers_name)

    @property
    def depth(self) -> int:
        """How many layers this tower holds (a truncated donor holds fewer than its checkpoint)."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Size of the hidden state between layers."""
        return int(getattr(self.config, "hidden_size", None) or self.embed.weight.shape[-1])

    @property
    def name(self) -> str:
        """For messages."""
        return getattr(self.config, "_name_or_path", "") or type(self.model).__name__


def find_decoder(model: Any, role: str) -> Decoder:
    """The tower inside a model, or a LatentError with the reason.

    ``role`` ("base", "donor 0") is only for the message.
    """
    config = model.config.get_text_config(decoder=True) if hasattr(model, "config") else None
    if config is None:
        raise LatentError(
            f"{type(model).__name__} has no config", where=role, expected="a transformers model"
        )
    refuse_unsuitable(model, config, role)
    path = _layer_list(model, config, role)
    parent, _, name = path.rpartition(".")
    embed = model.get_input_embeddings()
    if embed is None:
        raise LatentError(f"{type(model).__name__} has no token embedding", where=role)
    return Decoder(model, model.get_submodule(parent), name, embed, config, _entry(model, parent, role))


def _entry(model: Any, parent: str, role: str) -> tuple[Any, str]:
    """The innermost module around the layers that takes token ids, and the path from it to their owner."""
    path = parent
    while True:
        module = model.get_submodule(path)
        if "input_ids" in inspect.signature(type(module).forward).parameters:
            return module, parent[len(path) :].lstrip(".")
        if not path:
            break
        path = path.rpartition(".")[0]
    raise LatentError(f"no part of {type(model).__name__} takes token ids", where=role)


def refuse_unsuitable(model: nn.Module, config: Any, role: str) -> None:
    """Raise for families whose layers are not a chain of states with an attention cache."""
    reason = unsuitable(config)
    if reason:
        raise LatentError(
            f"{type(model).__name__} {reason}",
            where=role,
            expected="a decoder whose layers pass one hidden state and keep an attention cache",
            fix="an ensemble (smelt.latent.EnsembleForCausalLM) works on any causal model",
        )


def unsuitable(config: Any) -> str:
    """Why a config cannot be merged in latent space, or an empty string."""
    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder-decoder"
    if getattr(config, "hidden_size_per_layer_input", 0):
        return "feeds every layer its own input (per-layer embeddings)"
    if getattr(config, "num_kv_shared_layers", 0):
        return "shares keys and values between layers"
    types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    for kind in types:
        if isinstance(kind, str) and any(word in kind for word in STATEFUL_LAYERS):
            return f"has {kind} layers, whose cache is a running state and cannot be rolled back"
    if any(hasattr(config, key) for key in ("state_size", "ssm_cfg", "mamba_d_state", "mamba_d_conv")):
        return "has state-space layers, whose cache is a running state and cannot be rolled back"
    return ""


def _layer_list(model: nn.Module, config: Any, role: str) -> str:
    """Where the outermost module list is that is as long as the config says."""
    depth = int(getattr(config, "num_hidden_layers", 0) or 0)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and depth > 0
    ]
    outer = [
        (path, module)
        for path, module in found
        if not any(path.startswith(other + ".") for other, _ in found)
    ]
    if len(outer) != 1:
        lists = ", ".join(path for path, _ in outer) or "none"
        raise LatentError(
            f"cannot tell which modules are the decoder layers of {type(model).__name__}",
            where=role,
            expected=f"one list of {depth} layers, found: {lists}",
        )
    return outer[0][0]


def state_of(output: Any) -> torch.Tensor:
    """The hidden state in a layer's return value."""
    return output[0] if isinstance(output, tuple | list) else output


def with_state(output: Any, state: torch.Tensor) -> Any:
    """A layer's return value with another hidden state."""
    return (state, *output[1:]) if isinstance(output, tuple | list) else state


def split_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> torch.Tensor:
    """The hidden state in a layer's call."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0]
    state = kwargs.get("hidden_states")
    if not isinstance(state, torch.Tensor):
        raise LatentError("a decoder layer was called without a hidden state", where=where)
    return state


def replace_state(
    args: tuple[Any, ...], kwargs: dict[str, Any], state: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's call with another hidden state."""
    if args and isinstance(args[0], torch.Tensor):
        return (state, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": state}


def swap(value: Any, old: Cache | None, new: Cache | None) -> Any:
    """``new`` where a call passes the cache ``old``, anything else untouched.

    Without a cache of ours, one that the base made for itself (some families do even with
    ``use_cache=False``) must not be shared with a donor.
    """
    if old is None:
        return None if isinstance(value, Cache) else value
    return new if value is old else value
