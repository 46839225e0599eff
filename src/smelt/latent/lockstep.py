"""The engine: hooks on the base's layers that do nothing unless this thread is inside a forward of their
wrapper."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from smelt.latent.adapters import Decoder, replace_state, split_call, state_of, swap, with_state
from smelt.latent.cache import check_in_step, length, tower_view
from smelt.latent.mixing import Columns, mix_site, steer_site
from smelt.latent.plan import Plan
from smelt.latent.projection import Projection
from smelt.latent.tower import Prelude, TowerRunner, uncaptured

Tape = dict[int, dict[str, Any]]


@dataclass(eq=False)
class Donor:
    """One donor tower and how it is run."""

    decoder: Decoder
    engine: str
    shared: int
    full_depth: int
    offset: int
    projections: dict[int, Projection] = field(default_factory=dict)
    runner: TowerRunner = field(init=False)
    prelude: Prelude = field(init=False)

    def __post_init__(self) -> None:
        self.runner = TowerRunner(self.decoder)
        self.prelude = Prelude(self.decoder, self.runner)


class Call:
    """The state of one forward pass: lives in a thread-local for its duration only."""

    def __init__(
        self, plan: Plan, donors: Sequence[Donor], inputs: dict[str, Any], flat: Cache | None, depth: int
    ) -> None:
        self.plan, self.donors, self.inputs, self.flat = plan, donors, inputs, flat
        self.busy = False
        self.running = [index for index, need in enumerate(plan.need) if need >= 0]
        self.states: list[torch.Tensor | None] = [None] * len(donors)
        self.traces: dict[int, list[torch.Tensor]] = {}
        self.tape: Tape | None = None
        self.grams: dict[str, torch.Tensor] = {}
        self.mixed: dict[int, torch.Tensor] | None = None
        self.base_view: Cache | None = None
        self.views: list[Cache | None] = [None] * len(donors)
        if flat is not None:
            self._open_views(flat, depth)
        ids = inputs["input_ids"]
        past = 0 if self.base_view is None else length(self.base_view)
        self.columns = Columns(
            past, ids.shape, ids.device, inputs.get("mix_start"), inputs.get("padding_mask")
        )

    def _open_views(self, flat: Cache, depth: int) -> None:
        self.base_view = tower_view(flat, 0, depth)
        for index in self.running:
            donor = self.donors[index]
            view = tower_view(flat, donor.offset, donor.decoder.depth)
            self.views[index] = view
            first = self.plan.start[index] if donor.engine == "lockstep" else 0
            if first < self.plan.need[index]:
                check_in_step(self.base_view, view, first, index)

    def enter(self, layer: int, state: torch.Tensor) -> torch.Tensor:
        """What happens to the state on its way into ``layer``."""
        self._start_donors(layer, state)
        active = self.plan.sites.get(layer)
        steers = self.plan.steers.get(layer)
        if active is None and steers is None:
            return state
        mixed = state
        if active is not None:
            mixed = mix_site(active, state, self._donor_states(active), self)
        for steer in steers or ():
            mixed = steer_site(steer, mixed, self.columns)
        self._note(layer, state, mixed)
        if active is not None and active.site.feedback:
            self._feed_back(mixed, self.columns.scope(self.plan.scope))
        return mixed

    def _start_donors(self, layer: int, state: torch.Tensor) -> None:
        for index in self.running:
            donor = self.donors[index]
            if donor.engine == "tower":
                if layer == 0:
                    call = self._tower_call(index)
                    self.traces[index] = donor.runner.states(self.plan.need[index], call)
            elif donor.shared >= 0 and layer == self.plan.start[index]:
                self.states[index] = state
            elif donor.shared < 0 and layer == 0:
                self.states[index] = donor.prelude(self._tower_call(index))

    def _tower_call(self, index: int) -> dict[str, Any]:
        inputs, donor = self.inputs, self.donors[index]
        mask = inputs.get("padding_mask") if donor.engine == "tower" else inputs.get("attention_mask")
        return {
            **inputs["extra"],
            "input_ids": inputs["input_ids"],
            "attention_mask": mask,
            "position_ids": inputs.get("position_ids"),
            "past_key_values": self.views[index],
            "use_cache": inputs.get("use_cache"),
        }

    def _donor_states(self, active: Any) -> list[torch.Tensor | None]:
        states: list[torch.Tensor | None] = []
        for index, donor in enumerate(self.donors):
            if donor.engine != "tower":
                states.append(self.states[index])
            elif index not in self.traces:
                states.append(None)
            else:
                state = self.traces[index][active.donor_layers[index]]
                projection = donor.projections.get(active.layer)
                states.append(state if projection is None else projection(state))
        return states

    def run_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Every lockstep donor runs its own layer with what the base's layer was called with."""
        for index in self.running:
            donor = self.donors[index]
            if donor.engine == "tower" or not self.plan.start[index] <= layer < self.plan.need[index]:
                continue
            rest = [swap(value, self.base_view, self.views[index]) for value in args]
            named = {key: swap(value, self.base_view, self.views[index]) for key, value in kwargs.items()}
            state = self.states[index]
            assert state is not None
            rest_args, named = replace_state(tuple(rest), named, state)
            self.busy = True
            try:
                with uncaptured():
                    self.states[index] = state_of(donor.decoder.layers[layer](*rest_args, **named))
            finally:
                self.busy = False

    def _feed_back(self, mixed: torch.Tensor, mask: torch.Tensor | bool) -> None:
        for index in self.running:
            state = self.states[index]
            if state is not None and mask is not False:
                fed = mixed.to(state.dtype)
                self.states[index] = fed if mask is True else torch.where(mask, fed, state)

    def _note(self, layer: int, base: torch.Tensor, mixed: torch.Tensor) -> None:
        if self.mixed is not None:
            self.mixed[layer] = mixed
        if self.tape is not None:
            self.tape[layer] = {"base": base, "donors": list(self.states), "mixed": mixed}


class Local(threading.local):
    """What one thread is doing with one wrapper; set for every thread, which keeps compiled guards simple."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.settings: Any = None
        self.beta: Any = None
        self.mix_start: Any = None
        self.tape: Tape | None = None


class Runtime:
    """Inert hooks on one base, shared by all threads; ``local`` says whether this thread is inside a
    forward."""

    def __init__(self, base: Decoder) -> None:
        self.local = Local()
        self._depth = base.depth
        handles = [
            layer.register_forward_pre_hook(self._entering(index), with_kwargs=True)
            for index, layer in enumerate(base.layers)
        ]
        handles.append(base.layers[-1].register_forward_hook(self._leaving()))
        self._handles = handles

    def close(self) -> None:
        """Take the hooks off the base."""
        for handle in self._handles:
            handle.remove()

    def remove_with(self, owner: object) -> None:
        """Take the hooks off when ``owner`` is collected."""
        weakref.finalize(owner, self.close).atexit = False

    def current(self) -> Call | None:
        """The call this thread is in, unless a donor layer is running."""
        call = self.local.call
        return None if call is None or call.busy else call

    def _entering(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self.current()
            if call is None:
                return None
            state = split_call(args, kwargs, f"base layer {index}")
            mixed = call.enter(index, state)
            call.run_layer(index, args, kwargs)
            return None if mixed is state else replace_state(args, kwargs, mixed)

        return hook

    def _leaving(self) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            call = self.current()
            if call is None:
                return None
            state = state_of(output)
            mixed = call.enter(self._depth, state)
            return None if mixed is state else with_state(output, mixed)

        return hook
