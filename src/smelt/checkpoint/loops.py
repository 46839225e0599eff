"""What is compiled for reading and writing: read, fingerprint and look for NaN and Inf; fingerprint and write; and
``carry``, which does all of it, and a merge's formula in between, for many blocks in one call.

Imported only when it must be compiled (see ``swift``). The fingerprint of a piece is XXH3 with 64 bits, as of the
``xxhash`` package, in vectors of eight lanes that LLVM fits to the processor. Nothing here raises: what goes wrong
is left to the plain path, which says why.
"""
# Calls of intrinsics are typed by Numba, not by their Python signatures.
# mypy: disable-error-code="call-arg,operator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from smelt.checkpoint.digest import PIECE
from smelt.checkpoint.swift import (
    BLOCK,
    BUFFER,
    COLUMN_LENGTH,
    CONSTS,
    CUTS,
    FD,
    GRAIN,
    HEAD,
    INPUTS,
    ITEM,
    KERNEL,
    MASK,
    OFFSET,
    OUT,
    OUTPUTS,
    POINTERS,
    ROOM,
    ROW_LENGTH,
    SECRET,
    SEEN,
    SLOTS,
    SUMS,
    WORDS,
)  # fmt: skip
from smelt.core.native import intrinsics

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


def _everywhere(builder, word):
    """A vector with one word in every lane."""
    alone = builder.insert_element(ir.Constant(_LANES, ir.Undefined), word, ir.Constant(ir.IntType(32), 0))
    nothing = ir.Constant(_LANES, ir.Undefined)
    return builder.shuffle_vector(alone, nothing, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8))


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


def _exponents(builder, seen, data, mask, least):
    """What was seen, and whether an element's exponent is all ones: the sum then sets the bit above it, which is the
    sign's, and never carries further; so it does not matter how wide the elements are."""
    return builder.or_(seen, builder.add(builder.and_(data, mask), least))


@intrinsic
def _take_block(typing_context, data, acc, mask, least):
    """All stripes of one block, then the scramble. What was seen lies behind the lanes."""

    def generate(context, builder, signature, arguments):
        data, acc, *words = arguments
        behind = builder.add(acc, ir.Constant(acc.type, _STRIPE))
        lanes, seen = _load(builder, acc), _load(builder, behind)
        mask, least = (_everywhere(builder, word) for word in words)
        for stripe in range(_STRIPES):
            at = builder.add(data, ir.Constant(data.type, stripe * _STRIPE))
            found = _load(builder, at)
            lanes = _mix_stripe(builder, lanes, found, _lanes(_words(8 * stripe)))
            seen = _exponents(builder, seen, found, mask, least)
        builder.store(seen, _pointer(builder, behind), align=1)
        lanes = builder.xor(lanes, builder.lshr(lanes, _lanes([47] * 8)))
        lanes = builder.xor(lanes, _lanes(_words(128)))
        lanes = builder.mul(lanes, _lanes([_P32[0]] * 8))
        builder.store(lanes, _pointer(builder, acc), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def _take_stripe(typing_context, data, acc, secret, mask, least):
    """One stripe with the secret that lies at an address."""

    def generate(context, builder, signature, arguments):
        data, acc, secret, *words = arguments
        found, behind = _load(builder, data), builder.add(acc, ir.Constant(acc.type, _STRIPE))
        lanes = _mix_stripe(builder, _load(builder, acc), found, _load(builder, secret))
        builder.store(lanes, _pointer(builder, acc), align=1)
        seen = _exponents(
            builder, _load(builder, behind), found, *(_everywhere(builder, word) for word in words)
        )
        builder.store(seen, _pointer(builder, behind), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, types.int64), generate


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


_BARE: Any = {"_nrt": False}  # nothing is allocated, so nothing is counted
_X = intrinsics()
array_at, stack_array, address_of, call_at = _X.array_at, _X.stack_array, _X.address_of, _X.call_at
_MERGE = np.array(_words(11), np.uint64)
_U = np.uint64
_pread: Any = types.ExternalFunction("pread", types.int64(types.int32, types.int64, types.int64, types.int64))
_pwrite: Any = types.ExternalFunction(
    "pwrite", types.int64(types.int32, types.int64, types.int64, types.int64)
)


@njit(**_BARE)
def xxh3(data, length, mask, acc):
    """XXH3 of ``length`` > 240 bytes at an address, seed 0; ``acc`` is the address of 16 words to work with. ``broken``
    tells then whether an element had all bits of ``mask`` set, which is the exponents in 64 bits (or 0)."""
    words = array_at(acc, 16, np.uint64)
    for lane in range(8):
        words[lane], words[8 + lane] = _START[lane], 0
    key, least = address_of(SECRET), _least(mask)
    blocks = (length - 1) // _BLOCK
    for block in range(blocks):
        _take_block(data + block * _BLOCK, acc, mask, least)
    rest = data + blocks * _BLOCK
    for stripe in range((length - 1 - blocks * _BLOCK) // _STRIPE):
        _take_stripe(rest + stripe * _STRIPE, acc, key + 8 * stripe, mask, least)
    _take_stripe(data + length - _STRIPE, acc, key + 121, mask, least)
    total = _U(length) * _U(_P64[0])
    for pair in range(4):
        total += _fold(words[2 * pair] ^ _MERGE[2 * pair], words[2 * pair + 1] ^ _MERGE[2 * pair + 1])
    total = _U(total ^ (total >> _U(37))) * _U(0x165667919E3779F9)
    return total ^ (total >> _U(32))


@njit(**_BARE)
def _least(mask):
    """The lowest bit of every element's exponent."""
    return mask & ~(mask << 1)


@njit(**_BARE)
def broken(acc, mask):
    """Whether ``xxh3`` met NaN or Inf."""
    seen = array_at(acc, 16, np.uint64)
    found = _U(0)
    for lane in range(8):
        found |= seen[8 + lane]
    return (found & _U(mask + _least(mask))) != _U(0)


@njit(**_BARE)
def _inspect(here, length, slots, piece, mask):
    """Fingerprint a piece at an address to its slot and look for ``mask`` (see ``xxh3``) if these are not 0; whether it
    was there."""
    if not slots and not mask:
        return False
    acc = address_of(stack_array(16, np.uint64))
    digest = xxh3(here, length, mask, acc)
    if slots:
        array_at(slots, piece + 1, np.uint64)[piece] = _byteswap(digest)
    return mask != 0 and broken(acc, mask)


@njit(**_BARE)
def fetch(fd, offset, size, out, advance, slots, mask):
    """Read a span of a file to an address, piece by piece, each ``advance`` bytes after the last (0: all to one
    place), and inspect the pieces. 0: done; 1: done, and NaN or Inf is there; -1: not all could be read."""
    status = 0
    for piece in range((size + PIECE - 1) // PIECE):
        begin, here = piece * PIECE, out + piece * advance
        length = min(PIECE, size - begin)
        done = 0
        while done < length:
            got = _pread(np.int32(fd), here + done, length - done, offset + begin + done)
            if got <= 0:
                return -1
            done += got
        if _inspect(here, length, slots, piece, mask):
            status = 1
    return status


@njit(**_BARE)
def _look(here, size, slots, mask):
    """Inspect a span that lies at an address; whether NaN or Inf is there."""
    found = False
    for piece in range((size + PIECE - 1) // PIECE):
        begin = piece * PIECE
        found |= _inspect(here + begin, min(PIECE, size - begin), slots, piece, mask)
    return found


@njit(**_BARE)
def _write(fd, offset, data, size):
    """Write what lies at an address to a file; whether all was taken."""
    done = 0
    while done < size:
        put = _pwrite(np.int32(fd), data + done, size - done, offset + done)
        if put <= 0:
            return False
        done += put
    return True


@njit(**_BARE)
def store(fd, offset, data, size, slots):
    """Fingerprint every piece of what lies at an address and write it to a file. 0: done; -1: not all was taken."""
    _look(data, size, slots, 0)
    return 0 if _write(fd, offset, data, size) else -1


@njit(**_BARE)
def _slots(port, first_byte):
    return port[SLOTS] + 8 * (first_byte // PIECE) if port[SLOTS] else 0


@njit(**_BARE)
def _take(port, at, count, place):
    """Have elements of one input at ``place``, in its buffer or where they are seen; whether they are all there and
    finite."""
    first, size = at * port[ITEM], count * port[ITEM]
    slots = _slots(port, first)
    if port[SEEN]:
        place[0] = port[SEEN] + first
        return not _look(place[0], size, slots, port[MASK])
    place[0] = port[BUFFER]
    return fetch(port[FD], port[OFFSET] + first, size, port[BUFFER], PIECE, slots, port[MASK]) == 0


@njit(**_BARE)
def _give(port, at, count, place):
    """Elements of the output from where they are to its file; whether it took them."""
    return _write(port[FD], port[OFFSET] + at * port[ITEM], place, count * port[ITEM])


@njit(**_BARE)
def carry(task, start, stop):
    """Blocks of one tensor from ``start`` to ``stop``: read every input, run the kernel, write what it makes or keep
    its sums (``swift`` names the words of a task). How far it came: less than ``stop`` where a block is to be done the
    plain way."""
    head = array_at(task, HEAD + WORDS * (1 << 16), np.int64)
    block, inputs, kernel, sums = head[BLOCK], head[INPUTS], head[KERNEL], head[SUMS]
    out = head[OUT : OUT + WORDS]
    pointers = array_at(head[POINTERS], inputs, np.int64)
    cuts = array_at(head[CUTS], 2 + block // GRAIN, np.int64)
    row = 0
    extra = stack_array(2, np.int64)
    source = out[BUFFER]  # where the elements from ``given`` on lie until they are written together
    at = given = start
    while at < stop:
        size = min(block, stop - at)
        for number in range(inputs):
            port = head[HEAD + WORDS * number : HEAD + WORDS * (number + 1)]
            if not _take(port, at, size, pointers[number : number + 1]):
                return at if sums or _give(out, given, at - given, source) else given
        if not kernel and at == given:
            source = pointers[0]
        target = source + (at - given) * out[ITEM]
        if kernel:
            if sums:
                grains = (size + GRAIN - 1) // GRAIN
                for grain in range(grains):
                    cuts[grain] = grain * GRAIN
                cuts[grains] = size
                extra[0], extra[1] = head[CUTS], grains + 1
                target = sums + 8 * row * head[OUTPUTS]
                row += grains
            failed = call_at(kernel, (
                head[POINTERS], head[CONSTS], head[CONSTS + 1], head[CONSTS + 2], head[CONSTS + 3],
                size, at, head[ROW_LENGTH], head[COLUMN_LENGTH], target, address_of(extra),
            ))  # fmt: skip
            if failed:
                return at if sums or _give(out, given, at - given, source) else given
        at += size
        if not sums:
            _look(target, size * out[ITEM], _slots(out, (at - size) * out[ITEM]), 0)
            if at == stop or at - given + block > out[ROOM]:
                if not _give(out, given, at - given, source):
                    return given
                given = at
    return at
