"""Models that answer under one roof: the blend, its base and its donors, over one copy of the weights."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smelt.core.errors import LatentError, did_you_mean
from smelt.latent.answering import stop_tokens
from smelt.latent.generating import Sampling, Task, Voice
from smelt.latent.loading import load_base, load_config, load_donor, load_tokenizer, place
from smelt.latent.plan import site_coefs
from smelt.latent.prompts import encode
from smelt.latent.recipe import OPERATORS, SCOPES, LatentRecipe, ModelRef, Settings, Site
from smelt.latent.recipe_choice import absolute, moved
from smelt.latent.schedule import KINDS
from smelt.latent.sharing import alias

TOKENIZER = "tokenizer_config.json"
UNLIMITED = 10**9  # tokenizers without a limit of their own say something larger


@dataclass(frozen=True, slots=True)
class Blend:
    """How one request wants the blend; None keeps what is served.

    ``layer`` and ``op`` change the only site; ``beta`` (a number, or one per donor) the weights of all sites.
    """

    sites: tuple[Site, ...] | None = None
    scope: str | None = None
    beta: float | tuple[float, ...] | None = None
    layer: int | str | None = None
    op: str | None = None
    enabled: bool = True

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for."""
        return self == Blend()


@dataclass(eq=False)
class Served:
    """What is loaded, and what can answer."""

    wrapper: Any
    recipe: LatentRecipe
    voices: dict[str, Voice]
    missing: dict[str, str] = field(default_factory=dict)  # models that cannot answer, and why
    layers: tuple[int, ...] = ()  # where a site may be
    idle_layers: tuple[int, ...] = ()  # where a site changes nothing: up to there base and donor are equal
    _encoding: threading.Lock = field(default_factory=threading.Lock)

    def voice(self, name: str) -> Voice:
        """The model of this name."""
        if name in self.voices:
            return self.voices[name]
        if name in self.missing:
            raise LatentError(f"the model {name!r} cannot answer: {self.missing[name]}")
        raise LatentError(f"no model {name!r}", fix=did_you_mean(name, list(self.voices)))

    @property
    def blend(self) -> Voice:
        """The blend itself."""
        return next(voice for voice in self.voices.values() if voice.kind == "blend")

    def encode(self, voice: Voice, prompt: Any, **template: Any) -> tuple[int, ...]:
        """Token ids of a text or of chat messages, as this model wants them written."""
        from jinja2.exceptions import TemplateError

        try:
            with self._encoding:  # tokenizers keep settings of their own while they encode
                return tuple(encode(voice.tokenizer, prompt, **template).tolist())
        except TemplateError as error:
            raise LatentError(
                f"the chat template refuses these messages: {error}", where=voice.name
            ) from error

    def task(
        self,
        voice: Voice,
        prompt: Any,
        blend: Blend | None = None,
        *,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
    ) -> Task:
        """One prompt (a text, or chat messages) for ``generating.run`` or ``generating.stream``."""
        ids = self.encode(voice, prompt)
        options = self.options(voice, blend or Blend())
        return Task((ids,), max_tokens, sampling=sampling or Sampling(), options=options)

    def settings_for(self, blend: Blend) -> Settings:
        """Sites and scope that a request ends up with (its ratio apart)."""
        now = self.wrapper.settings
        sites = now.sites if blend.sites is None else blend.sites
        if blend.layer is not None or blend.op is not None:
            sites = (moved(sites, blend.layer, blend.op, len(self.wrapper.donors)),)
        return Settings(sites, now.scope if blend.scope is None else blend.scope, now.steer)

    def options(self, voice: Voice, blend: Blend) -> dict[str, Any]:
        """What ``generate`` is called with; raises now if the settings cannot be run."""
        if voice.kind != "blend":
            return {}
        if not blend.enabled:
            return {"sites": (), "steer": ()}
        settings = self.settings_for(blend)
        options = {"sites": settings.sites, "scope": settings.scope, "beta": blend.beta}
        with self.wrapper.using(**options):
            return options

    def described(self, blend: Blend) -> dict[str, Any]:
        """A request's settings as data, to be sent back with its answer."""
        if not blend.enabled:
            return {"enabled": False}
        settings = self.settings_for(blend)
        data: dict[str, Any] = {"enabled": True, "scope": settings.scope}
        data["sites"] = [site.to_dict() for site in settings.sites]
        if blend.beta is not None:
            data["beta"] = list(blend.beta) if isinstance(blend.beta, tuple) else blend.beta
        return data

    def fingerprint(self, voice: Voice, blend: Blend) -> str:
        """Equal for requests that run the same models with the same settings."""
        return recipe_hash(self.recipe, voice, self.described(blend) if voice.kind == "blend" else None)

    @property
    def ratio(self) -> float:
        """How much of the donors is in the first site."""
        sites = self.wrapper.settings.sites
        if not sites:
            return 0.0
        shares = site_coefs(sites[0], len(self.wrapper.donors))
        return shares[0] if sites[0].op == "proxy" else sum(shares)

    def describe(self) -> dict[str, Any]:
        """What a page or a client needs to know before it asks."""
        donors = [ref.path for ref in self.recipe.donors]
        operators = [op for op in OPERATORS if op != "proxy" or len(donors) == 2]
        return {
            "models": [{"id": voice.name, "kind": voice.kind} for voice in self.voices.values()],
            "missing": self.missing,
            "base": self.recipe.base.path,
            "donors": donors,
            "depth": self.wrapper.depth,
            "layers": list(self.layers),
            "idle_layers": list(self.idle_layers),
            "operators": operators,
            "scopes": list(SCOPES),
            "schedules": list(KINDS),
            "ratio": self.ratio,
            "context": self.blend.context,
            "chat": bool(getattr(self.blend.tokenizer, "chat_template", None)),
            "latent": self.described(Blend()),
        }


def load(
    recipe: LatentRecipe,
    folder: Path | None = None,
    *,
    full_donors: bool = True,
    dtype: Any = None,
    device: Any = None,
    name: str = "blend",
) -> Served:
    """Load everything a recipe names once.

    ``full_donors``: load donors with all layers and their heads, so that they can answer alone and sites can
    go to any layer; otherwise only as deep as the recipe's sites reach.
    """
    check_name(name)
    tokenizer = _tokenizer(recipe, folder)
    base = load_base(recipe.base, dtype=dtype, device=device or best_device(), folder=folder).eval()
    loaded = [_donor(ref, base, folder, full_donors) for ref in recipe.donors]
    wrapper = _wrap(recipe, base, [model for model, _ in loaded], tokenizer, folder, full_donors)
    recipe = absolute(recipe, folder)
    wrapper.config.recipe = recipe.to_dict()
    return _served(wrapper, recipe, [reason for _, reason in loaded], name)


def load_alone(
    recipe: LatentRecipe, folder: Path | None = None, *, kind: str, dtype: Any = None, device: Any = None
) -> Served:
    """Only the base of a recipe, or only its first donor: nothing else takes memory.

    A donor that is an adapter or quantised needs the base, so then everything is loaded.
    """
    ref = recipe.base if kind == "base" else recipe.donors[0]
    if kind != "base" and (ref.adapter or ref.quant):
        return load(recipe, folder, dtype=dtype, device=device)
    tokenizer = _tokenizer(recipe, folder)
    tokenizer = tokenizer if kind == "base" else load_tokenizer(ref, folder) or tokenizer
    options = {"dtype": dtype, "device": device or best_device(), "folder": folder}
    model, info = load_base(ref, output_loading_info=True, **options)
    name = donor_name(0, len(recipe.donors)) if kind != "base" else "base"
    inner = model.config.get_text_config(decoder=True)
    if info["missing_keys"] or getattr(inner, "smelt_full_depth", None):
        raise LatentError(f"{name} is stored without its upper layers or head", where=ref.path)
    stops = frozenset(stop_tokens(model, tokenizer))
    voice = Voice(name, kind, model.eval(), tokenizer, stops, _context(model, tokenizer))
    return Served(None, absolute(recipe, folder), {name: voice})


def donor_name(index: int, count: int) -> str:
    """What clients call a donor."""
    return "donor" if count == 1 else f"donor-{index + 1}"


def _tokenizer(recipe: LatentRecipe, folder: Path | None) -> Any:
    """That of a saved merge, else that of its base."""
    own = load_tokenizer(ModelRef(str(folder))) if folder and (folder / TOKENIZER).is_file() else None
    found = own or load_tokenizer(recipe.base, folder)
    if found is None:
        fix = "save the tokenizer into its directory"
        raise LatentError("no tokenizer beside the base", where=recipe.base.path, fix=fix)
    return found


def _wrap(
    recipe: LatentRecipe,
    base: Any,
    donors: Sequence[Any],
    tokenizer: Any,
    folder: Path | None,
    full: bool,
) -> Any:
    from transformers import GenerationConfig

    from smelt.latent.modeling import LatentMergedForCausalLM
    from smelt.latent.saving import load_tensors, read_projections

    tensors = folder / recipe.tensors if recipe.tensors and folder else None
    wrapper = LatentMergedForCausalLM.from_models(
        base,
        [ref if model is None else model for model, ref in zip(donors, recipe.donors, strict=True)],
        recipe.settings.sites,
        recipe.settings.scope,
        recipe.engine,
        recipe.settings.steer,
        depth=base.config.get_text_config(decoder=True).num_hidden_layers if full else None,
        tokenizer=tokenizer,
        donor_tokenizers=[load_tokenizer(ref, folder) for ref in recipe.donors],
        folder=folder,
        projections=read_projections(tensors) if tensors else None,
    )
    for index, (model, tower) in enumerate(zip(donors, wrapper._towers, strict=True)):
        if model is not None and tower.shared >= 0:
            alias(wrapper.tower(-1), wrapper.tower(index))
    if tensors:
        load_tensors(wrapper, tensors)
    if folder and (folder / "generation_config.json").is_file():
        wrapper.generation_config = GenerationConfig.from_pretrained(folder)
    return wrapper


def best_device() -> str | None:
    """The GPU, if there is one that torch can use."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars and load reports of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_name(name: str) -> None:
    """The blend must not be called as another model is."""
    if not name or name == "base" or name.startswith("donor"):
        raise LatentError(f"the blend cannot be called {name!r}", expected="a name of its own")


def _donor(ref: ModelRef, base: Any, folder: Path | None, full: bool) -> tuple[Any, str]:
    """A donor with its head, or None and the reason why it is loaded without."""
    if not full:
        return None, "it is loaded only as deep as the sites need; start with --full-donor"
    if ref.adapter:
        return load_donor(ref, base, folder=folder), ""
    if ref.quant:
        return None, f"it is quantised ({ref.quant}) and has no head of its own"
    inner = load_config(ref, folder).get_text_config(decoder=True)
    if getattr(inner, "smelt_full_depth", None):
        return None, (
            f"only {inner.num_hidden_layers} of its {inner.smelt_full_depth} layers are stored at {ref.path}"
        )
    model, lost = _whole(ref, base, folder)
    return (None, f"its head is not stored at {ref.path}") if lost else (model, "")


def _whole(ref: ModelRef, base: Any, folder: Path | None) -> tuple[Any, list[str]]:
    """A donor as a causal language model, and the weights its checkpoint does not have."""
    model, info = load_base(
        ref,
        dtype=base.dtype,
        folder=folder,
        attn_implementation=base.config._attn_implementation,
        output_loading_info=True,
    )
    model.config._name_or_path = place(ref, folder)
    return model.to(base.device).eval(), sorted(info["missing_keys"])


def _served(wrapper: Any, recipe: LatentRecipe, reasons: Sequence[str], name: str) -> Served:
    tokenizer = wrapper.tokenizer
    base_stops = frozenset(stop_tokens(wrapper.base, tokenizer))
    blend_stops = frozenset(stop_tokens(wrapper, tokenizer))
    limits = [_context(wrapper.base, tokenizer), *(_context(donor, None) for donor in wrapper.donors)]
    least = min([limit for limit in limits if limit], default=None)
    voices = {
        name: Voice(name, "blend", wrapper, tokenizer, blend_stops, least),
        "base": Voice("base", "base", wrapper.base, tokenizer, base_stops, limits[0]),
    }
    missing = {}
    for index, (donor, reason) in enumerate(zip(wrapper.donors, reasons, strict=True)):
        title = donor_name(index, len(reasons))
        if reason:
            missing[title] = reason
            continue
        own = load_tokenizer(recipe.donors[index]) or tokenizer
        voices[title] = Voice(
            title, "donor", donor, own, frozenset(stop_tokens(donor, own)), limits[index + 1]
        )
    layers, idle = _possible_layers(wrapper)
    return Served(wrapper, recipe, voices, missing, layers, idle)


def _context(model: Any, tokenizer: Any) -> int | None:
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    other = getattr(tokenizer, "model_max_length", None) or UNLIMITED
    found = min(int(limit or UNLIMITED), int(other))
    return found if found < UNLIMITED else None


def _possible_layers(wrapper: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layers where a site can be with the donors as loaded, and those where it would change nothing."""
    weights = (1.0 / len(wrapper.donors),) * len(wrapper.donors)
    possible, idle = [], []
    for layer in range(wrapper.depth + 1):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                with wrapper.using(sites=[Site(layer, "lerp", weights)], scope="all"):
                    possible.append(layer)
            except LatentError:
                continue
        if said:
            idle.append(layer)
    return tuple(possible), tuple(idle)


def recipe_hash(recipe: LatentRecipe, voice: Voice, latent: Mapping[str, Any] | None) -> str:
    """One value for the same model with the same settings."""
    data: dict[str, Any] = {"kind": voice.kind, "base": recipe.base.to_dict()}
    if voice.kind != "base":
        data["donors"] = [donor.to_dict() for donor in recipe.donors]
        data["name"] = voice.name if voice.kind == "donor" else ""
    if latent is not None:
        data |= {"latent": dict(latent), "engine": recipe.engine}
        data["steer"] = [steer.to_dict() for steer in recipe.settings.steer]
    return "smelt-" + hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
