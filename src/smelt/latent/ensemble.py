"""Whole models mixed at their logits: the baseline a latent merge has to beat, with the same flat cache and
recipe."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import PreTrainedModel

from smelt.core.errors import LatentError
from smelt.latent.cache import new_cache, ready, tower_view
from smelt.latent.config import LatentMergedConfig, config_for
from smelt.latent.mixing import Columns
from smelt.latent.recipe import ModelRef, choose
from smelt.latent.schedule import Schedule
from smelt.latent.tokens import check_tokenizers

LOGIT_OPERATORS = ("logits", "logprobs", "probs", "proxy", "contrastive")


@dataclass(frozen=True, slots=True)
class LogitMix:
    """How logits are combined; ``weights`` has one entry per model for the means, one for proxy and
    contrastive.

    ``logits`` Σ w z; ``logprobs`` Σ w log p; ``probs`` log Σ w p; ``proxy`` z_0 + α (z_1 - z_2);
    ``contrastive`` z_0 - α z_1 on tokens with p_0 ≥ τ max p_0 (``tau``), minus infinity elsewhere.
    """

    op: str = "logits"
    weights: tuple[float, ...] = ()
    tau: float = 0.1
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        choose(self.op, LOGIT_OPERATORS, "logit operator")
        given = self.weights
        object.__setattr__(
            self, "weights", tuple(given) if not isinstance(given, int | float) else (float(given),)
        )
        if not 0 < self.tau <= 1:
            raise LatentError(f"tau is {self.tau}", expected="a share of the best probability, in (0, 1]")

    def resolved(self, models: int) -> LogitMix:
        """With default weights filled in and the number of models checked."""
        wanted = {"proxy": (3, 1), "contrastive": (2, 1)}.get(self.op, (models, models))
        default = (1.0,) if self.op in ("proxy", "contrastive") else (1.0 / models,) * models
        weights = self.weights or default
        if models != wanted[0] or len(weights) != wanted[1]:
            raise LatentError(
                f"{models} models and {len(weights)} weights",
                where=f"ensemble {self.op}",
                expected=f"{wanted[0]} models and {wanted[1]} weights",
            )
        if self.op == "probs" and (min(weights) < 0 or sum(weights) <= 0):
            raise LatentError(
                f"weights {list(weights)}", where="ensemble probs", expected="weights of at least 0"
            )
        return LogitMix(self.op, tuple(weights), self.tau, self.schedule)

    def to_dict(self) -> dict[str, Any]:
        """As it is written in a recipe."""
        data: dict[str, Any] = {"op": self.op, "weights": list(self.weights), "tau": self.tau}
        if self.schedule is not None:
            data["schedule"] = self.schedule.to_dict()
        return data


def combine(mix: LogitMix, logits: Sequence[torch.Tensor], factor: Any = 1.0) -> torch.Tensor:
    """Combined float32 logits.

    >>> z = torch.tensor([[0.0, 1.0]])
    >>> combine(LogitMix("logits", (0.5, 0.5)), [z, 3 * z])
    tensor([[0., 2.]])
    """
    rows = min(item.shape[-1] for item in logits)
    z = [item[..., :rows].float() for item in logits]
    if mix.op == "proxy":
        return z[0] + mix.weights[0] * factor * (z[1] - z[2])
    if mix.op == "contrastive":
        best = z[0].amax(-1, keepdim=True)
        plausible = z[0] >= best + torch.log(torch.tensor(mix.tau))
        return torch.where(plausible, z[0] - mix.weights[0] * factor * z[1], float("-inf"))
    if mix.op == "logits":
        return _weighted(z, _shares(mix, factor))
    logs = [torch.log_softmax(item, -1) for item in z]
    if mix.op == "logprobs":
        return _weighted(logs, _shares(mix, factor))
    shares = [
        torch.as_tensor(share, dtype=torch.float32, device=z[0].device) for share in _shares(mix, factor)
    ]
    return torch.logsumexp(torch.stack([log + torch.log(w) for log, w in zip(logs, shares, strict=True)]), 0)


def _weighted(items: Sequence[torch.Tensor], shares: Sequence[Any]) -> torch.Tensor:
    total = items[0] * shares[0]
    for item, share in zip(items[1:], shares[1:], strict=True):
        total = total + item * share
    return total


def _shares(mix: LogitMix, factor: Any) -> list[Any]:
    """A factor moves weight between the first model and the others, keeping the total."""
    if isinstance(factor, float) and factor == 1.0:
        return list(mix.weights)
    rest = [weight * factor for weight in mix.weights[1:]]
    return [sum(mix.weights) - sum(rest), *rest]


class EnsembleConfig(LatentMergedConfig):
    """Recipe ``{models: [...], op, weights, tau, schedule}`` over the first model's config."""

    model_type = "latent_ensemble"

    def __init__(self, recipe: dict[str, Any] | None = None, base_config: Any = None, **kwargs: Any) -> None:
        # transformers writes an __init__ for config classes that have none, and it would drop base_config
        super().__init__(recipe, base_config, **kwargs)


class EnsembleForCausalLM(PreTrainedModel, GenerationMixin):
    """Several causal models that generate as one by mixing their logits. Models may differ in everything but
    the vocabulary; a larger embedding matrix is cropped to the smallest."""

    config_class = EnsembleConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = False

    def __init__(self, config: EnsembleConfig, models: Sequence[Any], mix: LogitMix) -> None:
        super().__init__(config)
        self.models = nn.ModuleList(models)
        self.mix = mix.resolved(len(models))
        self.tokenizer: Any = None
        self._local = threading.local()
        self._depths = [m.config.get_text_config(decoder=True).num_hidden_layers for m in models]
        config.lay_out(
            [
                (m.config.get_text_config(decoder=True), depth, i > 0)
                for i, (m, depth) in enumerate(zip(models, self._depths, strict=True))
            ]
        )
        self.generation_config = copy.deepcopy(models[0].generation_config)
        self._accepted = [set(inspect.signature(type(model).forward).parameters) for model in models]
        self.eval()

    @classmethod
    def from_models(
        cls, models: Any, op: str = "logits", weights: Any = (), *, tau: float = 0.1,
        schedule: Schedule | None = None, folder: Path | None = None, tokenizer: Any = None, **load: Any,
    ) -> EnsembleForCausalLM:  # fmt: skip
        """Wrap loaded models or load them from paths; the first one gives config, tokenizer and generation
        config."""
        from smelt.latent.building import _self_ref
        from smelt.latent.loading import load_base, load_tokenizer

        mix = LogitMix(op, weights, tau, schedule).resolved(len(models))
        refs = [
            _self_ref(m) if isinstance(m, nn.Module) else ModelRef.of(m, f"models[{i}]")
            for i, m in enumerate(models)
        ]
        tokenizer = tokenizer or load_tokenizer(refs[0], folder)
        for index, ref in enumerate(refs[1:], 1):
            check_tokenizers(tokenizer, load_tokenizer(ref, folder), index)
        loaded: list[Any] = [
            m if isinstance(m, nn.Module) else load_base(ref, folder=folder, **load)
            for m, ref in zip(models, refs, strict=True)
        ]
        recipe = {"models": [ref.to_dict() for ref in refs], **mix.to_dict()}
        model = cls(config_for(EnsembleConfig, cls, loaded[0], recipe), loaded, mix)
        model.tokenizer = tokenizer
        return model

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load a saved ensemble; called by the Auto classes."""
        from smelt.latent.saving import load_ensemble

        return load_ensemble(cls, name, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write a recipe directory; ``embed_weights=True`` makes it self-contained."""
        from smelt.latent.saving import save_ensemble

        save_ensemble(self, Path(save_directory), **kwargs)

    @contextmanager
    def using(self, mix: LogitMix) -> Iterator[EnsembleForCausalLM]:
        """Another way to combine, for this thread only."""
        before = getattr(self._local, "mix", None)
        self._local.mix = mix.resolved(len(self.models))
        try:
            yield self
        finally:
            self._local.mix = before

    @torch.no_grad()
    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: Any = None, position_ids: Any = None,
        past_key_values: Any = None, inputs_embeds: Any = None, labels: Any = None, use_cache: bool | None =
        None, logits_to_keep: int | torch.Tensor = 0, mix_start: Any = None, padding_mask: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Every model's forward on the same ids, combined."""
        if input_ids is None or inputs_embeds is not None:
            raise LatentError(
                "inputs_embeds cannot be used: every model embeds the tokens itself", fix="pass input_ids"
            )
        use_cache = bool(getattr(self.config, "use_cache", True)) if use_cache is None else use_cache
        flat = new_cache(self.config) if past_key_values is None and use_cache else past_key_values
        flat = None if flat is None else ready(flat, sum(self._depths))
        past = 0 if flat is None else flat.get_seq_length()
        shared = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "logits_to_keep": logits_to_keep,
        }
        first, logits, offset = None, [], 0
        for index, model in enumerate(self.models):
            view = None if flat is None else tower_view(flat, offset, self._depths[index])
            offset += self._depths[index]
            named = {k: v for k, v in shared.items() if v is not None and k in self._accepted[index]}
            if index and not (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
                named.pop("attention_mask", None)  # a mask made for the first model's layers
                if padding_mask is not None:
                    named["attention_mask"] = padding_mask
            out = model(input_ids=input_ids, past_key_values=view, use_cache=use_cache, **named,
                        **(kwargs if index == 0 else {}))  # fmt: skip
            first = first if index else out
            logits.append(self._cut(out.logits, index, logits_to_keep))
        assert first is not None
        mix = getattr(self._local, "mix", None) or self.mix
        start = getattr(self._local, "mix_start", None) if mix_start is None else mix_start
        factor = _factor(mix, Columns(past, input_ids.shape, input_ids.device, start, None), logits[0])
        first.logits = combine(mix, logits, factor)
        first.past_key_values = flat
        if labels is not None:
            first.loss = self.loss_function(
                logits=first.logits, labels=labels, vocab_size=first.logits.shape[-1]
            )
        return first

    def _cut(self, logits: torch.Tensor, index: int, keep: Any) -> torch.Tensor:
        if "logits_to_keep" not in self._accepted[index] and isinstance(keep, int) and keep:
            return logits[:, -keep:]
        return logits

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The first model's own, plus the plain padding mask."""
        mask = kwargs.get("attention_mask")
        first: Any = self.models[0]
        inputs = first.prepare_inputs_for_generation(*args, **kwargs)
        if mask is not None and mask.ndim == 2:
            inputs["padding_mask"] = mask
        return inputs

    def generate(self, inputs: Any = None, *args: Any, mix_start: Any = None, **kwargs: Any) -> Any:
        """As every transformers model."""
        from smelt.latent.modeling import prompt_end

        before = getattr(self._local, "mix_start", None)
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        self._local.mix_start = prompt_end(ids, kwargs) if mix_start is None else mix_start
        try:
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._local.mix_start = before

    def train(self, mode: bool = True) -> EnsembleForCausalLM:
        """Only ``train(False)``."""
        if mode:
            raise LatentError("an ensemble cannot be trained", fix="train its models by themselves")
        return super().train(False)

    def get_input_embeddings(self) -> Any:
        """The first model's."""
        return self.models[0].get_input_embeddings()  # type: ignore[operator]

    def get_output_embeddings(self) -> Any:
        """The first model's."""
        return self.models[0].get_output_embeddings()  # type: ignore[operator]

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Each model's own."""
        for model in self.models:
            model.tie_weights()  # type: ignore[operator]


def _factor(mix: LogitMix, columns: Columns, logits: torch.Tensor) -> Any:
    """The schedule's factor for the kept positions: a float, or (1 or B, T, 1)."""
    if mix.schedule is None:
        return 1.0
    if not mix.schedule.varies:
        return mix.schedule.start
    return mix.schedule.factor(columns.relative).unsqueeze(-1)[:, -logits.shape[1] :].to(logits.device)
