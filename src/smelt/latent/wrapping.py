"""One wrapper per set of models, made once: comparing tokenizers and shared layers takes time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from smelt.latent.ensemble import EnsembleForCausalLM
from smelt.latent.modeling import LatentMergedForCausalLM

_LOCK = threading.RLock()
_SLOT = "_smelt_wrappers"


class _Holder:
    """Keeps wrappers on a model without becoming part of it: copies and pickles leave them behind."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[list[nn.Module], Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Holder:
        return _Holder()

    def __reduce__(self) -> tuple[type[_Holder], tuple[()]]:
        return _Holder, ()


def _kept(kind: str, models: Sequence[nn.Module], make: Callable[[], Any]) -> Any:
    """The wrapper of these very models. It is kept on the last one, so it lives no longer than they do."""
    with _LOCK:
        holder = models[-1].__dict__.setdefault(_SLOT, _Holder())
        known, wrapper = holder.kept.get(kind, ([], None))
        if len(known) == len(models) and all(a is b for a, b in zip(known, models, strict=True)):
            return wrapper
        wrapper = make()
        holder.kept[kind] = (list(models), wrapper)
        return wrapper


def wrap(base: nn.Module, donors: Sequence[nn.Module] = (), tokenizer: Any = None) -> LatentMergedForCausalLM:
    """A latent merge of these models without sites: pass sites to ``generate`` or ``using``."""

    def make() -> LatentMergedForCausalLM:
        return LatentMergedForCausalLM.from_models(base, list(donors), tokenizer=tokenizer)

    return _kept("merge", [base, *donors], make)


def wrap_ensemble(models: Sequence[nn.Module], tokenizer: Any = None) -> EnsembleForCausalLM:
    """An ensemble of these models: pass the way to combine to ``using``."""
    return _kept(
        "ensemble", models, lambda: EnsembleForCausalLM.from_models(list(models), tokenizer=tokenizer)
    )


def configured(wrapper: Any, generation_config: Any) -> Any:
    """The same wrapper for one caller, with a generation config of its own."""
    view = copy.copy(wrapper)
    view.generation_config = generation_config
    return view


def forget(model: nn.Module) -> None:
    """Drop the wrappers kept on a model."""
    with _LOCK:
        model.__dict__.pop(_SLOT, None)
