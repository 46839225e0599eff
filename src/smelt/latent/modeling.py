"""Base and donors as one ordinary transformers model: forward, generate, live settings."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import PreTrainedModel

from smelt.core.errors import LatentError
from smelt.latent.adapters import find_decoder
from smelt.latent.cache import new_cache, ready
from smelt.latent.checks import check_base, choose_engine
from smelt.latent.config import LatentMergedConfig
from smelt.latent.control import LiveSettings
from smelt.latent.lockstep import Call, Donor, Runtime
from smelt.latent.plan import Beta
from smelt.latent.recipe import Settings, as_sites, as_steers
from smelt.latent.sharing import shared_prefix


class LatentMergedForCausalLM(LiveSettings, PreTrainedModel, GenerationMixin):
    """Two or more models generating as one, by mixing hidden states.

    Build it with :meth:`from_models` or :meth:`from_pretrained`; use it like any causal language model.
    Inference only: donors and base run without gradients.
    """

    config_class = LatentMergedConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = False

    def __init__(
        self,
        config: LatentMergedConfig,
        base: PreTrainedModel,
        donors: Sequence[nn.Module],
        engine: str = "auto",
        depths: Sequence[int | None] | None = None,
        projections: dict[int, dict[int, Any]] | None = None,
    ) -> None:
        super().__init__(config)
        self.base = base
        self.donors = nn.ModuleList(donors)
        self.tensors: dict[str, torch.Tensor] = {}
        self.tokenizer: Any = None
        self._decoder = check_base(find_decoder(base, "base"))
        self._towers = self._build_towers(engine, depths or [None] * len(donors), projections or {})
        self._runtime = Runtime(self._decoder)
        self._runtime.remove_with(self)
        self._settings = Settings()
        self._plans = {}
        config.lay_out(
            [(self._decoder.config, self._decoder.depth, False)]
            + [(t.decoder.config, t.decoder.depth, t.engine == "tower") for t in self._towers]
        )
        self.generation_config = copy.deepcopy(base.generation_config)
        self._accepted = set(inspect.signature(type(base).forward).parameters)
        self.eval()

    def _build_towers(
        self, engine: str, depths: Sequence[int | None], projections: dict[int, dict[int, Any]]
    ) -> list[Donor]:
        towers: list[Donor] = []
        offset = self._decoder.depth
        for index, model in enumerate(self.donors):
            decoder = find_decoder(model, f"donor {index}")
            mine = projections.get(index, {})
            chosen = choose_engine(self._decoder, decoder, engine, index, projected=bool(mine))
            shared = shared_prefix(self._decoder, decoder) if chosen == "lockstep" else -1
            towers.append(Donor(decoder, chosen, shared, depths[index] or decoder.depth, offset, mine))
            offset += decoder.depth
        return towers

    # ------------------------------------------------------------------ building

    @classmethod
    def from_models(
        cls,
        base: Any,
        donors: Any,
        sites: Any = (),
        scope: str = "all",
        engine: str = "auto",
        steer: Any = (),
        **options: Any,
    ) -> LatentMergedForCausalLM:
        """Wrap loaded models, or load them from paths. See :mod:`smelt.latent.building` for the options."""
        from smelt.latent.building import build

        return build(cls, base, donors, Settings(as_sites(sites), scope, as_steers(steer)), engine, **options)

    @classmethod
    def from_recipe(cls, recipe: Any, **options: Any) -> LatentMergedForCausalLM:
        """Load from a recipe: a dict, a YAML or JSON file, or a saved directory."""
        from smelt.latent.building import build_from_recipe

        return build_from_recipe(cls, recipe, **options)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load a saved latent merge; called by the Auto classes."""
        from smelt.latent.saving import load_directory

        return load_directory(cls, name, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write a directory that the Auto classes open again; ``embed_weights=True`` makes it
        self-contained."""
        from smelt.latent.saving import save

        save(self, Path(save_directory), *args, **kwargs)

    # ------------------------------------------------------------------ running

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mix_start: int | torch.Tensor | None = None,
        beta: Beta = None,
        padding_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base's forward with the donors mixed in.

        ``mix_start`` is the column of the first mixed token (prompt length - 1), an int or one per row;
        needed for scope "generated" and for schedules outside ``generate()``. ``beta`` overrides all
        weights of this call: a number, one per donor, or a tensor (rows,) or (rows, donors).
        """
        if input_ids is None or inputs_embeds is not None:
            raise LatentError(
                "inputs_embeds cannot be used: every donor embeds the tokens itself", fix="pass input_ids"
            )
        local = self._runtime.local
        beta = local.beta if beta is None else beta
        plan = self._plan(self.settings, beta)
        if mix_start is None:
            mix_start = local.mix_start
        if plan.needs_origin and mix_start is None:
            raise LatentError(
                "this needs to know where the prompt ends",
                where="scope 'generated' or a schedule",
                fix="pass mix_start=prompt_length - 1 to forward(), or use scope='all' without schedules",
            )
        use_cache = bool(getattr(self.base.config, "use_cache", True)) if use_cache is None else use_cache
        flat = past_key_values
        if flat is None and use_cache:
            flat = new_cache(self.config)
        if flat is not None:
            flat = ready(flat, len(self.config.layer_types))
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": use_cache,
            "mix_start": mix_start,
            "beta": beta,
            "extra": {},
            "padding_mask": self._plain_mask(attention_mask, padding_mask),
        }
        call = Call(plan, self._towers, inputs, flat, self.depth)
        call.tape, call.grams = local.tape, self.tensors
        return self._run(call, labels, logits_to_keep, kwargs)

    def _plain_mask(self, attention_mask: Any, padding_mask: Any) -> Any:
        """The 2-D padding mask: towers make their own masks from it, steering finds first tokens."""
        if padding_mask is not None or attention_mask is None:
            return padding_mask
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            return attention_mask
        made_by_generate = self._runtime.local.mix_start is not None  # 4-D for static caches, nothing padded
        if not made_by_generate and any(tower.engine == "tower" for tower in self._towers):
            raise LatentError(
                "a ready-made attention mask cannot be used with tower donors",
                expected="a 2-D attention_mask, or padding_mask= beside it",
            )
        return None

    def _run(self, call: Call, labels: Any, keep: Any, kwargs: dict[str, Any]) -> Any:
        named = {
            key: call.inputs[key] for key in ("input_ids", "attention_mask", "position_ids", "use_cache")
        }
        named = {
            key: value
            for key, value in named.items()
            if value is not None and key in self._accepted | {"input_ids"}
        }
        if "logits_to_keep" in self._accepted and labels is None:
            named["logits_to_keep"] = keep
        if kwargs.get("output_hidden_states"):
            call.mixed = {}
        before = self._runtime.local.call
        self._runtime.local.call = None if call.plan.idle else call
        try:
            output = self.base(past_key_values=call.base_view, labels=labels, **named, **kwargs)
        finally:
            self._runtime.local.call = before
        return self._finish(call, output, keep, labels)

    def _finish(self, call: Call, output: Any, keep: Any, labels: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(
                call.flat if item is call.base_view and item is not None else item for item in output
            )
        if call.flat is not None:
            output.past_key_values = call.flat
        if "logits_to_keep" not in self._accepted and labels is None and isinstance(keep, int) and keep:
            output.logits = output.logits[:, -keep:]
        states = getattr(output, "hidden_states", None)
        if call.mixed and states is not None:
            replaced = [
                call.mixed.get(layer, state) if layer < self.depth else state
                for layer, state in enumerate(states)
            ]
            output.hidden_states = tuple(replaced)
        return output

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The base's own, plus the plain padding mask that donors and steering need."""
        mask = kwargs.get("attention_mask")
        inputs = self.base.prepare_inputs_for_generation(*args, **kwargs)
        if mask is not None and mask.ndim == 2:
            inputs["padding_mask"] = mask
        return inputs

    def generate(
        self,
        inputs: Any = None,
        *args: Any,
        sites: Any = None,
        scope: str | None = None,
        steer: Any = None,
        beta: Beta = None,
        mix_start: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As every transformers model; ``sites``, ``scope``, ``steer`` and ``beta`` hold for this call
        only."""
        if kwargs.get("inputs_embeds") is not None:
            raise LatentError(
                "inputs_embeds cannot be used: every donor embeds the tokens itself", fix="pass input_ids"
            )
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        local = self._runtime.local
        before = local.mix_start
        with self.using(sites, scope=scope, steer=steer, beta=beta):
            local.mix_start = prompt_end(ids, kwargs) if mix_start is None else mix_start
            try:
                return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
            finally:
                local.mix_start = before

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching brings its own paged cache, which has no room for donors."""
        raise LatentError(
            "continuous batching does not support latent merges", fix="use generate() with a padded batch"
        )

    # ------------------------------------------------------------------ being a model

    def train(self, mode: bool = True) -> LatentMergedForCausalLM:
        """Only ``train(False)``: a latent merge has no weights of its own to train."""
        if mode:
            raise LatentError("a latent merge cannot be trained", fix="train base or donor by themselves")
        return super().train(False)

    def get_input_embeddings(self) -> nn.Module:
        """The base's."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The base's."""
        return self.base.get_output_embeddings()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: base and donors must keep the same token ids."""
        raise LatentError(
            "token embeddings of a latent merge cannot be resized", fix="resize base and donors before"
        )

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """The base's."""
        self.base.tie_weights()

    def close(self) -> None:
        """Take the (inert) hooks off the base; the wrapper is unusable afterwards."""
        self._runtime.close()


def prompt_end(ids: torch.Tensor | None, kwargs: dict[str, Any]) -> int:
    """Absolute column of the last prompt token."""
    tokens = 1 if ids is None else int(ids.shape[-1])
    cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
    if mask is not None:
        tokens = max(tokens, int(mask.shape[-1]))
    elif cache is not None:
        seen = int(cache.get_seq_length())
        tokens = tokens if tokens > seen else seen + tokens
    return tokens - 1
