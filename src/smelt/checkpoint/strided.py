"""Bytes of a tensor that is stored with strides, delivered as if it were dense."""

from __future__ import annotations

import mmap

import numpy as np

from smelt.core.types import ITEMSIZE, TensorMeta


def read_strided(mapped: mmap.mmap, meta: TensorMeta, start: int, out: memoryview) -> None:
    """Fill ``out`` with bytes [start, start + len(out)) of the dense row-major form of ``meta``."""
    size = ITEMSIZE[meta.dtype]
    assert meta.strides is not None
    steps = [stride * size for stride in meta.strides]
    view = np.ndarray(meta.shape, f"u{size}", mapped, meta.offset, steps)
    first, last = start // size, -(-(start + len(out)) // size)
    values = np.empty(last - first, view.dtype)
    _gather(view, first, values)
    out[:] = values.view(np.uint8).data[start - first * size :][: len(out)]


def _gather(view: np.ndarray, first: int, out: np.ndarray) -> None:
    """Copy ``len(out)`` elements of ``view``, in row-major order from number ``first``, into ``out``."""
    if view.ndim < 2:
        out[:] = np.atleast_1d(view)[first : first + len(out)]
        return
    inner = view[0].size
    row, skip = divmod(first, inner)
    if skip:  # the end of a row that was begun
        head = min(inner - skip, len(out))
        _gather(view[row], skip, out[:head])
        out, row = out[head:], row + 1
    whole = len(out) // inner
    out[: whole * inner].reshape(whole, *view.shape[1:])[...] = view[row : row + whole]
    if len(out) % inner:
        _gather(view[row + whole], 0, out[whole * inner :])
