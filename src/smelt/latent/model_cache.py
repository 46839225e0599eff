"""Models and tokenizers by name, loaded once; what one caller leaves attached does not reach the next."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch

from smelt.core.errors import LatentError, did_you_mean
from smelt.latent.interventions import Session

_MODEL_CACHE: dict[Hashable, Any] = {}
_TOKENIZER_CACHE: dict[Hashable, Any] = {}
_LOCK = threading.RLock()
DTYPES = ("float32", "bfloat16", "float16", "float64")


def get_model(
    name: str | Path,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> Any:
    """A causal language model from a directory or the hub, loaded once per name, revision, dtype and device.

    Defaults: bfloat16 on CUDA where there is one, else float32 on the CPU; ``device="auto"`` spreads a model
    over devices. A directory that changed on disk is loaded again. Mixers that somebody left attached are
    detached, with a warning; those inside a ``with`` block stay. ``clear_model_cache()`` frees everything.
    """
    if load_in_8bit and load_in_4bit:
        raise LatentError("load_in_8bit and load_in_4bit", expected="one of them")
    device = _device(device)
    chosen = _dtype(dtype)
    options = {"revision": revision or "main", "dtype": chosen, "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    bits = 8 if load_in_8bit else 4 if load_in_4bit else 16
    key = (*_identity(name), device, bits, *sorted((k, str(v)) for k, v in options.items()))
    with _LOCK:
        if key not in _MODEL_CACHE:
            _MODEL_CACHE[key] = _load_model(str(name), device, bits, options)
        model = _MODEL_CACHE[key]
    _clean(model, str(name))
    return model


def get_tokenizer(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A tokenizer from a directory or the hub, loaded once per name and revision."""
    key = (*_identity(name), revision or "main", trust_remote_code)
    with _LOCK:
        if key not in _TOKENIZER_CACHE:
            from transformers import AutoTokenizer

            options = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
            _TOKENIZER_CACHE[key] = _from_pretrained(AutoTokenizer, str(name), "tokenizer", options)
        return _TOKENIZER_CACHE[key]


def clear_model_cache() -> None:
    """Forget all cached models and tokenizers, with everything attached to them."""
    with _LOCK:
        for model in _MODEL_CACHE.values():
            Session.of(model).release_all()
        _MODEL_CACHE.clear()
        _TOKENIZER_CACHE.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device(device: str | torch.device | None) -> str:
    name = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise LatentError(
                f"device {name!r} cannot be used: {reason}", expected="cpu, cuda:0, auto"
            ) from error
    return name


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | str:
    if dtype is None:
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    known = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if dtype == "auto":
        return dtype
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise LatentError(f"dtype {dtype!r}", fix=did_you_mean(str(dtype), ["auto", *DTYPES]))
    return known


def _identity(name: str | Path) -> tuple[Hashable, ...]:
    """A hub name, or a directory as it is on disk now."""
    folder = Path(name)
    if not folder.is_dir():
        return (str(name),)
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    return (str(folder.resolve()), tuple(files))


def _clean(model: Any, name: str) -> None:
    session = Session.active(model)
    left = session.release_forgotten() if session is not None else []
    if left:
        what = ", ".join(left)
        warnings.warn(f"{name} still had {what} attached from before: detached", stacklevel=3)


def _load_model(name: str, device: str, bits: int, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    if bits < 16:
        options = {**options, "quantization_config": _bits(bits, options["dtype"])}
    if bits < 16 or device == "auto":
        options = {**options, "device_map": device}
    model = _from_pretrained(AutoModelForCausalLM, name, "model", options)
    return (model if "device_map" in options else model.to(device)).eval()


def _bits(bits: int, dtype: Any) -> Any:
    import importlib.util

    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise LatentError("8- and 4-bit loading needs bitsandbytes", fix="pip install bitsandbytes")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _from_pretrained(auto: Any, name: str, what: str, options: dict[str, Any]) -> Any:
    try:
        return auto.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "give a directory with config.json, or a name on the hub"
        raise LatentError(f"cannot load a {what} from {name!r}: {reason}", fix=fix) from error
