"""Questions asked before any work: do base, donor and engine fit together, and does lockstep really hold
here?"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch

from smelt.core.errors import LatentError
from smelt.latent.adapters import Decoder, find_decoder, replace_state, state_of, swap
from smelt.latent.cache import new_cache, tower_view

ROPE_KEYS = (
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "rotary_dim",
    "rotary_pct",
)
HEAD_KEYS = ("num_attention_heads", "num_key_value_heads", "head_dim", "n_head", "num_heads", "kv_lora_rank")
MASK_KEYS = ("sliding_window", "attention_chunk_size", "use_sliding_window", "is_causal", "alibi")
_PROVEN: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def check_base(base: Decoder) -> Decoder:
    """The base must have a head, weights, and layers that pass the lockstep probe."""
    if base.model.get_output_embeddings() is None:
        raise LatentError(
            f"{type(base.model).__name__} has no language model head",
            where="base",
            expected="a causal language model",
            fix="AutoModelForCausalLM.from_pretrained(...)",
        )
    if base.model not in _PROVEN:
        base.model.eval()
        probe_lockstep(base)
        _PROVEN[base.model] = True
    return base


def difference(base: Decoder, donor: Decoder) -> str:
    """Why the donor's layers cannot run inside the base's forward, or an empty string."""
    if type(base.layers[0]) is not type(donor.layers[0]):
        return f"layer classes differ: {type(base.layers[0]).__name__} and {type(donor.layers[0]).__name__}"
    for key in (*ROPE_KEYS, *HEAD_KEYS, *MASK_KEYS):
        mine, theirs = getattr(base.config, key, None), getattr(donor.config, key, None)
        if mine != theirs:
            return f"{key} differs: {mine} and {theirs}"
    kinds, others = _kinds(base), _kinds(donor)
    if others[: donor.depth] != kinds[: donor.depth]:
        return "the order of attention layer types differs"
    if donor.depth > base.depth:
        return f"the donor holds more layers: {donor.depth} and {base.depth}"
    return ""


def _kinds(decoder: Decoder) -> list[Any]:
    return list(getattr(decoder.config, "layer_types", None) or ["full_attention"] * decoder.depth)


def choose_engine(base: Decoder, donor: Decoder, engine: str, index: int, projected: bool) -> str:
    """``lockstep`` or ``tower`` for one donor, or a LatentError that says what does not fit."""
    where = f"donor {index} ({donor.name})"
    _check_numbers(base, donor, where)
    if donor.width != base.width and not projected:
        raise LatentError(
            f"hidden size {donor.width}",
            where=where,
            expected=f"the base's {base.width}",
            fix="fit a projection: LatentMergedForCausalLM.from_models(..., calibration=token_batches)",
        )
    reason = "hidden sizes differ" if donor.width != base.width else difference(base, donor)
    if engine == "lockstep" and reason:
        raise LatentError(
            reason, where=where, expected="equal layers for the lockstep engine", fix="engine='tower'"
        )
    return "tower" if reason or engine == "tower" else "lockstep"


def _check_numbers(base: Decoder, donor: Decoder, where: str) -> None:
    mine, theirs = base.embed.weight.dtype, donor.embed.weight.dtype
    if mine != theirs:
        raise LatentError(
            f"dtype {theirs}",
            where=where,
            expected=f"the base's {mine}",
            fix=f"load the donor with dtype={mine}",
        )
    left, right = (getattr(d.config, "_attn_implementation", None) for d in (base, donor))
    if left != right:
        raise LatentError(
            f"attention implementation {right}",
            where=where,
            expected=f"the base's {left}",
            fix=f"load the donor with attn_implementation={left!r}",
        )


@torch.no_grad()
def probe_lockstep(base: Decoder) -> None:
    """Run the base as its own donor, in two cached steps, and compare: equal states prove that nothing but
    the layer call (hidden per-layer inputs, shared caches) feeds a layer."""
    if any(parameter.device.type == "meta" for parameter in base.shell.parameters()):
        return
    config = base.config
    ids = torch.arange(5, device=base.embed.weight.device)[None] % base.embed.weight.shape[0]
    flat = new_cache(config)
    flat.layers.extend(new_cache(config).layers)
    view, other = tower_view(flat, 0, base.depth), tower_view(flat, base.depth, base.depth)
    state: dict[str, Any] = {"busy": False, "h": None, "worst": 0.0, "thread": threading.get_ident()}
    handles = [
        layer.register_forward_pre_hook(_shadow(layer, state, view, other), with_kwargs=True)
        for layer in base.layers
    ]
    try:
        parts = []
        for part in (ids[:, :3], ids[:, 3:]):
            state["h"] = None
            parts.append(base.model(input_ids=part, past_key_values=view, use_cache=True).logits)
        state["busy"] = True
        whole = base.model(input_ids=ids, use_cache=False).logits
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise LatentError(
            f"{type(base.model).__name__} cannot run in lockstep: {error}", where="base"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if int(view.get_seq_length()) != ids.shape[1]:
        raise LatentError(
            f"{type(base.model).__name__} does not keep keys and values in the cache it is given",
            where="base",
            expected="a decoder with a transformers Cache",
        )
    gap = (torch.cat(parts, 1) - whole).float().abs().max()
    if not gap <= 0.1 * whole.float().std() + 1e-3:
        raise LatentError(
            f"{type(base.model).__name__} gives other logits with a cache than without",
            where="base",
            expected="a causal decoder with a working cache",
        )
    if not state["worst"] <= 1e-3:
        raise LatentError(
            f"the layers of {type(base.model).__name__} depend on more than the state before them",
            where="base",
            expected="a chain of decoder layers",
            fix="an ensemble (smelt.latent.EnsembleForCausalLM) works instead",
        )


def _shadow(layer: Any, state: dict[str, Any], view: Any, other: Any) -> Any:
    def hook(module: Any, args: Any, kwargs: Any) -> None:
        if state["busy"] or state["thread"] != threading.get_ident():
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        if state["h"] is None:
            state["h"] = hidden
        gap = (state["h"] - hidden).abs().max() / hidden.abs().max().clamp(min=1e-30)
        state["worst"] = max(state["worst"], float(gap))
        rest = tuple(swap(value, view, other) for value in args)
        named = {key: swap(value, view, other) for key, value in kwargs.items()}
        rest, named = replace_state(rest, named, state["h"])
        state["busy"] = True
        try:
            state["h"] = state_of(layer(*rest, **named))
        finally:
            state["busy"] = False

    return hook


__all__ = ["check_base", "choose_engine", "difference", "find_decoder", "probe_lockstep"]
