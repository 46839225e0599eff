"""The config of a latent merge: its recipe, and the base's config behind every attribute it does not
define."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.configuration_utils import PreTrainedConfig

OWN = ("_base", "_layout")
NESTED = ("decoder", "generator", "text_config", "text_encoder", "quantization_config", "_heterogeneity_spec")


class LatentMergedConfig(PreTrainedConfig):
    """``recipe`` as in :class:`smelt.latent.recipe.LatentRecipe`; ``base_config`` the base's own config.

    ``num_hidden_layers`` and ``layer_types`` count the layers of all towers, because that is what a cache
    must hold; ``config.base_layers`` is the depth that sites refer to.
    """

    model_type = "latent_merged"
    has_no_defaults_at_init = True

    def __init__(
        self,
        recipe: dict[str, Any] | None = None,
        base_config: Any = None,
        family: str = "latent",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.recipe = recipe
        self.family = family
        self.__dict__["_base"] = _as_config(base_config)
        self.__dict__["_layout"] = None
        self.is_encoder_decoder = False

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        base, layout = state.get("_base"), state.get("_layout")
        if base is None or name.startswith("__") or name in NESTED or name in OWN:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if name == "base_layers":
            return base.num_hidden_layers
        if layout is not None and name == "num_hidden_layers":
            return len(layout)
        if layout is not None and name == "layer_types":
            return [kind for kind, _ in layout]
        return getattr(base, name)

    @property
    def per_layer_config(self) -> Any:
        """One config per cached layer, for transformers' cache builders."""
        layout = self.__dict__.get("_layout")
        if layout is not None:
            return [config for _, config in layout]
        return super().per_layer_config

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        if value is not None:
            raise AttributeError("per_layer_config of a latent merge follows from its towers")

    def lay_out(self, towers: Sequence[tuple[Any, int, bool]]) -> None:
        """Say which layers the cache holds: (config, depth, own) per tower; ``own`` layers keep
        everything."""
        layout: list[tuple[str, Any]] = []
        for config, depth, own in towers:
            kinds, _ = get_layer_types_and_kwargs(config)
            each = config.per_layer_config
            layout += [("full_attention" if own else kinds[i], each[i]) for i in range(depth)]
        self.__dict__["_layout"] = layout

    def to_dict(self) -> dict[str, Any]:
        """The recipe and the base's config; nothing that follows from them."""
        base = self.__dict__.get("_base")
        out = {
            key: copy.deepcopy(value)
            for key, value in self.__dict__.items()
            if key not in OWN and not (key.startswith("_") and key != "_name_or_path")
        }
        out["model_type"] = self.model_type
        out["base_config"] = None if base is None else base.to_dict()
        self.dict_dtype_to_str(out)
        return out


def _as_config(value: Any) -> Any:
    if value is None or isinstance(value, PreTrainedConfig):
        return value
    data = dict(value)
    return AutoConfig.for_model(data.pop("model_type"), **data)


def config_for(kind: Any, owner: type, base: Any, recipe: dict[str, Any]) -> Any:
    """A config of class ``kind`` for a wrapper of class ``owner`` around ``base``."""
    config = kind(recipe=recipe, base_config=base.config, architectures=[owner.__name__])
    config._attn_implementation = base.config._attn_implementation
    config.dtype = base.dtype
    return config
