"""Layer stacks found from tensor names alone: the outermost number in a dotted path counts layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")
_SUFFIX = re.compile(r"(?<=[A-Za-z]_)(\d+)(?=\.)")
_BARE_LEAVES = frozenset({"", "weight", "bias"})


@dataclass(frozen=True, slots=True)
class StackInfo:
    """Layers that share a prefix: ``model.layers.`` with the indices that hold tensors.

    ``depth_keys`` are the dotted config keys that say how many there are.
    """

    prefix: str
    indices: tuple[int, ...]
    nbytes: int
    depth_keys: tuple[str, ...] = field(default=())

    @property
    def count(self) -> int:
        """How many layers the indices imply; a layer in between may hold no tensors at all."""
        return self.indices[-1] + 1


def numbers(name: str) -> Iterator[tuple[str, str, str]]:
    """Every number in a name, outermost first, as (before, digits, after).

    >>> list(numbers("h.3.experts.7.w"))
    [('h.', '3', '.experts.7.w'), ('h.3.experts.', '7', '.w')]
    """
    for match in _NUMBER.finditer("." + name):
        at, end = match.span(1)
        yield name[: at - 1], match[1], name[end - 1 :]


def _suffix_numbers(name: str) -> Iterator[tuple[str, str, str]]:
    """Numbers that end a word instead of standing alone: ``block_3.attn.w``."""
    for match in _SUFFIX.finditer(name):
        yield name[: match.start()], match.group(), name[match.end() :]


@dataclass
class _Group:
    indices: set[int] = field(default_factory=set)
    nbytes: int = 0
    structured: bool = False

    def add(self, digits: str, after: str, nbytes: int) -> None:
        self.indices.add(int(digits))
        self.nbytes += nbytes
        self.structured |= after[1:] not in _BARE_LEAVES

    def info(self, prefix: str) -> StackInfo:
        return StackInfo(prefix, tuple(sorted(self.indices)), self.nbytes)


def find_stacks(sizes: Mapping[str, int], depths: Collection[int]) -> list[StackInfo]:
    """Stacks among tensors given as name -> bytes; ``depths`` are layer counts the config mentions.

    Numbered bare parameters (``projector.0.weight``, ``projector.2.weight``) are a sequence of modules and
    no stack of layers, unless the config counts them.
    """
    for finder in (numbers, _suffix_numbers):
        groups: dict[str, _Group] = {}
        for name, nbytes in sizes.items():
            first = next(finder(name), None)
            if first is not None:
                groups.setdefault(first[0], _Group()).add(first[1], first[2], nbytes)
        stacks = [group.info(prefix) for prefix, group in groups.items() if group.structured]
        stacks = _descend(stacks, sizes, depths) if finder is numbers else stacks
        if stacks:
            return sorted(stacks, key=lambda stack: -stack.nbytes)
    return []


def _descend(stacks: list[StackInfo], sizes: Mapping[str, int], depths: Collection[int]) -> list[StackInfo]:
    """Look one number further in where a stack only wraps the layers: ``0.model.layers.5.w``."""
    unbroken = [stack for stack in stacks if stack.count == len(stack.indices)]
    if not depths or any(stack.count in depths for stack in unbroken):
        return stacks
    groups: dict[str, _Group] = {}
    for name, nbytes in sizes.items():
        for before, digits, after in list(numbers(name))[1:]:
            groups.setdefault(before, _Group()).add(digits, after, nbytes)
    inner = [group.info(prefix) for prefix, group in groups.items() if group.structured]
    inner = [stack for stack in inner if stack.count in depths and stack.nbytes > sum(sizes.values()) // 4]
    if len(inner) != 1:
        return stacks
    outer = next(stack for stack in stacks if inner[0].prefix.startswith(stack.prefix))
    rest = [replace(stack) for stack in stacks if stack is not outer]
    return [inner[0], *rest]


def split_layer(name: str, prefixes: Collection[str]) -> tuple[str, str, str] | None:
    """A name as (stack prefix, digits, rest), or None when it lies in no stack."""
    for finder in (numbers, _suffix_numbers):
        for before, digits, after in finder(name):
            if before in prefixes:
                return before, digits, after
    return None
