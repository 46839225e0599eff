"""Elementwise expressions: a method's formula is traced once per tensor into a small program.

The same program runs as a fused compiled loop on a CPU (``compiled``) or operation by operation on numpy
and torch arrays (``reference``). Numbers that differ from tensor to tensor are lifted out of the structure,
so one compiled loop serves every tensor, weight and density. Over 400 lines: symbols, what can be done with them, and the
program they become are one notion, and a reader needs all three at once.

>>> base, model = Sym.input(0), Sym.input(1)
>>> program = Program.of([base + 0.5 * (model - base)])
>>> [instruction[0] for instruction in program.code]
['input', 'const', 'input', 'sub', 'mul', 'add']
>>> program.consts
(0.5,)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any, Literal, Union

import numpy as np

from smelt.core.errors import MethodError

Kind = Literal["num", "wide", "bool"]  # num: the accumulation dtype; wide: float64
Number = Union["Sym", float, int, bool, np.number]
Instruction = tuple[Any, ...]

LEAVES = frozenset({"input", "const", "row", "col", "uniform", "index"})
COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
#: what sums of scaled inputs are made of
PLAIN = frozenset({"input", "const", "add", "mul", "div"})


class Sym:
    """A value that is not known yet: one node of an expression."""

    __slots__ = ("args", "kind", "op")
    __array_ufunc__ = None  # numpy scalars defer to the reflected operators below
    __hash__ = object.__hash__

    def __init__(self, op: str, args: tuple[Any, ...], kind: Kind) -> None:
        self.op = op
        self.args = args
        self.kind = kind

    @staticmethod
    def input(position: int) -> Sym:
        """Element of the input at that position."""
        return Sym("input", (position,), "num")

    @staticmethod
    def lift(value: Number) -> Sym:
        """A Sym stays, a number becomes a constant."""
        if isinstance(value, Sym):
            return value
        if isinstance(value, bool | int | float | np.number | np.bool_):
            return Sym("const", (float(value),), "num")
        raise MethodError(
            f"cannot use {type(value).__name__} in an elementwise expression",
            expected="a number, or along_rows(...)/along_columns(...) of an array",
        )

    def _binary(self, op: str, other: Number, swap: bool = False) -> Sym:
        lifted = _zero_or(other) if op in COMPARISONS else Sym.lift(other)
        left, right = (lifted, self) if swap else (self, lifted)
        if "bool" in (left.kind, right.kind):
            raise MethodError(f"arithmetic {op!r} on a truth value", fix="use where(condition, a, b)")
        if left.kind != right.kind:
            left, right = wide(left), wide(right)
        return Sym(op, (left, right), "bool" if op in COMPARISONS else left.kind)

    def __add__(self, other: Number) -> Sym:
        return self._binary("add", other)

    def __radd__(self, other: Number) -> Sym:
        if isinstance(other, int) and other == 0:  # the start of the builtin sum()
            return self
        return self._binary("add", other, swap=True)

    def __sub__(self, other: Number) -> Sym:
        return self._binary("sub", other)

    def __rsub__(self, other: Number) -> Sym:
        return self._binary("sub", other, swap=True)

    def __mul__(self, other: Number) -> Sym:
        return self._binary("mul", other)

    def __rmul__(self, other: Number) -> Sym:
        return self._binary("mul", other, swap=True)

    def __truediv__(self, other: Number) -> Sym:
        return self._binary("div", other)

    def __rtruediv__(self, other: Number) -> Sym:
        return self._binary("div", other, swap=True)

    def _unary(self, op: str) -> Sym:
        if self.kind == "bool":
            raise MethodError(f"arithmetic {op!r} on a truth value", fix="use where(condition, a, b)")
        return Sym(op, (self,), self.kind)

    def __neg__(self) -> Sym:
        return self._unary("neg")

    def __abs__(self) -> Sym:
        return self._unary("abs")

    def __lt__(self, other: Number) -> Sym:
        return self._binary("lt", other)

    def __le__(self, other: Number) -> Sym:
        return self._binary("le", other)

    def __gt__(self, other: Number) -> Sym:
        return self._binary("gt", other)

    def __ge__(self, other: Number) -> Sym:
        return self._binary("ge", other)

    def __eq__(self, other: object) -> Sym:  # type: ignore[override]
        return self._binary("eq", other)  # type: ignore[arg-type]

    def __ne__(self, other: object) -> Sym:  # type: ignore[override]
        return self._binary("ne", other)  # type: ignore[arg-type]

    def _logic(self, op: str, other: Sym) -> Sym:
        if self.kind != "bool" or not isinstance(other, Sym) or other.kind != "bool":
            raise MethodError(f"logical {op!r} needs two truth values", fix="compare first")
        return Sym(op, (self, other), "bool")

    def __and__(self, other: Sym) -> Sym:
        return self._logic("and", other)

    def __or__(self, other: Sym) -> Sym:
        return self._logic("or", other)

    def __invert__(self) -> Sym:
        if self.kind != "bool":
            raise MethodError("logical 'not' needs a truth value", fix="compare first")
        return Sym("not", (self,), "bool")

    def __float__(self) -> float:
        raise MethodError(
            "a tensor's element has no value while the formula is traced",
            fix="use the functions of smelt.numerics.expr (sqrt, sign, where, ...) instead of those of math",
        )

    def __pow__(self, other: Number) -> Sym:
        raise MethodError("powers are not part of formulas", fix="write x * x, or sqrt(x)")

    def __bool__(self) -> bool:
        raise MethodError(
            "a tensor's element has no truth value while the formula is traced",
            fix="use where(condition, a, b) instead of if",
        )


def literal(value: float) -> Sym:
    """A number that belongs to the formula and never changes: one constant, however often it stands there."""
    return Sym("literal", (float(value),), "num")


def _zero_or(value: Number) -> Sym:
    """Zeros that are compared with or chosen are part of the formula; other numbers may change."""
    return literal(0.0) if isinstance(value, int | float) and value == 0 else Sym.lift(value)


def wide(value: Number) -> Sym:
    """The same value in float64, whatever the accumulation dtype."""
    value = Sym.lift(value)
    if value.kind == "bool":
        raise MethodError("a truth value is not a number", fix="use where(condition, 1.0, 0.0)")
    return value if value.kind == "wide" else Sym("wide", (value,), "wide")


def narrow(value: Sym) -> Sym:
    """Back from float64 to the accumulation dtype."""
    return value if value.kind == "num" else Sym("narrow", (value,), "num")


def where(condition: Sym | bool, yes: Number, no: Number) -> Sym:
    """``yes`` where the condition holds, else ``no``. A condition that is known already decides at once."""
    first, second = _zero_or(yes), _zero_or(no)
    if isinstance(condition, bool | np.bool_):
        return first if condition else second
    if not isinstance(condition, Sym) or condition.kind != "bool":
        raise MethodError(
            "the condition of where(...) is not a truth value", fix="compare first: where(x > 0, a, b)"
        )
    if first.kind != second.kind:
        first, second = wide(first), wide(second)
    return Sym("where", (condition, first, second), first.kind)


def sign(value: Sym) -> Sym:
    """-1, 0 or 1."""
    return value._unary("sign")


def sqrt(value: Sym) -> Sym:
    """Square root."""
    return value._unary("sqrt")


def minimum(left: Number, right: Number) -> Sym:
    """The smaller of two."""
    left, right = Sym.lift(left), Sym.lift(right)
    return where(left < right, left, right)


def maximum(left: Number, right: Number) -> Sym:
    """The larger of two."""
    left, right = Sym.lift(left), Sym.lift(right)
    return where(left > right, left, right)


def clip(value: Number, low: Number, high: Number) -> Sym:
    """The value kept within bounds."""
    return minimum(maximum(value, low), high)


def along_rows(values: np.ndarray) -> Sym:
    """One number per vector of the last dimension."""
    return _spread("row", values)


def along_columns(values: np.ndarray) -> Sym:
    """One number per position within a slice of dimension 0."""
    return _spread("col", values)


def _spread(op: str, values: np.ndarray) -> Sym:
    """A single number is a constant: a tensor of one dimension has one row, and one column."""
    flat = np.ascontiguousarray(values, np.float64).reshape(-1)
    return Sym.lift(float(flat[0])) if flat.size == 1 else Sym(op, (flat,), "num")


def shifted(start: Sym, change: Sym) -> Sym:
    """``start + change``, and ``start`` bit for bit where nothing changes: adding 0 would turn -0 into 0, taking it
    away does not."""
    return start - (literal(0.0) - change)


def uniform(key: int) -> Sym:
    """A random number in [0, 1) that depends on the 64-bit key and the element's index alone."""
    return Sym("uniform", (int(key),), "num")


def element_index() -> Sym:
    """The element's index in its tensor (or in the group a statistic spans), exact in float64."""
    return Sym("index", (), "wide")


def above_cut(values: Sym, value: float, last_tie: float) -> Sym:
    """Truth where values exceed the cut, or equal it and stand at an index of at most ``last_tie``.

    Costs one comparison: the engine splits blocks at the tie and shifts the threshold by one pattern.
    """
    return values > Sym("cut", (float(value), float(last_tie)), values.kind)


def total(values: Iterable[Sym]) -> Sym:
    """Sum from the first to the last; at least one."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def any_of(conditions: Iterable[Sym]) -> Sym:
    """Whether at least one holds."""
    first, *rest = conditions
    for condition in rest:
        first = first | condition
    return first


@dataclass(frozen=True)
class Program:
    """An expression as straight-line code plus the numbers lifted out of it.

    ``code`` holds (operation, argument...) with arguments as positions in ``code`` (leaves: slots).
    """

    code: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    consts: tuple[float, ...] = ()
    rows: tuple[np.ndarray, ...] = ()
    cols: tuple[np.ndarray, ...] = ()
    keys: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()  # the input positions that are read
    cuts: tuple[
        tuple[int, float, float], ...
    ] = ()  # (constant slot, value, index of the last equal element kept)

    @staticmethod
    def of(outputs: Sequence[Sym]) -> Program:
        """Trace expressions into one program, sharing what they share."""
        tracer = _Tracer()
        positions = tuple(tracer.visit(Sym.lift(output)) for output in outputs)
        return Program(
            tuple(tracer.code), positions, tuple(tracer.slots["const"]), tuple(tracer.slots["row"]),
            tuple(tracer.slots["col"]), tuple(tracer.slots["uniform"]), tuple(sorted(tracer.read)), tuple(tracer.cuts),
        )  # fmt: skip

    def pieces(self, start: int, size: int, acc: np.dtype) -> list[tuple[int, int, Program]]:
        """A block cut where ties end: (start, size, program with its thresholds settled) for each piece."""
        if not self.cuts:
            return [(start, size, self)]
        stop = start + size
        ends = sorted({int(last) + 1 for _, _, last in self.cuts if start <= last < stop - 1} | {stop})
        found = []
        for end in ends:
            found.append(
                (start, end - start, self._settled(tuple(start <= last for _, _, last in self.cuts), acc))
            )
            start = end
        return found

    def _settled(self, with_ties: tuple[bool, ...], acc: np.dtype) -> Program:
        known = self._settled_programs.get((with_ties, acc))
        if known is None:
            consts = list(self.consts)
            for (slot, value, _), ties in zip(self.cuts, with_ties, strict=True):
                consts[slot] = float(np.nextafter(acc.type(value), acc.type(-np.inf))) if ties else value
            known = self._settled_programs[(with_ties, acc)] = replace(self, consts=tuple(consts), cuts=())
        return known

    @cached_property
    def _settled_programs(self) -> dict[Any, Program]:
        return {}

    @cached_property
    def structure(self) -> tuple[Any, ...]:
        """What a compiled loop depends on: everything but the lifted numbers."""
        return (self.code, self.outputs)

    @cached_property
    def kernels(self) -> dict[Any, Any]:
        """Compiled loops of this program, kept here by the backend that made them."""
        return {}

    @cached_property
    def const_array(self) -> np.ndarray:
        """The lifted constants as float64."""
        return np.asarray(self.consts or (0.0,), np.float64)

    @cached_property
    def key_array(self) -> np.ndarray:
        """The random keys as uint32 pairs."""
        pairs = [(key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF) for key in self.keys] or [(0, 0)]
        return np.asarray(pairs, np.uint32)

    @cached_property
    def lands_on_ties(self) -> bool:
        """Whether results often lie right between two bf16 numbers, where float32 cannot tell the side.

        Inputs are whole numbers of units, or nearly all of them; so results are whole numbers of units over the
        numbers' common denominator. With an even one such as 2 or 10 many are half a unit off, with an odd one such
        as 5 none (but those of inputs much smaller than the result); with a large one it hardly matters.
        """
        if self.rows or self.cols or self._divides_by_odd_integers:
            return False
        factors = self._factors()
        whole = (
            n for n in range(1, 20) if all(abs(value * n - round(value * n)) < 1e-9 for value in factors)
        )
        denominator = next(whole, 0)
        return denominator == 1 or (denominator > 0 and denominator % 2 == 0)

    @property
    def _divides_by_odd_integers(self) -> bool:
        """Whether this is a sum of inputs times integers, divided by odd integers: such a quotient is hardly ever
        half of a unit (an average of three bf16 numbers is a third of a unit off, or none). Sums of bf16 numbers
        are exact in float32 unless they are very far apart; differences of quotients need not be."""
        divisors = [self.code[args[1]] for op, *args in self.code if op == "div"]
        return (
            bool(divisors)
            and all(op in PLAIN for op, *_ in self.code)
            and all(op == "const" and self.consts[slot[0]] % 2 == 1 for op, *slot in divisors)
            and all(value == round(value) for value in self._factors())
        )

    def _factors(self) -> list[float]:
        """Constants that numbers are made of, not only compared with."""
        todo, seen = list(self.outputs), set(self.outputs)
        found = []
        while todo:
            op, *args = self.code[todo.pop()]
            if op == "const":
                found.append(self.consts[args[0]])
            elif op not in LEAVES and op not in COMPARISONS:
                fresh = {
                    argument for argument in (args[1:] if op == "where" else args) if argument not in seen
                }
                seen |= fresh
                todo += fresh
        return [value for value in found if isfinite(value)]

    @property
    def by_row(self) -> bool:
        """Whether a coefficient depends on the position in the row grid."""
        return bool(self.rows or self.cols)


class _Tracer:
    """Numbers the nodes of an expression in evaluation order; equal nodes become one."""

    def __init__(self) -> None:
        self.code: list[Instruction] = []
        self.read: set[int] = set()
        self.slots: dict[str, list[Any]] = {"const": [], "row": [], "col": [], "uniform": []}
        self.literals: dict[float, int] = {}
        self.cuts: list[tuple[int, float, float]] = []
        self._seen: dict[int, int] = {}
        self._known: dict[Instruction, int] = {}
        self._alive: list[Sym] = []  # ids stay unique only while nodes live

    def visit(self, root: Sym) -> int:
        """The position of a node, after those of all it needs; no recursion, as sums may be hundreds deep."""
        todo = [root]
        while todo:
            node = todo[-1]
            waiting = [part for part in node.args if isinstance(part, Sym) and id(part) not in self._seen]
            if waiting:
                todo += reversed(waiting)
            elif id(todo.pop()) not in self._seen:
                self._alive.append(node)
                self._seen[id(node)] = self._emit(self._instruction(node))
        return self._seen[id(root)]

    def _instruction(self, node: Sym) -> Instruction:
        if node.op == "input":
            self.read.add(node.args[0])
            return ("input", node.args[0])
        if node.op == "cut":
            self.cuts.append((len(self.slots["const"]), *node.args))
            self.slots["const"].append(node.args[0])
            return ("const", len(self.slots["const"]) - 1)
        if node.op == "literal":
            if node.args[0] not in self.literals:
                self.literals[node.args[0]] = len(self.slots["const"])
                self.slots["const"].append(node.args[0])
            return ("const", self.literals[node.args[0]])
        if node.op in self.slots:
            slots = self.slots[node.op]
            if node.op == "uniform":
                return self._uniform(slots, node.args[0])
            slots.append(node.args[0])
            return (node.op, len(slots) - 1)
        return (node.op, *(self._seen[id(argument)] for argument in node.args))

    @staticmethod
    def _uniform(keys: list[int], key: int) -> Instruction:
        """A draw: the slot of its key, and the first slot that has the same lower half."""
        if key not in keys:
            keys.append(key)
        halves = [known & 0xFFFFFFFF for known in keys]
        return ("uniform", keys.index(key), halves.index(key & 0xFFFFFFFF))

    def _emit(self, instruction: Instruction) -> int:
        found = self._known.get(instruction)
        if found is None:
            self.code.append(instruction)
            found = self._known[instruction] = len(self.code) - 1
        return found
