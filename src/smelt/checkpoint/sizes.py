"""Sizes as people write them (``5GB``, ``500MB``, mergekit's ``5B``) and as people read them."""

from __future__ import annotations

import re

from smelt.core.errors import OutputError

_UNITS = {
    "": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_MERGEKIT = re.compile(r"\s*(-?\d+)\s*([kKmMbB]?)\s*")


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``5GB`` (powers of 1000) or ``2GiB`` (powers of 1024).

    >>> parse_size("5GB"), parse_size("2GiB"), parse_size("1.5 MB"), parse_size(4096)
    (5000000000, 2147483648, 1500000, 4096)
    """
    match = _SIZE.fullmatch(str(text))
    unit = match.group(2).upper() if match else "?"
    if match is None or unit not in _UNITS:
        raise OutputError(f"{text!r} is not a size", expected="a number and a unit", fix=_size_advice(unit))
    size = (
        float(match.group(1)) * _UNITS[unit] if "." in match.group(1) else int(match.group(1)) * _UNITS[unit]
    )
    if size < 1:
        raise OutputError(f"{text!r} is no room for anything", expected="at least one byte, e.g. 5GB")
    return int(size)


def _size_advice(unit: str) -> str:
    if unit == "B":
        return "B could mean bytes or billions; write 5GB, or a bare number of bytes"
    return "write e.g. 5GB, 500MB or 2GiB"


def parse_mergekit_size(text: str | int) -> int:
    """Bytes of mergekit's ``--out-shard-size N[k|M|B]``; B is a billion. Zero or less means unlimited: 0.

    >>> parse_mergekit_size("5B"), parse_mergekit_size("10M"), parse_mergekit_size("-1")
    (5000000000, 10000000, 0)
    """
    match = _MERGEKIT.fullmatch(str(text))
    if match is None:
        raise OutputError(
            f"{text!r} is not a shard size", expected="a whole number, then k, M or B", fix="e.g. 5B"
        )
    return max(0, int(match.group(1)) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match.group(2).lower()])


def show_bytes(count: float) -> str:
    """A byte count for people, in powers of 1000.

    >>> show_bytes(999), show_bytes(2_470_000_000), show_bytes(5_000_000)
    ('999 B', '2.47 GB', '5.00 MB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
