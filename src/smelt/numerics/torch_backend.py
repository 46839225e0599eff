"""Programs on torch devices: what a GPU runs. The only module of this room that imports torch.

On the CPU device every result has the bytes of ``NumpyBackend``. On a GPU the elementwise part is the same
arithmetic, while long sums run in an order that suits the device, fixed for each segment: results agree within
one rounding, and do not depend on blocks or threads. Apple's mps has no float64: there numbers are float32.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from smelt.core.errors import PlanError, did_you_mean
from smelt.numerics.blocks import LANES, Block
from smelt.numerics.counter import uniform_24
from smelt.numerics.expr import Program
from smelt.numerics.reference import (
    NumpyLeaves,
    add_columns,
    exact_only_near_boundaries,
    interpret,
    interpret_exactly,
    segment_sums,
)  # fmt: skip
from smelt.numerics.rounding import EXPONENT, NEAR

Tensor = torch.Tensor

_STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_LARGEST = (1 << 63) - 1
#: tables of coefficients a thread keeps on its device
_TABLES = 32
#: columns below which sums along dimension 0 run on the host
_FEW_COLUMNS = 256


def resolve_device(name: str) -> str:
    """The device that is meant by ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``xpu``, ``xpu:0`` or ``mps``.

    ``auto`` is the first CUDA or XPU device, else the CPU. A device that is not there is refused.

    >>> resolve_device("cpu")
    'cpu'
    """
    kind, colon, number = name.partition(":")
    if name == "auto":
        return next((f"{kind}:0" for kind in ("cuda", "xpu") if _count(kind)), "cpu")
    if kind not in ("cpu", "cuda", "xpu", "mps"):
        fix = did_you_mean(kind, ["auto", "cpu", "cuda", "mps", "xpu"])
        raise PlanError(f"unknown device {name!r}", where="--device", fix=fix)
    if colon and (kind in ("cpu", "mps") or not number.isdecimal()):
        raise PlanError(
            f"unknown device {name!r}",
            where="--device",
            expected=f"{kind}, or cuda:0, cuda:1, xpu:0 and so on",
        )
    if int(number or 0) >= _count(kind):
        raise _absent(name, kind)
    return f"{kind}:{int(number or 0)}" if kind in ("cuda", "xpu") else kind


def _absent(name: str, kind: str) -> PlanError:
    found = _count(kind)
    there = f"{found} {kind} device{'s' if found != 1 else ''}" if found else f"no {kind} device"
    fix = f"use {kind}:{found - 1} or lower" if found else "use cpu, or a torch build for your device"
    return PlanError(
        f"{name} is not there: torch {torch.__version__} sees {there}", where="--device", fix=fix
    )


def _count(kind: str) -> int:
    """Devices of a kind that torch sees."""
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    if kind == "xpu":
        return torch.xpu.device_count() if hasattr(torch, "xpu") and torch.xpu.is_available() else 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


class Lane:
    """What one thread owns on a device: its stream, its staging buffers, the tables it works with."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_host = device.type in ("cpu", "mps")  # where long sums run
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._staging: dict[Any, Tensor] = {}
        self._tables: dict[int, tuple[np.ndarray, Tensor]] = {}

    def real(self, acc: np.dtype) -> torch.dtype:
        """The device's dtype for an accumulation dtype."""
        return torch.float64 if acc == np.float64 and self.device.type != "mps" else torch.float32

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Work on this lane's stream; when it ends, staging buffers are free again."""
        with torch.inference_mode():
            if self.stream is None:
                yield
                return
            with torch.cuda.stream(self.stream):
                yield
            self.stream.synchronize()

    def load(self, slot: Any, raw: np.ndarray, dtype: str) -> Tensor:
        """Stored elements on the device, in their own dtype."""
        source = torch.from_numpy(np.ascontiguousarray(raw).view(np.uint8))
        if self.stream is not None:
            staged = self._staged(slot, source.numel())
            staged.copy_(source)
            source = staged.to(self.device, non_blocking=True)
        return source.to(self.device).view(_STORED[dtype])

    def store(self, values: Tensor, out: np.ndarray) -> None:
        """Elements of the device into a numpy array of the same storage."""
        found = values.contiguous().view(torch.uint8)
        if self.stream is not None:
            staged = self._staged("out", found.numel())
            staged.copy_(found, non_blocking=True)
            self.stream.synchronize()
            found = staged
        np.copyto(out.view(np.uint8), found.cpu().numpy())

    def table(self, values: np.ndarray) -> Tensor:
        """A table of coefficients, uploaded once."""
        known = self._tables.get(id(values))
        if known is None or known[0] is not values:
            if len(self._tables) >= _TABLES:
                self._tables.clear()
            uploaded = torch.from_numpy(values).to(self.real(np.dtype(np.float64))).to(self.device)
            known = self._tables[id(values)] = (values, uploaded)
        return known[1]

    def _staged(self, slot: Any, size: int) -> Tensor:
        """Page-locked memory of a slot; it only ever grows."""
        buffer = self._staging.get(slot)
        if buffer is None or buffer.numel() < size:
            buffer = self._staging[slot] = torch.empty(max(size, 64), dtype=torch.uint8, pin_memory=True)
        return buffer[:size]


class _HostMath:
    """Torch's functions on the CPU, but for square roots: its vector library does not round them correctly."""

    where, abs, sign = torch.where, torch.abs, torch.sign

    @staticmethod
    def sqrt(values: Tensor) -> Tensor:
        with np.errstate(invalid="ignore"):
            return torch.as_tensor(np.sqrt(values.numpy()))


class _TorchLeaves(NumpyLeaves):
    """Leaves of a program over one block as tensors on a device."""

    def __init__(
        self, lane: Lane, program: Program, block: Block, acc: np.dtype, inputs: dict[int, Tensor]
    ) -> None:
        super().__init__(program, block, acc)
        self.xp = _HostMath if lane.device.type == "cpu" else torch
        self.lane, self.inputs = lane, inputs
        self._indices: Tensor | None = None

    def indices(self) -> Tensor:
        if self._indices is None:
            start = self.block.grid.start
            self._indices = torch.arange(
                start, start + self.block.count, dtype=torch.int64, device=self.lane.device
            )
        return self._indices

    def draws(self, key: int) -> Tensor:
        if self.lane.device.type == "mps":  # no 64-bit integer products there
            bits = uniform_24(NumpyLeaves.indices(self), key).astype(np.int32)
            return torch.from_numpy(bits).to(self.lane.device)
        return uniform_24(self.indices(), key)

    def to(self, values: Any, kind: str) -> Tensor:
        dtype = self.lane.real(np.dtype(np.float64) if kind == "wide" else self.acc)
        if isinstance(values, Tensor):
            return values.to(dtype)
        return torch.full((), float(values), dtype=dtype, device=self.lane.device)

    def input(self, position: int) -> Tensor:
        return self.inputs[position].to(self.lane.real(self.acc))

    def table(self, values: np.ndarray, positions: Tensor) -> Tensor:
        return self.lane.table(values)[positions].to(self.lane.real(self.acc))


class TorchBackend:
    """Programs over blocks on one torch device; every thread has a lane of its own."""

    def __init__(self, device: str = "cpu") -> None:
        self.name = f"torch {device}"
        self.device = torch.device(device)
        self._local = threading.local()

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """The calling thread's lane, at work."""
        lane: Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            lane = self._local.lane = Lane(self.device)
        with lane.busy():
            yield lane

    def combine(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray, dtype: str) -> None:
        with self._lane() as lane:
            stored = _combined(lane, program, block, acc, dtype)
            lane.store(stored.expand(block.count), out[: block.count])

    def sums(self, program: Program, block: Block, acc: np.dtype, cuts: np.ndarray) -> np.ndarray:
        with self._lane() as lane:
            outputs = _outputs(lane, program, block, acc)
            if lane.on_host:
                return segment_sums([_host(values) for values in outputs], cuts)
            return _tree_sums(torch.stack([values.double() for values in outputs]), cuts)

    def column_sums(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray) -> None:
        length = block.grid.column_length
        with self._lane() as lane:
            outputs = _outputs(lane, program, block, acc)
            if lane.on_host or length < _FEW_COLUMNS:
                add_columns([_host(values) for values in outputs], block, out)
                return
            kept = torch.from_numpy(out).to(lane.device)
            stacked = torch.stack([values.double() for values in outputs])
            position, start = 0, block.grid.start % length
            while (
                position < block.count
            ):  # one slice of dimension 0 at a time, in the order of the other backends
                size = min(length - start, block.count - position)
                kept[:, start : start + size] += stacked[:, position : position + size]
                position, start = position + size, 0
            out[:] = _host(kept)

    def bracket(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int, shift: int, bins: int
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        high = min(high, _LARGEST)
        with self._lane() as lane:
            patterns = _patterns(lane, program, block, acc)
            inside = patterns[(patterns >= low) & (patterns <= high)]
            where = (inside - low) >> shift
            counts = torch.bincount(where, minlength=bins)
            least = torch.full((bins,), _LARGEST, dtype=torch.int64, device=patterns.device)
            most = torch.zeros(bins, dtype=torch.int64, device=patterns.device)
            least.scatter_reduce_(0, where, inside, "amin")
            most.scatter_reduce_(0, where, inside, "amax")
            above = int((patterns > high).sum())
            return above, _host(counts), _host(least).astype(np.uint64), _host(most).astype(np.uint64)

    def collect(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int
    ) -> tuple[int, np.ndarray]:
        high = min(high, _LARGEST)
        with self._lane() as lane:
            patterns = _patterns(lane, program, block, acc)
            inside = patterns[(patterns >= low) & (patterns <= high)]
            return int((patterns > high).sum()), _host(inside).astype(np.uint64)

    def nonfinite(self, raw: np.ndarray, dtype: str) -> bool:
        """On the host, where the elements already are."""
        mask, unsigned = EXPONENT[dtype]
        bits = torch.from_numpy(raw.view(f"i{unsigned.itemsize}"))
        return bool(((bits & mask) == mask).any())


def _leaves(lane: Lane, program: Program, block: Block, *accs: np.dtype) -> list[_TorchLeaves]:
    """Leaves in one or more accumulation dtypes; inputs are uploaded once."""
    inputs = {}
    for position in program.inputs:
        raw = block.inputs[position]
        assert raw is not None
        inputs[position] = lane.load(position, raw[: block.count], block.dtypes[position])
    return [_TorchLeaves(lane, program, block, acc, inputs) for acc in accs]


def _outputs(lane: Lane, program: Program, block: Block, acc: np.dtype) -> list[Tensor]:
    (leaves,) = _leaves(lane, program, block, acc)
    return [result.expand(block.count) for result in interpret(leaves)]


def _combined(lane: Lane, program: Program, block: Block, acc: np.dtype, dtype: str) -> Tensor:
    """Output 0 in its stored form."""
    if lane.device.type == "mps":
        (leaves,) = _leaves(lane, program, block, acc)
        return _encode(interpret(leaves)[0], dtype)
    plain, exact = interpret_exactly(*_leaves(lane, program, block, acc, np.dtype(np.float64)))
    stored = _encode(exact.double(), dtype)
    if not exact_only_near_boundaries(program, acc, dtype):
        return stored
    single = plain.float()
    near = ((single.view(torch.int32) + (0x8000 + NEAR)) & 0xFFFF) <= 2 * NEAR
    return torch.where(near, stored, _encode(single, dtype))


def _patterns(lane: Lane, program: Program, block: Block, acc: np.dtype) -> Tensor:
    """Bit patterns of output 0, which must not be negative, as int64."""
    (values,) = _outputs(lane, program, block, acc)
    values = values.contiguous()
    if acc == np.float32:
        return values.view(torch.int32).long() & 0xFFFFFFFF
    if values.dtype == torch.float32:  # mps: patterns of the width that is asked for
        values = values.cpu().double()
    return values.view(torch.int64)


def _host(values: Tensor) -> np.ndarray:
    return values.contiguous().cpu().numpy()


def _encode(values: Tensor, dtype: str) -> Tensor:
    """Numbers as stored elements, rounded once to nearest even: torch rounds float64 twice on its way to 16 bits."""
    if dtype not in ("BF16", "F16"):
        return values.to(_STORED[dtype])
    single = values.float()
    bits = single.view(torch.int32)
    if values.dtype == torch.float64:
        bits = _off_ties(values, single, bits, *((0xFFFF, 0x8000) if dtype == "BF16" else (1, 0)))
    if dtype == "F16":
        return bits.view(torch.float32).to(torch.float16)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    stored = torch.where(single.isnan(), (bits >> 16) | 0x40, rounded)
    return stored.to(torch.int16).view(torch.bfloat16)


def _off_ties(values: Tensor, single: Tensor, bits: Tensor, mask: int, trap: int) -> Tensor:
    """Patterns moved to the neighbour on the exact value's side where rounding to float32 fell into the trap."""
    back = single.double()
    lost = ((bits & mask) == trap) & (back != values) & back.isfinite()
    return bits + lost * torch.where(values.abs() > back.abs(), 1, -1).to(torch.int32)


def _tree_sums(outputs: Tensor, cuts: np.ndarray) -> np.ndarray:
    """Sums per segment by halving, the same whatever else is in the block: [segments, outputs]."""
    lengths = np.diff(cuts)
    sums = torch.zeros((len(lengths), len(outputs)), dtype=torch.float64, device=outputs.device)
    for length in np.unique(lengths).tolist():
        chosen = np.flatnonzero(lengths == length)
        first = torch.from_numpy(cuts[chosen]).to(outputs.device)
        parts = outputs[
            :, first[:, None] + torch.arange(length, device=outputs.device)
        ]  # [outputs, segments, length]
        width = max(1 << (length - 1).bit_length(), LANES)
        parts = torch.nn.functional.pad(parts, (0, width - length))
        while parts.shape[-1] > 1:
            half = parts.shape[-1] // 2
            parts = parts[..., :half] + parts[..., half:]
        sums[torch.from_numpy(chosen).to(outputs.device)] = parts[..., 0].T
    return _host(sums)
