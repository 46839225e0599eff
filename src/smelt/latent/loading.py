"""Loads base, donors and tokenizers from directories or the hub; donors only as deep as they are needed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smelt.core.errors import LatentError
from smelt.latent.recipe import ModelRef

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def place(ref: ModelRef, folder: Path | None) -> str:
    """The path of a reference: relative ones are looked up beside the recipe first."""
    if not ref.path:
        return ""
    if folder is not None and not Path(ref.path).is_absolute() and (folder / ref.path).exists():
        return str(folder / ref.path)
    return ref.path


def load_config(ref: ModelRef, folder: Path | None = None) -> Any:
    """The config of a reference, or a LatentError."""
    from transformers import AutoConfig

    path = place(ref, folder)
    if not path:
        raise LatentError("the recipe names no model here", expected="a directory or a hub name")
    try:
        return AutoConfig.from_pretrained(path, revision=ref.revision or "main")
    except (OSError, ValueError) as error:
        raise LatentError(f"cannot read a model config at {path!r}: {_first_line(error)}") from error


def reference_depth(ref: ModelRef, folder: Path | None = None) -> int | None:
    """How many decoder layers the checkpoint has."""
    config = load_config(ref, folder).get_text_config(decoder=True)
    full = getattr(config, "smelt_full_depth", None)
    return int(full or config.num_hidden_layers)


def load_base(
    ref: ModelRef, *, dtype: Any = None, device: Any = None, folder: Path | None = None, **load: Any
) -> Any:
    """The base as a causal language model."""
    from transformers import AutoModelForCausalLM

    load_config(ref, folder)
    options = {"dtype": dtype or ref.dtype or "auto", "revision": ref.revision or "main", **load}
    if device is not None:
        options["device_map"] = device
    return _load(AutoModelForCausalLM, place(ref, folder), options)


def load_donor(
    ref: ModelRef,
    base: Any,
    *,
    depth: int | None = None,
    quant: str | None = None,
    folder: Path | None = None,
    **load: Any,
) -> Any:
    """A donor without head, cut to ``depth`` layers, in the base's dtype, device and attention
    implementation."""
    from transformers import AutoModel

    from smelt.latent.truncated import truncated_source

    quant = quant or ref.quant
    if ref.adapter:
        from smelt.latent.lora import load_lora_donor

        return load_lora_donor(ref, base, depth, folder)
    config = load_config(ref, folder)
    options: dict[str, Any] = {
        "dtype": base.dtype,
        "attn_implementation": base.config._attn_implementation,
        "revision": ref.revision or "main",
        **{key: value for key, value in load.items() if key not in ("dtype", "device_map")},
    }
    with truncated_source(place(ref, folder), ref.revision, config, depth) as (path, cut):
        if quant == "nf4":
            from smelt.latent.quant import nf4_config

            options["quantization_config"] = nf4_config(base.dtype)
        model = _load(AutoModel, path, {**options, "config": cut})
    model.config._name_or_path = place(ref, folder)
    model = model.to(base.device) if quant != "nf4" else model
    if quant == "int8":
        _shrink(base, model)
    return model.eval()


def _shrink(base: Any, model: Any) -> None:
    """int8 for the layers that are the donor's own; those equal to the base's are shared instead."""
    from smelt.latent.adapters import find_decoder
    from smelt.latent.quant import quantize_int8
    from smelt.latent.sharing import alias, shared_prefix

    home, tower = find_decoder(base, "base"), find_decoder(model, "donor")
    alias(home, tower)
    for layer in list(tower.layers)[max(0, shared_prefix(home, tower)) :]:
        quantize_int8(layer)


def load_tokenizer(ref: ModelRef, folder: Path | None = None) -> Any:
    """The tokenizer beside the weights, or None when there is none."""
    from transformers import AutoTokenizer

    path = place(ref, folder)
    if not path or (
        Path(path).is_dir() and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES)
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, revision=ref.revision or "main")
    except (OSError, ValueError, KeyError, AttributeError, ImportError):
        return None


def cut_config(config: Any, depth: int | None) -> Any:
    """The config of the same model with only ``depth`` layers."""
    cut = copy.deepcopy(config)
    inner = cut.get_text_config(decoder=True)
    full = int(inner.num_hidden_layers)
    if depth is None or depth >= full:
        return cut
    inner.num_hidden_layers = depth
    inner.smelt_full_depth = full
    if getattr(inner, "layer_types", None) is not None:
        inner.layer_types = list(inner.layer_types)[:depth]
    return cut


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Mutes one logger: layers left out on purpose would be reported as unexpected weights."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _load(auto: Any, path: str, options: dict[str, Any]) -> Any:
    try:
        with quiet("transformers"):
            return auto.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise LatentError(f"cannot load {path!r}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
