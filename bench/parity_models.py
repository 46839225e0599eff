"""Tiny models for the comparison with the peer: far-apart fine-tunes, near copies, biases, several shapes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import bf16, stfile
from bench.make_models import write_tokenizer
from bench.paths import cache_root
from bench.shapes import SIZES, Shape

SEED = 7
VERSION = 1  # raise when the models change
Tensors = dict[str, NDArray[Any]]

#: the folder a case names -> delta of that model relative to its base, in units of the weights' rms
DELTAS: dict[str, float] = {"base": 0.0, "a": 0.3, "b": 0.5, "c": 0.2, "near": 1e-5}


@dataclass(frozen=True, slots=True)
class Family:
    """A set of models of one shape, dtype and config."""

    shape: Shape
    dtype: str = "float32"
    biased: bool = False  # Qwen2: 1-D biases beside q, k and v


FAMILIES: dict[str, Family] = {
    "llama": Family(SIZES["tiny"]),
    "untied": Family(replace(SIZES["tiny"], tied=False)),
    "qwen2": Family(replace(SIZES["tiny"], layers=2), biased=True),
    "wide": Family(replace(SIZES["tiny"], vocab=392)),
    "bf16": Family(SIZES["tiny"], dtype="bfloat16"),
}


def _dims(family: Family) -> dict[str, tuple[int, ...]]:
    dims = dict(family.shape.tensors())
    if family.biased:
        for name in [n for n in dims if n.split(".")[-2] in ("q_proj", "k_proj", "v_proj")]:
            dims[name.replace(".weight", ".bias")] = dims[name][:1]
    return dims


def _base(dims: dict[str, tuple[int, ...]], rng: np.random.Generator) -> Tensors:
    base = {}
    for name, shape in dims.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        base[name] = 1 + 0.1 * values if "norm" in name else 0.02 * values
    return base


def _tuned(base: Tensors, ratio: float, rng: np.random.Generator) -> Tensors:
    tuned = {}
    for name, values in base.items():
        rms = float(np.sqrt(np.mean(np.square(values))))
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        tuned[name] = values + np.float32(ratio * rms) * noise
    return tuned


def models_of(family: Family) -> dict[str, Tensors]:
    """All models of a family; besides the fine-tunes a negated and a zero one."""
    rng = np.random.Generator(np.random.Philox(key=SEED))
    base = _base(_dims(family), rng)
    models = {name: _tuned(base, ratio, rng) if ratio else base for name, ratio in DELTAS.items()}
    models["neg"] = {name: -values for name, values in models["a"].items()}
    models["zero"] = {name: np.zeros_like(values) for name, values in base.items()}
    return models


def _config(family: Family) -> dict[str, Any]:
    config = family.shape.config(family.dtype)
    if family.biased:
        config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    return config


def ensure() -> dict[str, dict[str, Path]]:
    """Write the models unless they are there; folders by family and model."""
    root = cache_root() / "parity" / f"models-{VERSION}"
    folders = {name: {model: root / name / model for model in [*DELTAS, "neg", "zero"]} for name in FAMILIES}
    if (root / "complete").exists():
        return folders
    shutil.rmtree(root, ignore_errors=True)
    for name, family in FAMILIES.items():
        for model, tensors in models_of(family).items():
            _write(folders[name][model], family, tensors)
    (root / "complete").touch()
    return folders


def _write(folder: Path, family: Family, tensors: Tensors) -> None:
    folder.mkdir(parents=True)
    file = folder / "model.safetensors"
    if family.dtype == "bfloat16":
        stfile.save(file, {name: bf16.from_float32(values) for name, values in tensors.items()}, "BF16")
    else:
        stfile.save(file, tensors)
    (folder / "config.json").write_text(json.dumps(_config(family), indent=2))
    write_tokenizer(folder)
