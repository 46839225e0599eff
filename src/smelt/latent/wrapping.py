"""Short-lived wrappers over loaded models: made in milliseconds, gone with their last reference."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from smelt.latent.config import LatentMergedConfig
from smelt.latent.ensemble import EnsembleForCausalLM, LogitMix
from smelt.latent.modeling import LatentMergedForCausalLM

_COMPARED: weakref.WeakKeyDictionary[nn.Module, weakref.WeakKeyDictionary[nn.Module, Any]]
_COMPARED = weakref.WeakKeyDictionary()


def wrap(base: nn.Module, donors: Sequence[nn.Module] = (), tokenizer: Any = None) -> LatentMergedForCausalLM:
    """A latent merge of these models without sites: pass sites to ``generate`` or ``using``.

    The tokenizers are read and compared the first time that a donor meets a base.
    """
    known = [_tokenizer_of(base, donor) for donor in donors]
    if known and all(one is not None for one in known):
        return LatentMergedForCausalLM.from_models(
            base, list(donors), tokenizer=known[0], donor_tokenizers=[known[0]] * len(donors)
        )
    made = LatentMergedForCausalLM.from_models(base, list(donors), tokenizer=tokenizer)
    for donor in donors:
        _COMPARED.setdefault(donor, weakref.WeakKeyDictionary())[base] = made.tokenizer
    return made


def _tokenizer_of(base: nn.Module, donor: nn.Module) -> Any:
    met = _COMPARED.get(donor)
    return None if met is None else met.get(base)


def wrap_ensemble(models: Sequence[Any], mix: LogitMix, tokenizer: Any = None) -> EnsembleForCausalLM:
    """An ensemble of these models; tokenizers are compared the first time."""
    base, *others = models
    if any(_tokenizer_of(base, other) is None for other in others):
        made = EnsembleForCausalLM.from_models(list(models), tokenizer=tokenizer)
        for other in others:
            _COMPARED.setdefault(other, weakref.WeakKeyDictionary())[base] = made.tokenizer
    config: Any = LatentMergedConfig(base_config=base.config, architectures=[EnsembleForCausalLM.__name__])
    config._attn_implementation = base.config._attn_implementation
    config.dtype = base.dtype
    return EnsembleForCausalLM(config, list(models), mix)


def configured(wrapper: Any, generation_config: Any) -> Any:
    """The same wrapper for one caller, with a generation config of its own."""
    view = copy.copy(wrapper)
    view.__dict__["_owner"] = wrapper  # whose end would take the hooks away
    view.generation_config = generation_config
    return view
