"""A pickle machine that can only build plain data and call what it is given names for.

It knows the opcodes that saved tensors need and no others, imports nothing and runs nothing but the
functions of its allow-list, so a hostile file can do no more than be refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

#: pickles longer than this are not read
MAX_PICKLE = 256 * 2**20
_MARK = object()
_PLAIN = (str, int, float, bytes, type(None))
_BROKEN = (
    IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, MemoryError,
    struct.error,
)  # fmt: skip


class PickleRefused(Exception):
    """A pickle that asks for more than plain data, or is broken."""


class Global:
    """A name a pickle refers to, and the function that stands for it here, if it may be called."""

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[..., Any] | None) -> None:
        self.name = name
        self.call = call


class Machine:
    """Reads one pickle from ``data`` at ``position``; afterwards ``position`` is the byte behind it.

    >>> import pickle
    >>> Machine(pickle.dumps({"a": [1, 2.5, None]}, 2), 0, {}, None).load()
    {'a': [1, 2.5, None]}
    """

    def __init__(
        self,
        data: Any,
        position: int,
        allowed: Mapping[str, Callable[..., Any] | None],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.data = data
        self.position = position
        self.end = min(len(data), position + MAX_PICKLE)
        self.allowed = allowed
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The object, or PickleRefused."""
        try:
            while (opcode := self.data[self.position]) != _STOP:
                if self.position >= self.end:
                    raise PickleRefused(f"holds a pickle of more than {MAX_PICKLE} bytes")
                self.position += 1
                step = _STEPS.get(opcode)
                if step is None:
                    raise PickleRefused(f"uses pickle opcode 0x{opcode:02x}, which no saved tensor needs")
                step(self)
            self.position += 1
            return self.pop()
        except _BROKEN as error:
            raise PickleRefused(f"is not a sound pickle near byte {self.position}") from error

    def pop(self) -> Any:
        """The topmost value."""
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value is needed")
        return value

    def pop_mark(self) -> list[Any]:
        """All values above the topmost mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            if at <= 0:
                raise ValueError("no mark")
            at -= 1
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def pop_tuple(self, count: int) -> tuple[Any, ...]:
        """The topmost values, in the order they were pushed."""
        return tuple([self.pop() for _ in range(count)][::-1])

    def take(self, count: int) -> bytes:
        """The next bytes of the stream."""
        if count < 0 or self.position + count > self.end:
            raise ValueError("ends in the middle of a value")
        piece = bytes(self.data[self.position : self.position + count])
        self.position += count
        return piece

    def number(self, form: str) -> Any:
        """The next number of the stream."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """The stream up to a line feed."""
        end = self.data.find(b"\n", self.position)
        line = self.take(end - self.position)
        self.position += 1
        return line.decode()


def _refer(machine: Machine, module: Any, name: Any) -> None:
    full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?"
    if full not in machine.allowed:
        raise PickleRefused(f"refers to {full[:200]!r}, which no tensor needs; it was not run")
    machine.stack.append(Global(full, machine.allowed[full]))


def _global(machine: Machine) -> None:
    module = machine.line()
    _refer(machine, module, machine.line())


def _stack_global(machine: Machine) -> None:
    _refer(machine, *machine.pop_tuple(2))


def _reduce(machine: Machine) -> None:
    function, arguments = machine.pop_tuple(2)
    if not isinstance(function, Global) or function.call is None or not isinstance(arguments, tuple):
        name = function.name if isinstance(function, Global) else type(function).__name__
        raise PickleRefused(f"calls {name!r}, which is no function for tensors; it was not run")
    machine.stack.append(function.call(*arguments))


def _build(machine: Machine) -> None:
    """State given to an object: attributes of a dict are of no interest here; nothing else takes any."""
    machine.pop()
    if not isinstance(machine.stack[-1], dict):
        raise PickleRefused("gives state to something other than a dict; it was not set")


def _persistent(machine: Machine) -> None:
    if machine.persistent is None:
        raise PickleRefused("refers to storage where there is none")
    machine.stack.append(machine.persistent(machine.pop()))


def _extend(machine: Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise ValueError("appends to something other than a list")
    target.extend(values)


def _set_items(machine: Machine, pairs: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict):
        raise ValueError("sets items of something other than a dict")
    target.update(plain_items(zip(pairs[::2], pairs[1::2], strict=True)))


def plain_items(pairs: Any) -> dict[Any, Any]:
    """A dict of pairs. Keys that are not plain become text: hashing a deep tuple can exhaust the stack."""
    return {key if isinstance(key, _PLAIN) else f"<{type(key).__name__}>": value for key, value in pairs}


def _memoize(machine: Machine, number: int) -> None:
    machine.memo[number] = machine.stack[-1]


def _push(machine: Machine, value: Any) -> None:
    machine.stack.append(value)


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


_STOP = 0x2E
_STEPS: dict[int, Callable[[Machine], None]] = {
    0x80: lambda m: m.number("B"),  # PROTO
    0x95: lambda m: m.number("<Q"),  # FRAME
    # stack
    0x28: lambda m: _push(m, _MARK),
    0x30: lambda m: m.pop(),
    0x32: lambda m: _push(m, m.stack[-1]),
    # memo
    0x71: lambda m: _memoize(m, m.number("B")),
    0x72: lambda m: _memoize(m, m.number("<I")),
    0x94: lambda m: _memoize(m, len(m.memo)),
    0x68: lambda m: _push(m, m.memo[m.number("B")]),
    0x6A: lambda m: _push(m, m.memo[m.number("<I")]),
    # scalars
    0x4E: lambda m: _push(m, None),
    0x88: lambda m: _push(m, True),
    0x89: lambda m: _push(m, False),
    0x4B: lambda m: _push(m, m.number("B")),
    0x4D: lambda m: _push(m, m.number("<H")),
    0x4A: lambda m: _push(m, m.number("<i")),
    0x8A: lambda m: _push(m, _integer(m.take(m.number("B")))),
    0x8B: lambda m: _push(m, _integer(m.take(m.number("<i")))),
    0x47: lambda m: _push(m, m.number(">d")),
    # text and bytes
    0x8C: lambda m: _push(m, m.take(m.number("B")).decode()),
    0x58: lambda m: _push(m, m.take(m.number("<I")).decode()),
    0x8D: lambda m: _push(m, m.take(m.number("<Q")).decode()),
    0x55: lambda m: _push(m, m.take(m.number("B")).decode("latin-1")),
    0x54: lambda m: _push(m, m.take(m.number("<i")).decode("latin-1")),
    0x43: lambda m: _push(m, m.take(m.number("B"))),
    0x42: lambda m: _push(m, m.take(m.number("<I"))),
    0x8E: lambda m: _push(m, m.take(m.number("<Q"))),
    # containers
    0x29: lambda m: _push(m, ()),
    0x85: lambda m: _push(m, m.pop_tuple(1)),
    0x86: lambda m: _push(m, m.pop_tuple(2)),
    0x87: lambda m: _push(m, m.pop_tuple(3)),
    0x74: lambda m: _push(m, tuple(m.pop_mark())),
    0x5D: lambda m: _push(m, []),
    0x6C: lambda m: _push(m, m.pop_mark()),
    0x61: lambda m: _extend(m, [m.pop()]),
    0x65: lambda m: _extend(m, m.pop_mark()),
    0x7D: lambda m: _push(m, {}),
    0x73: lambda m: _set_items(m, list(m.pop_tuple(2))),
    0x75: lambda m: _set_items(m, m.pop_mark()),
    # names and objects
    0x63: _global,
    0x93: _stack_global,
    0x52: _reduce,
    0x62: _build,
    0x51: _persistent,
}
