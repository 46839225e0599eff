"""Read, fingerprint and look for NaN and Inf in one compiled call; fingerprint and write in another.

A block passes through several steps, each too short to be worth Python's lock: here the lock is given up once.
The fingerprint of a piece is XXH3 with 64 bits, as of the ``xxhash`` package, in vectors of eight lanes that
LLVM fits to the processor. Nothing here raises: what goes wrong is left to the plain path, which says why. What
another module may change (the size of a piece) is an argument: Numba's cache looks at this file alone.
"""
# Calls of intrinsics are typed by Numba, not by their Python signatures.
# mypy: disable-error-code="call-arg,operator"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from smelt.checkpoint.digest import PIECE, TensorDigest
from smelt.core.jit import quick_loading

#: pieces up to this length have another formula; ``xxhash`` takes them
SHORT = 240
SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
).copy()
_P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_P64 = (
    0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5,
)  # fmt: skip
_START = np.array([_P32[2], *_P64[:4], _P32[1], _P64[4], _P32[0]], np.uint64)
_STRIPES, _STRIPE = 16, 64
_BLOCK = _STRIPES * _STRIPE
_LANES = ir.VectorType(ir.IntType(64), 8)
_SWAP = ir.Constant(ir.VectorType(ir.IntType(32), 8), [1, 0, 3, 2, 5, 4, 7, 6])


def _words(offset: int, count: int = 8) -> list[int]:
    return [int(word) for word in np.frombuffer(SECRET.tobytes(), "<u8", count, offset)]


def _lanes(values: list[int]) -> ir.Constant:
    return ir.Constant(_LANES, values)


def _pointer(builder, address):
    return builder.inttoptr(address, _LANES.as_pointer())


def _load(builder, address):
    return builder.load(_pointer(builder, address), align=1)


def _mix_stripe(builder, acc, data, secret):
    """acc + (data with neighbours swapped) + low half * high half of (data ^ secret), lane by lane."""
    key = builder.xor(data, secret)
    low = builder.and_(key, _lanes([0xFFFFFFFF] * 8))
    high = builder.lshr(key, _lanes([32] * 8))
    swapped = builder.shuffle_vector(data, ir.Constant(_LANES, ir.Undefined), _SWAP)
    return builder.add(builder.add(acc, swapped), builder.mul(low, high))


@intrinsic
def _take_block(typing_context, data, acc):
    """All stripes of one block, then the scramble."""

    def generate(context, builder, signature, arguments):
        data, acc = arguments
        lanes = _load(builder, acc)
        for stripe in range(_STRIPES):
            at = builder.add(data, ir.Constant(data.type, stripe * _STRIPE))
            lanes = _mix_stripe(builder, lanes, _load(builder, at), _lanes(_words(8 * stripe)))
        lanes = builder.xor(lanes, builder.lshr(lanes, _lanes([47] * 8)))
        lanes = builder.xor(lanes, _lanes(_words(128)))
        lanes = builder.mul(lanes, _lanes([_P32[0]] * 8))
        builder.store(lanes, _pointer(builder, acc), align=1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp), generate


@intrinsic
def _take_stripe(typing_context, data, acc, secret):
    """One stripe with the secret that lies at an address."""

    def generate(context, builder, signature, arguments):
        data, acc, secret = arguments
        lanes = _mix_stripe(builder, _load(builder, acc), _load(builder, data), _load(builder, secret))
        builder.store(lanes, _pointer(builder, acc), align=1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp), generate


@intrinsic
def _fold(typing_context, first, second):
    """Both halves of the 128-bit product, xored."""

    def generate(context, builder, signature, arguments):
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        high = builder.lshr(product, ir.Constant(wide, 64))
        return builder.trunc(builder.xor(product, high), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def _byteswap(typing_context, value):
    def generate(context, builder, signature, arguments):
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), generate


_MERGE = np.array(_words(11), np.uint64)
_U = np.uint64


@njit(nogil=True)
def _xxh3(data, length, acc, secret):
    """XXH3 of ``length`` > 240 bytes at an address, seed 0; ``acc`` is room for eight words."""
    acc[:] = _START
    lanes, key = acc.ctypes.data, secret.ctypes.data
    blocks = (length - 1) // _BLOCK
    for block in range(blocks):
        _take_block(types.uintp(data + block * _BLOCK), lanes)
    rest = data + blocks * _BLOCK
    for stripe in range((length - 1 - blocks * _BLOCK) // _STRIPE):
        _take_stripe(types.uintp(rest + stripe * _STRIPE), lanes, types.uintp(key + 8 * stripe))
    _take_stripe(types.uintp(data + length - _STRIPE), lanes, types.uintp(key + 121))
    total = _U(length) * _U(_P64[0])
    for pair in range(4):
        total += _fold(acc[2 * pair] ^ _MERGE[2 * pair], acc[2 * pair + 1] ^ _MERGE[2 * pair + 1])
    total = _U(total ^ (total >> _U(37))) * _U(0x165667919E3779F9)
    return total ^ (total >> _U(32))


def _compiled(signature: str) -> Callable[[Any], Any]:
    """Compiled when this module is imported, or found in Numba's cache; each time anew where it can keep none."""

    def decorate(function: Any) -> Any:
        with quick_loading():
            try:
                return njit(signature, nogil=True, cache=True)(function)
            except RuntimeError:  # neither this folder nor the user's can be written to
                return njit(signature, nogil=True)(function)

    return decorate


_pread = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))
_pwrite = types.ExternalFunction("pwrite", types.intp(types.int32, types.uintp, types.uintp, types.int64))


@njit(nogil=True)
def _any_masked(bits, mask):
    """Whether all bits of ``mask`` are set in any word; no early exit, so that it vectorises in the words' width."""
    word = bits.dtype.type
    most = word(0)
    for i in range(bits.shape[0]):
        most = max(most, word(bits[i] & word(mask)))
    return most == word(mask)


@njit(nogil=True)
def _any_broken(raw, mask, width):
    """Whether an element of ``width`` bytes is NaN or Inf."""
    if width == 2:
        return _any_masked(raw.view(np.uint16), mask)
    if width == 4:
        return _any_masked(raw.view(np.uint32), mask)
    return width == 8 and _any_masked(raw.view(np.uint64), mask)


@_compiled("int64(int32, int64, uint8[::1], uint64[::1], uint64, int64, uint8[::1], int64)")
def fetch(fd, offset, out, pieces, mask, width, secret, piece_size):
    """Fill ``out`` from a file; fingerprint its pieces where ``pieces`` has room, look for ``mask`` where ``width``
    is not 0. 0: done; 1: done, and NaN or Inf is there; -1: not all could be read."""
    acc = np.empty(8, np.uint64)
    broken = 0
    size = out.shape[0]
    for piece in range((size + piece_size - 1) // piece_size):
        begin = piece * piece_size
        end = min(begin + piece_size, size)
        done = begin
        while done < end:
            got = _pread(fd, types.uintp(out.ctypes.data + done), types.uintp(end - done), offset + done)
            if got <= 0:
                return -1
            done += got
        if pieces.shape[0]:
            pieces[piece] = _byteswap(_xxh3(out.ctypes.data + begin, end - begin, acc, secret))
        if width and _any_broken(out[begin:end], mask, width):
            broken = 1
    return broken


@_compiled("int64(int32, int64, uint8[::1], uint64[::1], uint8[::1], int64)")
def store(fd, offset, data, pieces, secret, piece_size):
    """Fingerprint every piece of ``data`` and write it to a file. 0: done; -1: not all was taken."""
    acc = np.empty(8, np.uint64)
    size = data.shape[0]
    for piece in range((size + piece_size - 1) // piece_size):
        begin = piece * piece_size
        length = min(piece_size, size - begin)
        pieces[piece] = _byteswap(_xxh3(data.ctypes.data + begin, length, acc, secret))
    done = 0
    while done < size:
        put = _pwrite(fd, types.uintp(data.ctypes.data + done), types.uintp(size - done), offset + done)
        if put <= 0:
            return -1
        done += put
    return 0


_NOWHERE = np.empty(0, np.uint64)


def _room(digest: TensorDigest, start: int, size: int) -> np.ndarray | None:
    """Where the fingerprints of a span go; None when it is not made of whole pieces of the long formula."""
    end = start + size
    tail = size % PIECE
    if start % PIECE or not size or (tail and (end != digest.nbytes or tail <= SHORT)):
        return None
    return digest.slots(start // PIECE, -(-size // PIECE))


class SwiftReader:
    """Reads spans of one tensor that lies densely in a file, fingerprinting and checking as it is told."""

    def __init__(
        self, fd: int, offset: int, digest: TensorDigest | None, finite: tuple[int, int] | None
    ) -> None:
        self._fd, self._offset, self._digest = fd, offset, digest
        mask, self._width = finite or (0, 0)
        self._mask = np.uint64(mask)

    def read(self, start: int, out: np.ndarray) -> int:
        """0: done; 1: done, and NaN or Inf is there; -1: to be done the plain way."""
        pieces: np.ndarray | None = _NOWHERE
        if self._digest is not None:
            pieces = _room(self._digest, start, out.size)
        if pieces is None:
            return -1
        place = self._offset + start
        status = int(fetch(self._fd, place, out, pieces, self._mask, self._width, SECRET, PIECE))
        if status >= 0 and self._digest is not None:
            self._digest.mark(start // PIECE, pieces.size)
        return status


def write(fd: int, offset: int, data: np.ndarray, digest: TensorDigest, start: int) -> bool:
    """Write a span of a tensor and fingerprint it; False when it is to be done the plain way."""
    pieces = _room(digest, start, data.size) if data.flags.writeable else None
    if pieces is None or store(fd, offset + start, data, pieces, SECRET, PIECE):
        return False
    digest.mark(start // PIECE, pieces.size)
    return True
