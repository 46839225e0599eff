"""The public names of the reference surface, steering and metrics, for ``smelt.latent`` to re-export.

``EXPORTS`` says where each one lives without importing anything; ``__getattr__`` imports on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_BY_MODULE = {
    "model_cache": ("clear_model_cache", "get_model", "get_tokenizer"),
    "prompts": ("apply_chat_template",),
    "hooks": ("get_decoder_layers", "sanitize_layers", "to_device_dtype"),
    "sampling": ("top_p_sample",),
    "mixers": ("ActivationSteerer", "LayerLatentMixer", "LayerLatentRegMeanMixer"),
    "reference": (
        "chat_generate",
        "delta_generate",
        "ensemble_generate",
        "latent_mix_generate",
        "latent_regmean_generate",
    ),
    "metrics": ("arc_deviation", "linear_cka", "midness_seq"),
    "metric_rows": ("compare_prompts", "layerwise", "layerwise_cka", "metric_row", "summary_row"),
    "states": ("collect_states", "iterate_states"),
    "steering": ("SteeringVector",),
    "steering_extract": ("extract_activation_addition", "extract_contrast", "extract_difference"),
}
EXPORTS = {name: f"smelt.latent.{module}" for module, names in _BY_MODULE.items() for name in names}

__all__ = sorted(EXPORTS)


def __getattr__(name: str) -> Any:
    if name in EXPORTS:
        return getattr(import_module(EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(EXPORTS)
