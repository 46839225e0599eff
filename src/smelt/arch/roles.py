"""What a tensor is for: embedding, head, norm, router, from its name, shape and neighbours."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from smelt.core.types import TensorMeta

Role = Literal["embedding", "head", "norm", "router", "layer", "other"]

_EMBED = re.compile(r"embed|wte|shared|tok_emb|word_emb")
_HEAD = re.compile(
    r"(\w*_)?head\d?|embed_out|output|unembed\w*|logits\w*|predictions|proj_out|lm_out|decoder"
)
_SMALL_HEAD = re.compile(r"(^|\.)(score|classifier|qa_outputs|predictions|\w*_head)(\.|$)")
_NOT_TOKENS = re.compile(r"pos(ition|_emb)|wpe|type_emb|segment|patch|class_emb")
_SCALES = frozenset({"weight", "scale", "gamma"})
_NORM_LEAVES = _SCALES | {"bias", "beta", "running_mean", "running_var", "num_batches_tracked"}
_ROUTER = re.compile(r"(^|\.)(gate|\w*router|switch)(\.\w+)?$")
#: embedding rows may exceed the vocabulary by this much, or by a tenth of it
_PADDING = 1024


def assign_roles(
    tensors: Mapping[str, TensorMeta],
    in_layer: Callable[[str], bool],
    vocab_sizes: Collection[int],
    expert_counts: Collection[int],
) -> dict[str, Role]:
    """The role of every tensor."""
    outside = [name for name in tensors if not in_layer(name)]
    roles: dict[str, Role] = dict.fromkeys(tensors, "layer")
    roles.update(dict.fromkeys(outside, "other"))
    for name in _norms(tensors):
        roles[name] = "norm"
    for name in tensors:
        if roles[name] == "layer" and _is_router(name, tensors, expert_counts):
            roles[name] = "router"
    roles.update(_vocabulary_roles([tensors[name] for name in outside], vocab_sizes))
    heads = {_module(name) for name, role in roles.items() if role == "head"}
    for name in outside:
        if roles[name] == "other" and (_module(name) in heads or _SMALL_HEAD.search(_module(name))):
            roles[name] = "head"
    return roles


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _norms(tensors: Mapping[str, TensorMeta]) -> list[str]:
    """Tensors of modules that hold a scale and nothing but vectors of one length, as only norms do."""
    modules: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        modules[_module(name)].append(name)
    found: list[str] = []
    for names in modules.values():
        leaves = {name.rpartition(".")[2] for name in names}
        shapes = {tensors[name].shape for name in names} - {()}
        if leaves <= _NORM_LEAVES and leaves & _SCALES and len(shapes) == 1 and len(next(iter(shapes))) == 1:
            found += names
    return found


def _is_router(name: str, tensors: Mapping[str, TensorMeta], experts: Collection[int]) -> bool:
    """A gate over experts: named like one, and with a row for each expert."""
    module = _module(name)
    if not experts or not _ROUTER.search(module):
        return False
    shape = tensors.get(f"{module}.weight", tensors[name]).shape
    return len(shape) in (1, 2) and shape[0] in experts


def _vocabulary_roles(outside: list[TensorMeta], vocab_sizes: Collection[int]) -> dict[str, Role]:
    """Embedding and head among matrices with a row per token; names decide, or order where they are mute."""
    matrices = [meta for meta in outside if len(meta.shape) == 2 and not _NOT_TOKENS.search(meta.name)]
    matrices = [meta for meta in matrices if _rows_fit(meta, vocab_sizes)]
    hints = {meta.name: _hint(meta.name) for meta in matrices}
    roles: dict[str, Role] = {name: hint for name, hint in hints.items() if hint is not None}
    mute = [meta for meta in matrices if hints[meta.name] is None]
    if not vocab_sizes:
        return roles
    if mute and "embedding" not in roles.values():
        roles[mute.pop(0).name] = "embedding"
    if len(mute) == 1 and "head" not in roles.values():
        widths = {meta.shape[1] for meta in matrices if roles.get(meta.name) == "embedding"}
        if mute[0].shape[1] in widths and "." not in _module(mute[0].name):
            roles[mute[0].name] = "head"
    return roles


def _rows_fit(meta: TensorMeta, vocab_sizes: Collection[int]) -> bool:
    """Whether a matrix has a row per token; padded rows are believed only where the name agrees."""
    rows = meta.shape[0]
    if not vocab_sizes:
        return _hint(meta.name) is not None
    if rows in vocab_sizes:
        return True
    return _hint(meta.name) is not None and any(v < rows <= v + max(_PADDING, v // 10) for v in vocab_sizes)


def _hint(name: str) -> Role | None:
    """What the name of a matrix says: the last part of its module first, then the whole path."""
    last = _module(name).rpartition(".")[2]
    if _HEAD.fullmatch(last):
        return "head"
    if _EMBED.search(last) or _EMBED.search(name):
        return "embedding"
    return "head" if _HEAD.search(name) and "head" in name else None


def comes_first(name: str, role: Role) -> bool:
    """Whether a tensor outside the layers stands before them in the flow of the model."""
    if role in ("embedding", "head"):
        return role == "embedding"
    if "embed" in name or _NOT_TOKENS.search(name):
        return True
    if role == "norm":
        return re.search(r"(^|[._])pre(_|\.|norm|layer)|project|connector", name) is not None
    return re.search(r"(^|[._])(final|out|post)([._]|$)", name) is None
