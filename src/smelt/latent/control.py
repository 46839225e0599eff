"""Changing a latent merge while it runs: sites, scope, steering and ratio, for everyone or for one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from smelt.core.errors import LatentError
from smelt.latent.adapters import Decoder
from smelt.latent.lockstep import Donor, Runtime, Tape
from smelt.latent.plan import Beta, Plan, TowerInfo, compile_plan
from smelt.latent.recipe import Settings, as_sites, as_steers

PLAN_MEMORY = 64


class LiveSettings:
    """The part of the wrapper that holds settings; no weight is touched by anything here."""

    base: Any
    donors: Any
    _decoder: Decoder
    _towers: list[Donor]
    _runtime: Runtime
    _settings: Settings
    _plans: dict[Any, Plan]

    @property
    def settings(self) -> Settings:
        """What applies in this thread now."""
        return self._runtime.local.settings or self._settings

    @property
    def depth(self) -> int:
        """Decoder layers of the base: sites go from 0 to here."""
        return self._decoder.depth

    def set_sites(self, sites: Any = None, *, scope: str | None = None, steer: Any = None) -> None:
        """Change sites, scope or steering for all later calls."""
        settings = self._changed(self._settings, sites, scope, steer)
        self._plan(settings, None)
        self._settings = settings

    @contextmanager
    def using(
        self, sites: Any = None, *, scope: str | None = None, steer: Any = None, beta: Beta = None
    ) -> Iterator[Any]:
        """Other settings for this thread only, until the block ends.

        ``beta`` replaces the weights of every site: one number for one donor, one per donor otherwise.
        """
        local = self._runtime.local
        before = (local.settings, local.beta)
        settings = self._changed(self.settings, sites, scope, steer)
        chosen = before[1] if beta is None else beta
        self._plan(settings, chosen)
        local.settings, local.beta = settings, chosen
        try:
            yield self
        finally:
            local.settings, local.beta = before

    @contextmanager
    def recording(self) -> Iterator[Tape]:
        """Collect the states at every site of this thread's next forward: ``{layer: {base, donors,
        mixed}}``."""
        tape: Tape = {}
        before = self._runtime.local.tape
        self._runtime.local.tape = tape
        try:
            yield tape
        finally:
            self._runtime.local.tape = before

    def calibrate_gram(self, calibration: Any) -> None:
        """Store Gram matrices of calibration tokens for sites with ``reading="gram", gram="calibrated"``."""
        from smelt.latent.calibrate import calibrate_gram

        calibrate_gram(self, calibration)

    def fit_projections(self, calibration: Any, sites: Any = None, ridge: float = 1e-3) -> None:
        """Fit (more) projections for donors of another width, for these sites."""
        from smelt.latent.calibrate import fit_projections

        settings = Settings(self.settings.sites if sites is None else as_sites(sites))
        depths = [tower.full_depth for tower in self._towers]
        found = fit_projections(self.base, list(self.donors), settings, calibration, depths, ridge)
        for index, projections in found.items():
            self._towers[index].projections.update(projections)
        self._plans = {}

    def tower(self, index: int) -> Decoder:
        """Donor ``index`` as a decoder; the base is ``-1``."""
        return self._decoder if index < 0 else self._towers[index].decoder

    def _changed(self, old: Settings, sites: Any, scope: str | None, steer: Any) -> Settings:
        new = Settings(
            old.sites if sites is None else as_sites(sites),
            old.scope if scope is None else scope,
            old.steer if steer is None else tuple(item.loaded() for item in as_steers(steer)),
        )
        for item in new.steer:
            if item.delta is not None and item.delta.shape[-1] != self._decoder.width:
                raise LatentError(
                    f"the steering vector has width {item.delta.shape[-1]}",
                    where=f"steer at layer {item.layer!r}",
                    expected=str(self._decoder.width),
                )
        return new

    def _plan(self, settings: Settings, beta: Beta) -> Plan:
        live = isinstance(beta, torch.Tensor)
        key = (settings, "live" if live else (tuple(beta) if isinstance(beta, Sequence) else beta))
        plan = self._plans.get(key)
        if plan is None:
            plan = compile_plan(settings, self.depth, self._tower_info(), beta)
            if len(self._plans) >= PLAN_MEMORY:
                self._plans = {}
            self._plans[key] = plan
        return plan

    def _tower_info(self) -> list[TowerInfo]:
        width = self._decoder.width
        return [
            TowerInfo(
                tower.decoder.depth,
                tower.engine,
                tower.shared,
                tower.full_depth,
                None if tower.decoder.width == width else frozenset(tower.projections),
            )
            for tower in self._towers
        ]
