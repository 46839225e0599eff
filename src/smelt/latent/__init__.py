"""Latent merging: two or more models generating as one.

    from smelt.latent import LatentMergedForCausalLM, Site

    sites = [Site(layer="0.75n", op="slerp", weights=[0.5])]
    model = LatentMergedForCausalLM.from_models(base, donor, sites)
    model.generate(**tokenizer("Hello", return_tensors="pt"), max_new_tokens=20)

Building: ``from_models(base, donors, sites, scope="all"|"generated", engine="auto"|"lockstep"|"tower",
steer)`` with loaded models or paths (donors given by path are loaded only as deep as the sites reach),
``from_recipe(path | dict)``, ``from_pretrained(dir)``, ``AutoModelForCausalLM.from_pretrained(dir)``.

Changing while it runs: ``model.set_sites(sites, scope=..., steer=...)`` for everyone;
``with model.using(sites=..., scope=..., beta=...):`` for this thread; ``model.generate(..., sites=, scope=,
steer=, beta=)`` for one call (use this when generate runs in another thread, as with a streamer). ``beta``
is one number, one per donor, or a tensor (rows,) / (rows, donors). Scope "generated" and schedules count from
``mix_start``, the column of the last prompt token: ``generate()`` knows it; plain ``forward()`` wants
``mix_start=prompt_length - 1`` (int or per row).

Looking inside: ``with model.recording() as tape: model(ids)`` gives ``tape[layer] = {"base", "donors",
"mixed"}``.

Saving: ``model.save_pretrained(dir)`` writes the recipe, tokenizer and generation config, with references
to the models; ``embed_weights=True`` stores their weights too. Importing this package registers the classes
with transformers; where it is not imported, ``trust_remote_code=True`` works, because the directory carries a
one-line module that imports it.

Baselines at the logits: ``EnsembleForCausalLM.from_models(models,
op="logits"|"logprobs"|"probs"|"proxy"|"contrastive")``.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from smelt.latent import _exports_reference
from smelt.latent._exports_reference import EXPORTS
from smelt.latent.config import LatentMergedConfig
from smelt.latent.ensemble import EnsembleConfig, EnsembleForCausalLM, LogitMix
from smelt.latent.modeling import LatentMergedForCausalLM
from smelt.latent.recipe import LatentRecipe, ModelRef, Settings, Site, Steer
from smelt.latent.schedule import Gate, Schedule

AutoConfig.register("latent_merged", LatentMergedConfig, exist_ok=True)
AutoModelForCausalLM.register(LatentMergedConfig, LatentMergedForCausalLM, exist_ok=True)
AutoConfig.register("latent_ensemble", EnsembleConfig, exist_ok=True)
AutoModelForCausalLM.register(EnsembleConfig, EnsembleForCausalLM, exist_ok=True)
for _kind in (LatentMergedForCausalLM, EnsembleForCausalLM):  # what pipelines and lm-eval recognise by name
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[_kind.config_class.model_type] = _kind.__name__

__all__ = [
    *sorted(EXPORTS),
    "EnsembleConfig",
    "EnsembleForCausalLM",
    "Gate",
    "LatentMergedConfig",
    "LatentMergedForCausalLM",
    "LatentRecipe",
    "LogitMix",
    "ModelRef",
    "Schedule",
    "Settings",
    "Site",
    "Steer",
]


def __getattr__(name: str) -> Any:
    """The reference's surface, steering and metrics, imported when first used."""
    return getattr(_exports_reference, name)
