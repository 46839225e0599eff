"""Random numbers as a pure function of (seed, tensor name, model, element): the same on every machine.

A 64-bit key is drawn from the names by BLAKE2; the element's index is mixed with it by two rounds of a
32-bit multiply-xorshift permutation. Nothing is shared, so order, threads and block size cannot matter.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

#: constants of the two mixing rounds (odd multipliers, xorshift distances 16, 15, 16)
MULTIPLY_1 = 0x7FEB352D
MULTIPLY_2 = 0x846CA68B
STRIDE = 0x9E3779B1
MASK = 0xFFFFFFFF


def stream_key(seed: int, *names: object) -> int:
    """The 64-bit key of one random stream.

    >>> stream_key(0, "model.norm.weight", 1) == stream_key(0, "model.norm.weight", 1)
    True
    >>> stream_key(0, "model.norm.weight", 1) == stream_key(0, "model.norm.weight", 2)
    False
    """
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def model_key(seed: int, name: str, model: int) -> int:
    """The key of one model's stream for a tensor. Its lower half is that of the tensor, so that the first of the two
    mixing rounds is shared by all models."""
    return stream_key(seed, name) & MASK | stream_key(seed, name, model) & ~MASK


def mix(value: Any) -> Any:
    """One mixing round on integers held in 64-bit arrays (numpy or torch), modulo 2**32."""
    value = value ^ (value >> 16)
    value = (value * MULTIPLY_1) & MASK
    value = value ^ (value >> 15)
    value = (value * MULTIPLY_2) & MASK
    return value ^ (value >> 16)


def uniform_24(index: Any, key: int) -> Any:
    """24 random bits per index (int64 arrays, numpy or torch): divide by 2**24 for a number in [0, 1)."""
    low, high = index & MASK, index >> 32
    first = mix((low * STRIDE + (key & MASK)) & MASK)
    second = mix((first ^ ((high * STRIDE + (key >> 32 & MASK)) & MASK)) & MASK)
    return second >> 8
