"""Whether a config tells the truth about the tensors beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from smelt.arch.config import depth_entries, extra_layers, lookup, parts_of, vocab_entries
from smelt.arch.structure import Structure, read_structure
from smelt.core.errors import Problem
from smelt.core.types import DTYPE_NAMES, FLOATS, TensorMeta

_HEADED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def check_agreement(
    tensors: Mapping[str, TensorMeta], config: Mapping[str, Any]
) -> tuple[list[Problem], list[Problem]]:
    """What would keep the model from loading as it is (errors), and what is merely odd (warnings)."""
    if not config:
        return [], []
    structure = read_structure(tensors, config)
    errors = [*_missing_layers(structure, config), *_missing_head(structure, tensors, config)]
    rows_wrong, rows_odd = _vocabulary(structure, tensors, config)
    warnings = [*rows_odd, *_surplus_layers(structure, config), *_surplus_head(structure, tensors, config)]
    biases_wrong, biases_odd = _biases(structure, tensors, config)
    return errors + rows_wrong + biases_wrong, warnings + biases_odd + _dtype(tensors, config)


def _missing_layers(structure: Structure, config: Mapping[str, Any]) -> list[Problem]:
    """Layers the config promises and no tensor belongs to."""
    main = structure.main
    if main is None or main.depth_keys:
        return []
    promised = [entry for entry in depth_entries(config) if parts_of(entry.path) <= {"text"}]
    more = [entry for entry in promised if entry.value > main.count]
    if not more or more != promised:
        return []
    what = (
        f"{more[0].path} is {more[0].value}, but the weights hold layers {main.prefix}0 to {main.count - 1}"
    )
    return [
        Problem(what, "config.json", f"{main.count}", "missing layers would be filled with random numbers")
    ]


def _surplus_layers(structure: Structure, config: Mapping[str, Any]) -> list[Problem]:
    """Layers on disk that a reader would drop."""
    main = structure.main
    promised = [entry for entry in depth_entries(config) if parts_of(entry.path) <= {"text"}]
    if main is None or main.depth_keys or not promised:
        return []
    most = max(promised, key=lambda entry: entry.value)
    if most.value + extra_layers(config, most.parent) >= main.count:
        return []
    what = f"the weights hold {main.count} layers, but {most.path} is {most.value}"
    return [Problem(what, "config.json", fix="the layers beyond it are not used")]


def _vocabulary(
    structure: Structure, tensors: Mapping[str, TensorMeta], config: Mapping[str, Any]
) -> tuple[list[Problem], list[Problem]]:
    """Embedding and head rows against vocab_size: too few never load, more may be padding."""
    sizes = {entry.value for entry in vocab_entries(config)}
    wrong, odd = [], []
    for name in _token_matrices(structure, tensors) if len(sizes) == 1 else ():
        rows, size = tensors[name].shape[0], next(iter(sizes))
        problem = Problem(f"has {rows} rows", f"tensor {name!r}", f"{size}, the vocab_size of config.json")
        if rows < size:
            wrong.append(problem)
        elif rows > size:
            odd.append(problem)
    return wrong, odd


def _token_matrices(structure: Structure, tensors: Mapping[str, TensorMeta]) -> list[str]:
    """Matrices with a row per token by role, or by the plainest of names when the rows do not fit."""
    names = [
        name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight"))
    ]
    names += structure.with_role("embedding") + structure.with_role("head")
    outside = [name for name in dict.fromkeys(names) if structure.layer_of(name) is None]
    return [name for name in outside if len(tensors[name].shape) == 2 and _is_token_name(name)]


def _is_token_name(name: str) -> bool:
    return any(word in name for word in ("embed_tokens", "wte", "lm_head", "word_embeddings", "embed_out"))


def _biases(
    structure: Structure, tensors: Mapping[str, TensorMeta], config: Mapping[str, Any]
) -> tuple[list[Problem], list[Problem]]:
    """Switches of the config that say whether projections have biases, against the projections of the main stack."""
    text = config.get("text_config")
    wrong, odd = [], []
    for key, block in (("attention_bias", "attn"), ("mlp_bias", "mlp")):
        said = config.get(key, text.get(key) if isinstance(text, dict) else None)
        inside = [name for name in tensors if _in_block(structure, name, block)]
        biases = [name for name in inside if name.endswith("_proj.bias")]
        if said is False and biases:
            what = f"stands in the weights although {key} is false"
            odd.append(Problem(what, f"tensor {biases[0]!r}", fix="readers ignore it"))
        elif said is True and inside and not biases:
            what = f"{key} is true, but the weights hold no such biases"
            wrong.append(Problem(what, "config.json", fix="they would be filled with random numbers"))
    return wrong, odd


def _in_block(structure: Structure, name: str, block: str) -> bool:
    """Whether a projection stands in an attention or MLP block of the main stack."""
    place = structure.layer_of(name)
    words = name.split(".")
    return (
        place is not None and place[0] == structure.main and len(words) > 2
        and words[-2].endswith("_proj") and words[-3].endswith(block)
    )  # fmt: skip


def _missing_head(
    structure: Structure, tensors: Mapping[str, TensorMeta], config: Mapping[str, Any]
) -> list[Problem]:
    """A generating model that neither ties its head nor has one."""
    names = config.get("architectures") or []
    generates = any(isinstance(name, str) and name.endswith(_HEADED) for name in names)
    untied = config.get("tie_word_embeddings", lookup(config, "text_config.tie_word_embeddings")) is False
    if not (generates and untied and structure.with_role("embedding")) or structure.with_role("head"):
        return []
    what = "tie_word_embeddings is false, but the weights hold no output head"
    return [Problem(what, "config.json", fix="the head would be filled with random numbers")]


def _surplus_head(
    structure: Structure, tensors: Mapping[str, TensorMeta], config: Mapping[str, Any]
) -> list[Problem]:
    """A head on disk that the config says to replace by the embedding."""
    heads = [name for name in structure.with_role("head") if name.endswith("lm_head.weight")]
    if not heads or config.get("tie_word_embeddings") is not True:
        return []
    what = "stands in the weights although tie_word_embeddings is true"
    return [Problem(what, f"tensor {heads[0]!r}", fix="readers may ignore it")]


def _dtype(tensors: Mapping[str, TensorMeta], config: Mapping[str, Any]) -> list[Problem]:
    """The dtype a config names against the one most weights have."""
    named = config.get("dtype", config.get("torch_dtype"))
    expected = DTYPE_NAMES.get(named.removeprefix("torch.")) if isinstance(named, str) else None
    sizes: Counter[str] = Counter()
    for meta in tensors.values():
        if meta.dtype in FLOATS:
            sizes[meta.dtype] += meta.nbytes
    if expected is None or not sizes or sizes.most_common(1)[0][0] == expected:
        return []
    return [Problem(f"dtype is {named}, but most weights are {sizes.most_common(1)[0][0]}", "config.json")]
