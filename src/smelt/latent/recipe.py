"""What a latent merge consists of, as frozen data: model references, sites, steering; dict in, dict out,
hashable."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from smelt.core.errors import LatentError, did_you_mean
from smelt.latent.schedule import Gate, Schedule

OPERATORS = ("lerp", "slerp", "regmean", "task_vector", "proxy")
READINGS = ("shrink", "penalty", "gram")
SCOPES = ("all", "generated")
STEER_SCOPES = ("all", "generated", "first")
ENGINES = ("auto", "lockstep", "tower")
QUANTS = ("int8", "nf4")


def choose(value: Any, known: Sequence[str], what: str, where: str = "") -> str:
    """``value`` if it is known, else an error that names the nearest."""
    if value not in known:
        raise LatentError(f"unknown {what} {value!r}", where=where, fix=did_you_mean(str(value), known))
    return str(value)


@dataclass(frozen=True, slots=True)
class Site:
    """One place where states are mixed: before decoder layer ``layer`` (0 = embeddings, ``"last"`` = after
    the last layer), by ``op``, with one weight per donor.

    ``layer`` may be a fraction of the depth (``"0.75n"``). ``op="regmean"`` reads ``lam`` and ``reading``:
    ``shrink`` (ratio 1/(1+λ)), ``penalty`` (ratio (1-λ)/2) or ``gram`` (RegMean proper; ``alpha`` scales the
    off-diagonal entries; Gram matrices from the prompt, or from ``calibrate_gram``). ``op="proxy"`` wants two
    donors, expert and anti-expert, and one weight.

    >>> Site(layer="0.75n", op="slerp", weights=[0.5]).to_dict()
    {'layer': '0.75n', 'op': 'slerp', 'weights': [0.5]}
    """

    layer: int | str
    op: str = "slerp"
    weights: tuple[float, ...] = (0.5,)
    schedule: Schedule | None = None
    feedback: bool = False
    gate: Gate | None = None
    lam: float = 0.5
    reading: str = "shrink"
    alpha: float = 1.0
    gram: str = "prompt"
    donor_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        where = f"site at layer {self.layer!r}"
        choose(self.op, OPERATORS, "operator", where)
        choose(self.reading, READINGS, "regmean reading", where)
        object.__setattr__(self, "weights", _weights(self.weights, where))
        object.__setattr__(self, "schedule", _nested(self.schedule, Schedule, where))
        object.__setattr__(self, "gate", _nested(self.gate, Gate, where))
        if self.donor_layers is not None:
            object.__setattr__(self, "donor_layers", tuple(int(layer) for layer in self.donor_layers))
        if not math.isfinite(self.lam) or (self.lam < 0 and self.reading != "penalty"):
            raise LatentError(f"lam is {self.lam}", where=where, expected="a number of at least 0")

    def to_dict(self) -> dict[str, Any]:
        """As it is written in a recipe: defaults left out."""
        return _plain(self, always=("layer", "op", "weights"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "site") -> Site:
        """Read from a recipe; unknown keys are refused."""
        return cls(**_known(cls, data, where))


@dataclass(frozen=True, eq=False)
class Steer:
    """A vector added to the base's state before ``layer``: ``h' = h + alpha * delta``.

    ``delta`` is (H,), or (T, H) for the first T tokens with ``scope="first"`` (activation addition). Give the
    tensor, or a safetensors ``file`` and ``key``. ``keep_norm`` restores each state's length.
    """

    layer: int | str
    delta: torch.Tensor | None = None
    alpha: float = 0.1
    scope: str = "all"
    keep_norm: bool = False
    file: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        where = f"steer at layer {self.layer!r}"
        choose(self.scope, STEER_SCOPES, "steering scope", where)
        if self.delta is None and self.file is None:
            raise LatentError("no vector", where=where, fix="give delta=tensor, or file= and key=")
        if self.delta is not None and not torch.isfinite(self.delta).all():
            raise LatentError("the steering vector holds NaN or Inf", where=where)

    def loaded(self, folder: Path | None = None) -> Steer:
        """With the tensor read from its file."""
        if self.delta is not None or self.file is None:
            return self
        from safetensors import safe_open

        path = Path(self.file) if folder is None else folder / self.file
        if not path.is_file():
            raise LatentError(f"no steering file {path}", where=f"steer at layer {self.layer!r}")
        with safe_open(path, framework="pt") as stream:
            names = list(stream.keys())
            key = self.key or (names[0] if len(names) == 1 else str(self.layer))
            if key not in names:
                raise LatentError(f"{path} has no tensor {key!r}", fix=did_you_mean(key, names))
            return replace(self, delta=stream.get_tensor(key), key=key)

    def to_dict(self) -> dict[str, Any]:
        """As it is written in a recipe; the tensor itself lives in ``file``."""
        data = _plain(self, always=("layer", "alpha"))
        data.pop("delta", None)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "steer") -> Steer:
        """Read from a recipe; unknown keys are refused."""
        return cls(**_known(cls, data, where))


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where a model comes from: a directory or hub name, and how to hold it.

    A donor with an ``adapter`` (a PEFT directory or hub name) is the base plus that adapter and needs no
    path.
    """

    path: str = ""
    revision: str | None = None
    dtype: str | None = None
    quant: str | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.quant is not None:
            choose(self.quant, QUANTS, "donor quantisation", self.path)

    def to_dict(self) -> dict[str, Any]:
        """As it is written in a recipe."""
        return _plain(self, always=("path",))

    @classmethod
    def of(cls, value: Any, where: str = "model") -> ModelRef:
        """From a path, a dict or a reference."""
        if isinstance(value, ModelRef):
            return value
        if isinstance(value, str | Path):
            return cls(str(value))
        if isinstance(value, Mapping):
            return cls(**_known(cls, value, where))
        raise LatentError(
            f"{type(value).__name__} names no model", where=where, expected="a path or {path: ...}"
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can change without reloading a weight."""

    sites: tuple[Site, ...] = ()
    scope: str = "all"
    steer: tuple[Steer, ...] = ()

    def __post_init__(self) -> None:
        choose(self.scope, SCOPES, "scope")
        object.__setattr__(self, "sites", as_sites(self.sites))
        object.__setattr__(self, "steer", as_steers(self.steer))


@dataclass(frozen=True, slots=True)
class LatentRecipe:
    """A latent merge on paper: what ``config.json`` of a saved one holds."""

    base: ModelRef
    donors: tuple[ModelRef, ...]
    settings: Settings = field(default_factory=Settings)
    engine: str = "auto"
    tensors: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        data: dict[str, Any] = {
            "base": self.base.to_dict(),
            "donors": [donor.to_dict() for donor in self.donors],
            "scope": self.settings.scope,
            "engine": self.engine,
            "sites": [site.to_dict() for site in self.settings.sites],
        }
        if self.settings.steer:
            data["steer"] = [steer.to_dict() for steer in self.settings.steer]
        if self.tensors:
            data["tensors"] = self.tensors
        return data

    @property
    def digest(self) -> str:
        """Equal recipes have equal digests."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatentRecipe:
        """Read and check a recipe."""
        known = ("base", "donors", "scope", "engine", "sites", "steer", "tensors")
        for key in data:
            if key not in known:
                raise LatentError(
                    f"unknown key {key!r} in a latent recipe", fix=did_you_mean(str(key), known)
                )
        for key in ("base", "donors", "sites"):
            if key not in data and not (key == "sites" and "steer" in data):
                raise LatentError(f"the latent recipe has no {key!r}", expected="base, donors and sites")
        donors = data["donors"] if isinstance(data["donors"], list | tuple) else [data["donors"]]
        settings = Settings(
            as_sites(data.get("sites", ())), data.get("scope", "all"), as_steers(data.get("steer", ()))
        )
        return cls(
            ModelRef.of(data["base"], "base"),
            tuple(ModelRef.of(donor, f"donors[{i}]") for i, donor in enumerate(donors)),
            settings,
            choose(data.get("engine", "auto"), ENGINES, "engine"),
            data.get("tensors"),
        )

    @classmethod
    def read(cls, source: str | Path | Mapping[str, Any]) -> LatentRecipe:
        """From a dict, a YAML or JSON file, or a saved directory."""
        if isinstance(source, Mapping):
            return cls.from_dict(source.get("recipe", source))
        path = Path(source) / "config.json" if Path(source).is_dir() else Path(source)
        if not path.is_file():
            raise LatentError(f"no recipe at {path}", expected="a YAML or JSON file, or a saved latent merge")
        import yaml

        try:
            data = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise LatentError(f"{path} is neither YAML nor JSON: {error}") from error
        if not isinstance(data, Mapping):
            raise LatentError(f"{path} holds no mapping", expected="base:, donors: and sites:")
        return cls.from_dict(data.get("recipe", data))


def as_sites(value: Any) -> tuple[Site, ...]:
    """One site, a dict, or a sequence of either."""
    items = [value] if isinstance(value, Site | Mapping) else list(value or ())
    return tuple(
        site if isinstance(site, Site) else Site.from_dict(site, f"sites[{i}]")
        for i, site in enumerate(items)
    )


def as_steers(value: Any) -> tuple[Steer, ...]:
    """One steering, a dict, or a sequence of either."""
    items = [value] if isinstance(value, Steer | Mapping) else list(value or ())
    return tuple(
        item if isinstance(item, Steer) else Steer.from_dict(item, f"steer[{i}]")
        for i, item in enumerate(items)
    )


def _weights(value: Any, where: str) -> tuple[float, ...]:
    items = [value] if isinstance(value, int | float) else list(value)
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            raise LatentError(f"weight {item!r}", where=where, expected="finite numbers, one for each donor")
    return tuple(float(item) for item in items)


def _nested(value: Any, cls: type, where: str) -> Any:
    return cls(**_known(cls, value, where)) if isinstance(value, Mapping) else value


def _known(cls: type, data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise LatentError(f"{data!r} is no mapping", where=where)
    names = [item.name for item in fields(cls)]
    for key in data:
        if key not in names:
            raise LatentError(f"unknown key {key!r}", where=where, fix=did_you_mean(str(key), names))
    return dict(data)


def _plain(item: Any, always: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for entry in fields(item):
        value = getattr(item, entry.name)
        if isinstance(value, torch.Tensor) or (entry.name not in always and value == entry.default):
            continue
        if isinstance(value, Schedule | Gate):
            value = value.to_dict()
        out[entry.name] = list(value) if isinstance(value, tuple) else value
    return out
