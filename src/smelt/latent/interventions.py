"""Makes a base model act blended or steered while mixers are attached to it.

A mixer patches no single layer. While at least one is attached, the base's ``forward`` and ``generate`` lead
to a ``LatentMergedForCausalLM`` over the same weights, which runs donors in step and knows where a prompt
ends.
"""

from __future__ import annotations

import functools
import inspect
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from smelt.core.errors import LatentError
from smelt.latent.cache import new_cache
from smelt.latent.modeling import LatentMergedForCausalLM
from smelt.latent.recipe import Site, Steer
from smelt.latent.wrapping import configured, wrap

_SESSION = "_smelt_session"
_ORIGIN = "_smelt_origin"
_LOCK = threading.RLock()


@dataclass(frozen=True)
class Wish:
    """What one intervention asks for: sites over its own donors, or steering."""

    donors: tuple[nn.Module, ...] = ()
    sites: tuple[Site, ...] = ()
    steer: tuple[Steer, ...] = ()
    scope: str | None = None


class Intervention:
    """Attached on construction; detached by ``remove()``, at the end of a ``with`` block, or when collected.

    Keep a reference to it: one that nobody holds is detached with a warning, as a file would be closed.
    """

    def __init__(self, base: nn.Module) -> None:
        self._base = base
        self._attached: weakref.finalize[Any, Any] | None = None
        self._attach()

    def wish(self) -> Wish:
        """What to do now; read at every call, so attributes may change while it is attached."""
        raise LatentError(f"{type(self).__name__} asks for nothing")

    @property
    def active(self) -> bool:
        """Whether it acts on the base."""
        return self._attached is not None and self._attached.alive

    def _attach(self) -> None:
        session = Session.of(self._base)
        self.wish()
        session.add(self)
        label = f"{type(self).__name__} created at {_caller()}"
        self._attached = weakref.finalize(self, _collected, session, id(self), label)
        self._attached.atexit = False

    def remove(self) -> None:
        """Detach; doing so twice is harmless."""
        if self._attached is not None and self._attached.detach() is not None:
            Session.of(self._base).discard(id(self))

    def __enter__(self) -> Any:
        if not self.active:
            self._attach()
        Session.of(self._base).deliberate.add(id(self))
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def _caller() -> str:
    """Where user code made the intervention."""
    for frame in reversed(traceback.extract_stack()):
        if "/smelt/latent/" not in frame.filename.replace("\\", "/"):
            return f"{frame.filename}:{frame.lineno}"
    return "unknown"


def _collected(session: Session, key: int, label: str) -> None:
    session.discard(key)
    warnings.warn(f"{label} was dropped while attached: detached; keep it, or use `with`", stacklevel=2)


class Session:
    """All interventions on one base, and the detour of its ``forward`` and ``generate`` meanwhile."""

    def __init__(self, base: nn.Module) -> None:
        self._base = weakref.ref(base)
        self._live: dict[int, weakref.ref[Intervention]] = {}
        self.deliberate: set[int] = set()
        self._local = threading.local()
        self._wrapper: LatentMergedForCausalLM | None = None

    @classmethod
    def of(cls, base: nn.Module) -> Session:
        """The session of a base, made on first use."""
        with _LOCK:
            session = base.__dict__.get(_SESSION)
            if session is None:
                session = base.__dict__[_SESSION] = cls(base)
            return session

    @classmethod
    def active(cls, base: nn.Module) -> Session | None:
        """The session of a base if anything is attached."""
        session = base.__dict__.get(_SESSION)
        return session if session is not None and session._live else None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        self._refuse_copy()

    def __reduce__(self) -> Any:
        self._refuse_copy()
        return type(None), ()

    def _refuse_copy(self) -> None:
        if self._live:
            what = ", ".join(self.names())
            raise LatentError(f"the model has {what} attached", fix="remove() it before copying or pickling")

    def names(self) -> list[str]:
        """What is attached, for messages."""
        return [type(item).__name__ for item in self._items()]

    def _items(self) -> list[Intervention]:
        return [item for item in (ref() for ref in list(self._live.values())) if item is not None]

    # ------------------------------------------------------------------ attaching

    def add(self, item: Intervention) -> None:
        """Attach; the first one sets the detour."""
        with _LOCK:
            first = not self._live
            self._live[id(item)] = weakref.ref(item)
            try:
                wrapper = self.wrapper()
                with wrapper.using(**self.settings(wrapper)):
                    pass  # compiles the plan: what does not fit is refused here
            except LatentError:
                self._live.pop(id(item))
                raise
            if first:
                self._divert()

    def discard(self, key: int) -> None:
        """Detach; the last one ends the detour."""
        with _LOCK:
            self.deliberate.discard(key)
            if self._live.pop(key, None) is not None and not self._live:
                self._restore()

    def release_forgotten(self) -> list[str]:
        """Detach everything that was not entered with ``with``; returns what it was."""
        gone = [item for item in self._items() if id(item) not in self.deliberate]
        for item in gone:
            item.remove()
        return [type(item).__name__ for item in gone]

    def release_all(self) -> None:
        """Detach everything."""
        for item in self._items():
            item.remove()

    def _divert(self) -> None:
        base: Any = self._base()
        self._before = {name: base.__dict__.get(name) for name in ("forward", "generate")}
        self._forward, self._generate = base.forward, base.generate
        base.__dict__["forward"] = _Detour(self, self._call, base.forward)
        base.__dict__["generate"] = _Detour(self, self._run_generate, base.generate)

    def _restore(self) -> None:
        base = self._base()
        if base is None:
            return
        for name, value in self._before.items():
            base.__dict__.pop(name, None)
            if value is not None:
                base.__dict__[name] = value
        del self._forward, self._generate
        self._wrapper = None

    # ------------------------------------------------------------------ running

    def wrapper(self) -> LatentMergedForCausalLM:
        """The wrapper over the base and all donors asked for now; a new one when the donors change."""
        base = self._base()
        assert base is not None
        donors = _distinct(wish.donors for wish in self._wishes())
        for donor in donors:
            if donor is not base and Session.active(donor) is not None:
                what = f"the donor has {', '.join(Session.of(donor).names())} attached, which would not act"
                raise LatentError(what, fix="remove() it first")
        with _LOCK, self.inside():
            kept = self._wrapper
            if kept is None or not _same(kept.donors, donors):
                kept = self._wrapper = wrap(base, donors)
            return kept

    def _wishes(self) -> list[Wish]:
        return [item.wish() for item in self._items()]

    def settings(self, wrapper: LatentMergedForCausalLM) -> dict[str, Any]:
        """``sites``, ``scope`` and ``steer`` of all interventions together."""
        wishes = self._wishes()
        scopes = {wish.scope for wish in wishes if wish.scope}
        if len(scopes) > 1:
            raise LatentError("mixers on one base differ in last_token_only", expected="the same for all")
        sites = [_spread(site, wish.donors, list(wrapper.donors)) for wish in wishes for site in wish.sites]
        steer = tuple(steer for wish in wishes for steer in wish.steer)
        return {"sites": tuple(sites), "scope": next(iter(scopes), "all"), "steer": steer}

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block, this thread's calls of the base reach the base itself."""
        before = getattr(self._local, "inside", False)
        self._local.inside = True
        try:
            yield
        finally:
            self._local.inside = before

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if getattr(self._local, "inside", False):
            return self._forward(*args, **kwargs)
        wrapper = self.wrapper()
        settings = self.settings(wrapper)
        call = _named(self._forward, args, kwargs)
        call["past_key_values"] = _room_for_donors(call.get("past_key_values"), wrapper)
        if call.get("mix_start") is None and _needs_origin(settings):
            call["mix_start"] = _origin(call)
        with self.inside(), wrapper.using(**settings):
            output = wrapper.forward(**call)
        for item in output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),):
            if isinstance(item, Cache) and call.get("mix_start") is not None:
                item.__dict__[_ORIGIN] = call["mix_start"]
        return output

    def _run_generate(self, *args: Any, **kwargs: Any) -> Any:
        if getattr(self._local, "inside", False):
            return self._generate(*args, **kwargs)
        base: Any = self._base()
        wrapper = configured(self.wrapper(), base.generation_config)
        if kwargs.get("past_key_values") is not None:
            kwargs["past_key_values"] = _room_for_donors(kwargs["past_key_values"], wrapper)
        with self.inside():
            return wrapper.generate(*args, **kwargs, **self.settings(wrapper))


class _Detour:
    """A bound method that leads elsewhere, with the signature of the one it replaces."""

    def __init__(self, session: Session, target: Callable[..., Any], original: Callable[..., Any]) -> None:
        self._session, self._target = session, target
        functools.update_wrapper(self, original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._target(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        self._session._refuse_copy()

    def __reduce__(self) -> Any:
        self._session._refuse_copy()
        return type(None), ()


def _distinct(groups: Iterable[tuple[nn.Module, ...]]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for group in groups:
        found += [model for model in group if not any(model is known for known in found)]
    return found


def _same(left: Iterable[nn.Module], right: Sequence[nn.Module]) -> bool:
    found = list(left)
    return len(found) == len(right) and all(a is b for a, b in zip(found, right, strict=True))


def _spread(site: Site, own: tuple[nn.Module, ...], donors: list[nn.Module]) -> Site:
    """A site over one intervention's donors as a site over all donors: weight 0 for the others."""
    if len(own) == len(donors):
        return site
    weights = [0.0] * len(donors)
    for model, weight in zip(own, site.weights, strict=True):
        weights[next(index for index, donor in enumerate(donors) if donor is model)] = weight
    return replace(site, weights=tuple(weights))


def _named(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    positional = inspect.signature(function).bind_partial(*args).arguments if args else {}
    return {**positional, **kwargs}


def _needs_origin(settings: dict[str, Any]) -> bool:
    mixes = settings["scope"] == "generated" and bool(settings["sites"])
    return mixes or any(steer.scope == "generated" for steer in settings["steer"])


def _room_for_donors(cache: Any, wrapper: LatentMergedForCausalLM) -> Any:
    """An empty cache made for the base alone gets layers for the donors; a filled one cannot be used."""
    if not isinstance(cache, Cache) or cache.layer_class_to_replicate is not None:
        return cache
    if len(cache.layers) != wrapper.depth or len(wrapper.config.layer_types) == wrapper.depth:
        return cache
    if cache.get_seq_length() > 0:
        what = "the cache was filled while no mixer was attached: the donors have not seen its tokens"
        raise LatentError(what, fix="start from an empty cache")
    if type(cache).__name__ != "DynamicCache":
        what = f"a {type(cache).__name__} made for the base alone has no room for the donors"
        raise LatentError(what, fix="leave past_key_values out; generate(cache_implementation=...) makes one")
    cache.layers.extend(new_cache(wrapper.config).layers[wrapper.depth :])
    return cache


def _origin(call: dict[str, Any]) -> int | Tensor:
    """Column of the first mixed token: known to the cache, or the prompt that starts one."""
    cache = call.get("past_key_values")
    known = cache.__dict__.get(_ORIGIN) if isinstance(cache, Cache) else None
    if known is not None:
        return known
    filled = isinstance(cache, Cache) and int(cache.get_seq_length()) > 0
    if filled or (cache is None and call.get("use_cache") is not True):
        raise LatentError(
            "only the last prompt token and what follows are mixed: where does the prompt end?",
            fix="pass mix_start=prompt_length - 1 to score a text, use_cache=True to start generating from a "
            "prompt, or set last_token_only=False (apply_to_all_tokens=True)",
        )
    return _last_real(call["input_ids"], call.get("attention_mask"))


def _last_real(ids: Tensor, mask: Tensor | None) -> int | Tensor:
    if mask is None or mask.ndim != 2 or bool(mask[:, -1].all()):
        return ids.shape[1] - 1
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (mask.long() * columns).amax(dim=-1)
