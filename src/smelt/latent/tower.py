"""Runs a donor's own decoder up to a layer, with its own embeddings, masks, rope and cache, and keeps the
states."""

from __future__ import annotations

import copy
import inspect
import threading
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils.output_capturing import _active_collector

from smelt.latent.adapters import Decoder, split_call, state_of


class _Stop(Exception):
    """The last wanted state is known."""


class _Tap(nn.Module):
    """Stands before a decoder layer: notes the incoming state, stops the run when told, else calls the
    layer."""

    def __init__(self, layer: nn.Module, index: int, box: threading.local) -> None:
        super().__init__()
        object.__setattr__(self, "_inner", layer)
        object.__setattr__(self, "_index", index)
        object.__setattr__(self, "_box", box)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        box = self._box
        if not box.states:
            box.states.append(split_call(args, kwargs, f"layer {self._index}"))
        if self._index == box.stop:
            raise _Stop
        output = self._inner(*args, **kwargs)
        box.states.append(state_of(output))
        if self._index + 1 == box.stop:
            raise _Stop
        return output


@contextmanager
def uncaptured() -> Any:
    """Keeps transformers' output capture of the base from recording donor layers."""
    token = _active_collector.set(None)
    try:
        yield
    finally:
        _active_collector.reset(token)


def _replaced(module: nn.Module, path: list[str], new: nn.Module) -> nn.Module:
    """A shallow copy of ``module`` with the submodule at ``path`` replaced; everything else is shared."""
    twin = copy.copy(module)
    child = new if len(path) == 1 else _replaced(module._modules[path[0]], path[1:], new)  # type: ignore[arg-type]
    twin.__dict__["_modules"] = {**module._modules, path[0]: child}
    return twin


class TowerRunner:
    """A view of a decoder that can be run to any depth; the decoder itself is not touched and carries no
    hook."""

    def __init__(self, decoder: Decoder) -> None:
        self._box = threading.local()
        taps = nn.ModuleList(_Tap(layer, index, self._box) for index, layer in enumerate(decoder.layers))
        entry, path = decoder.entry
        self._shell = _replaced(
            entry, [*path.split("."), decoder.layers_name] if path else [decoder.layers_name], taps
        )
        self._accepted = set(inspect.signature(type(entry).forward).parameters)

    def states(self, stop: int, call: dict[str, Any]) -> list[torch.Tensor]:
        """The inputs of layers 0..``stop`` (the last one is the output of layer ``stop - 1``)."""
        self._box.states, self._box.stop = [], stop
        accepted = self._accepted
        kwargs = {
            key: value
            for key, value in call.items()
            if value is not None and (key in accepted or key == "input_ids")
        }
        try:
            with uncaptured():
                self._shell(**kwargs)
        except _Stop:
            pass
        finally:
            states, self._box.states = self._box.states, []
        return states


class Prelude:
    """The state that enters layer 0 of a donor: a plain embedding where a probe showed that nothing else
    happens."""

    def __init__(self, decoder: Decoder, runner: TowerRunner) -> None:
        self._embed = decoder.embed
        self._runner = runner
        self._plain = self._probe()

    def _probe(self) -> bool:
        weight = self._embed.weight
        if weight.device.type == "meta":
            return False
        ids = torch.arange(2, device=weight.device)[None]
        with torch.no_grad():
            seen = self._runner.states(0, {"input_ids": ids, "use_cache": False})[0]
            return torch.equal(seen, self._embed(ids))

    def __call__(self, call: dict[str, Any]) -> torch.Tensor:
        if self._plain:
            return self._embed(call["input_ids"])
        return self._runner.states(0, call)[0]
