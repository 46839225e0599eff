"""The structure of a model read from its tensor names, shapes and config: layers, roles, ties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from smelt.arch.config import (
    ASIDE,
    assign_depths,
    depth_entries,
    expert_counts,
    extra_layers,
    lookup,
    parts_of,
    per_layer_lists,
    vocab_entries,
)
from smelt.arch.roles import Role, assign_roles, comes_first
from smelt.arch.stacks import StackInfo, find_stacks, numbers, split_layer
from smelt.core.types import TensorMeta


@dataclass(frozen=True)
class Structure:
    """What ``read_structure`` found. ``main`` is the stack that holds the language model's layers."""

    stacks: tuple[StackInfo, ...]
    main: StackInfo | None
    roles: Mapping[str, Role]
    tied: bool
    vocab_keys: tuple[str, ...]
    per_layer_lists: tuple[str, ...]

    @property
    def config_depth_keys(self) -> tuple[str, ...]:
        """Dotted config keys that hold the depth of the main stack."""
        return self.main.depth_keys if self.main is not None else ()

    def layer_of(self, name: str) -> tuple[StackInfo, int] | None:
        """The stack and the layer a tensor belongs to, or None when it stands outside all layers."""
        found = split_layer(name, self._by_prefix)
        return (self._by_prefix[found[0]], int(found[1])) if found else None

    def rename_layer(self, name: str, index: int) -> str:
        """The name of the same tensor in layer ``index``; a tensor outside all layers keeps its name."""
        found = split_layer(name, self._by_prefix)
        if found is None:
            return name
        prefix, digits, rest = found
        width = len(digits) if digits.startswith("0") and len(digits) > 1 else 0
        return f"{prefix}{index:0{width}d}{rest}"

    def role_of(self, name: str) -> Role:
        """embedding, head, norm, router, layer (any other tensor in a layer) or other."""
        return self.roles[name]

    def side_of(self, name: str) -> Literal["pre", "post"] | None:
        """Whether a tensor outside all layers stands before or after them; None for one inside."""
        if self.layer_of(name) is not None:
            return None
        if comes_first(name, self.roles[name]) and name not in self._lone_norms:
            return "pre"
        return "post"

    @cached_property
    def _lone_norms(self) -> list[str]:
        """Norms outside the layers, all named after an embedding they are no part of: one is final."""
        norms = [name for name in self.with_role("norm") if self.layer_of(name) is None]
        if not all(comes_first(name, "norm") for name in norms):
            return []
        return [name for name in norms if "embed" not in ".".join(name.split(".")[:-2])]

    def with_role(self, role: Role) -> list[str]:
        """Names of all tensors with a role."""
        return [name for name, found in self.roles.items() if found == role]

    @cached_property
    def _by_prefix(self) -> dict[str, StackInfo]:
        return {stack.prefix: stack for stack in self.stacks}


def read_structure(tensors: Mapping[str, TensorMeta], config: Mapping[str, Any]) -> Structure:
    """Find layers, roles and ties of any model; no list of architectures is consulted.

    >>> from pathlib import Path
    >>> def meta(name, *shape): return TensorMeta(name, "BF16", shape, Path("x"), 0)
    >>> shapes = {"emb.weight": (32, 8), "net.0.mix.w": (8, 8), "net.1.mix.w": (8, 8), "out.weight": (32, 8)}
    >>> model = read_structure({n: meta(n, *s) for n, s in shapes.items()}, {"vocab_size": 32, "n_layer": 2})
    >>> model.main.prefix, model.layer_of("net.1.mix.w")[1], model.rename_layer("net.1.mix.w", 5)
    ('net.', 1, 'net.5.mix.w')
    >>> model.role_of("emb.weight"), model.role_of("out.weight"), model.config_depth_keys
    ('embedding', 'head', ('n_layer',))
    """
    depths = {entry.value + extra_layers(config, entry.parent) for entry in depth_entries(config)}
    depths |= {entry.value for entry in depth_entries(config)}
    sizes = {name: meta.nbytes for name, meta in tensors.items()}
    stacks = assign_depths(find_stacks(sizes, depths), config)
    main = _main_stack(stacks)
    prefixes = {stack.prefix for stack in stacks}
    vocab = vocab_entries(config)
    experts = expert_counts(config) or _experts_by_name(tensors)
    roles = assign_roles(
        tensors,
        lambda name: split_layer(name, prefixes) is not None,
        {entry.value for entry in vocab},
        experts,
    )
    return Structure(
        tuple(stacks),
        main,
        roles,
        _is_tied(tensors, roles, config),
        tuple(entry.path for entry in vocab),
        per_layer_lists(main, config) if main is not None else (),
    )


def _main_stack(stacks: list[StackInfo]) -> StackInfo | None:
    """The biggest stack the config counts: one that writes text before one that reads, sees or hears."""

    def rank(stack: StackInfo) -> tuple[bool, bool, bool, int]:
        parts = parts_of(stack.prefix)
        return (
            not parts & ASIDE,
            bool(stack.depth_keys),
            "decoder" in parts or "encoder" not in parts,
            stack.nbytes,
        )

    return max(stacks, key=rank, default=None)


def _experts_by_name(tensors: Mapping[str, TensorMeta]) -> set[int]:
    """How many experts the names count, for configs that do not say."""
    seen: dict[str, set[int]] = {}
    for name, meta in tensors.items():
        for before, digits, _ in numbers(name):
            if before.endswith("experts."):
                seen.setdefault(before, set()).add(int(digits))
        if "experts" in name and len(meta.shape) == 3:
            seen.setdefault(name, set()).update((0, meta.shape[0] - 1))
    return {max(found) + 1 for found in seen.values()}


def _is_tied(tensors: Mapping[str, TensorMeta], roles: Mapping[str, Role], config: Mapping[str, Any]) -> bool:
    """Whether the embedding also serves as head: there is none on disk, and the config does not object."""
    rows = {tensors[name].shape[0] for name, role in roles.items() if role == "embedding"}
    heads = [tensors[name].shape for name, role in roles.items() if role == "head"]
    if not rows or any(len(shape) == 2 and shape[0] in rows for shape in heads):
        return False
    nested = lookup(config, "text_config.tie_word_embeddings")
    return config.get("tie_word_embeddings", True if nested is None else nested) is not False
