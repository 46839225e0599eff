"""Short-lived wrappers over loaded models: made in milliseconds, gone with their last reference."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from smelt.latent.ensemble import EnsembleConfig, EnsembleForCausalLM, LogitMix
from smelt.latent.modeling import LatentMergedForCausalLM

_COMPARED: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[nn.Module]] = weakref.WeakKeyDictionary()


def wrap(base: nn.Module, donors: Sequence[nn.Module] = (), tokenizer: Any = None) -> LatentMergedForCausalLM:
    """A latent merge of these models without sites: pass sites to ``generate`` or ``using``.

    The tokenizers are read and compared the first time that a donor meets a base.
    """
    if _known(base, donors):
        skip = object()
        return LatentMergedForCausalLM.from_models(
            base, list(donors), tokenizer=skip, donor_tokenizers=[skip] * len(donors)
        )
    made = LatentMergedForCausalLM.from_models(base, list(donors), tokenizer=tokenizer)
    _remember(base, donors)
    return made


def wrap_ensemble(models: Sequence[Any], mix: LogitMix, tokenizer: Any = None) -> EnsembleForCausalLM:
    """An ensemble of these models; tokenizers are compared the first time."""
    base, *others = models
    if not _known(base, others):
        EnsembleForCausalLM.from_models(list(models), tokenizer=tokenizer)
        _remember(base, others)
    make: Any = EnsembleConfig
    config = make(base_config=base.config, architectures=[EnsembleForCausalLM.__name__])
    config._attn_implementation = base.config._attn_implementation
    config.dtype = base.dtype
    return EnsembleForCausalLM(config, list(models), mix)


def configured(wrapper: Any, generation_config: Any) -> Any:
    """The same wrapper for one caller, with a generation config of its own."""
    view = copy.copy(wrapper)
    view.__dict__["_owner"] = wrapper  # whose end would take the hooks away
    view.generation_config = generation_config
    return view


def _known(base: nn.Module, donors: Sequence[nn.Module]) -> bool:
    return all(base in _COMPARED.get(donor, ()) for donor in donors) and bool(donors)


def _remember(base: nn.Module, donors: Sequence[nn.Module]) -> None:
    for donor in donors:
        _COMPARED.setdefault(donor, weakref.WeakSet()).add(base)
