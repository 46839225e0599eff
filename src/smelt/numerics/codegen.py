"""Writes the source of a fused loop for one program structure: plain Python text that Numba compiles.

The text depends on the structure only (operations, dtypes, kind of loop), never on numbers, so it can be
cached on disk and shared by every tensor of that form. Over 400 lines: every kind of loop is built from the same
statements, and apart they would have to agree on names across files.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent
from typing import Any

from smelt.numerics.blocks import LANES
from smelt.numerics.expr import PLAIN
from smelt.numerics.rounding import NEAR

_SYMBOLS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "and": "&", "or": "|",
}  # fmt: skip
#: what every kernel is called with: addresses, and where in the tensor the block lies
ARGUMENTS = (
    "inputs_at", "consts_at", "keys_at", "rows_at", "cols_at", "count", "start", "row_length", "column_length",
    "out_at", "extra_at",
)  # fmt: skip
_STORED = {"BF16": "uint16", "F16": "uint16", "F32": "float32", "F64": "float64"}
_TILE = 2048
#: elements that are done again together where one of them lies near a boundary
GROUP = 32
#: elements a lane takes before its sum goes back to memory
TURNS = 4


@dataclass(frozen=True, slots=True)
class Flavour:
    """All that the text of a loop depends on."""

    kind: str  # combine | sums | columns | bracket | count | collect
    structure: tuple[Any, ...]
    dtypes: tuple[str, ...]
    inputs: tuple[int, ...]
    acc: str
    out: str
    rows: int
    cols: int
    near: bool = False  # float64 only near rounding boundaries


def pattern_type(acc: str) -> str:
    """Bit patterns of the accumulation dtype."""
    return "uint32" if acc == "float32" else "uint64"


def generate(flavour: Flavour) -> str:
    """The text of one kernel."""
    body = {
        "combine": _combine, "sums": _sums, "columns": _columns, "bracket": _bracket, "collect": _collect, "count": _count,
    }[flavour.kind](flavour)  # fmt: skip
    return (
        f"def kernel({', '.join(ARGUMENTS)}):\n{indent(_entry(flavour) + _prologue(flavour) + body, '    ')}"
    )


def _entry(flavour: Flavour) -> str:
    """The tables behind the addresses that a kernel is called with. Lengths are those of slices to come: nothing
    looks at them."""
    pattern = f"np.{pattern_type(flavour.acc)}"
    lines = [f"inputs = array_at(inputs_at, {max(len(flavour.inputs), 1)}, np.int64)"]
    lines += [
        f"in{position} = array_at(inputs[{place}], count, np.{_STORED[dtype]})"
        for place, (position, dtype) in enumerate(zip(flavour.inputs, flavour.dtypes, strict=True))
    ]
    lines += ["consts = array_at(consts_at, count, np.float64)", "keys = array_at(keys_at, count, np.uint32)"]
    for name, number in (("rows", flavour.rows), ("cols", flavour.cols)):
        lines += [f"{name} = array_at({name}_at, {number}, np.int64)"] if number else []
        lines += [f"{name}{i} = array_at({name}[{i}], column_length, np.float64)" for i in range(number)]
    extra = {"sums": 2, "bracket": 5, "count": 1, "collect": 3}.get(flavour.kind, 0)
    lines += [f"extra = array_at(extra_at, {extra}, np.int64)"] if extra else []
    counts = "array_at({}, count, np.int64)"
    lines += {
        "combine": [f"out = array_at(out_at, count, np.{_STORED.get(flavour.out, 'float64')})"],
        "sums": [
            "out = array_at(out_at, count, np.float64)",
            "cuts = array_at(extra[0], extra[1], np.int64)",
        ],
        "columns": [
            f"out{k} = array_at(out_at + {8 * k} * column_length, column_length, np.float64)"
            for k in range(len(flavour.structure[1]))
        ],
        "bracket": [
            f"counts = {counts.format('out_at')}",
            f"least, most = array_at(extra[0], count, {pattern}), array_at(extra[1], count, {pattern})",
            f"low, high, shift = {pattern}(extra[2]), {pattern}(extra[3]), {pattern}(extra[4])",
        ],
        "count": [f"pair = {counts.format('out_at')}", f"low = {pattern}(extra[0])"],
        "collect": [
            f"found = array_at(out_at, count + 1, {pattern})",
            "above = array_at(extra[0], 1, np.int64)",
            f"low, high = {pattern}(extra[1]), {pattern}(extra[2])",
        ],
    }[flavour.kind]
    return "".join(f"{line}\n" for line in lines)


def _prologue(flavour: Flavour) -> str:
    """Constants and keys loaded once, before the loop."""
    code, _ = flavour.structure
    lines = []
    for op, *arguments in code:
        if op == "const":
            slot = arguments[0]
            lines.append(f"w{slot} = consts[{slot}]")
            lines.append(f"c{slot} = np.{flavour.acc}(w{slot})")
            if flavour.near:
                lines.append(f"r{slot} = np.float32(1.0 / w{slot})")
        elif op == "uniform":
            slot = arguments[0]
            lines.append(f"ka{slot} = keys[{2 * slot}]")
            lines.append(f"kb{slot} = keys[{2 * slot + 1}]")
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def _statements(flavour: Flavour, index: str) -> str:
    """One statement per operation for the element at block position ``index``."""
    code, _ = flavour.structure
    dtype_of = dict(zip(flavour.inputs, flavour.dtypes, strict=True))
    lines = []
    for position, (op, *args) in enumerate(code):
        text = _operation(op, args, code, flavour.acc, dtype_of, index)
        if text:
            lines.append(f"v{position} = {text}")
    return "\n".join(lines) + "\n"


def _quick_statements(flavour: Flavour, index: str) -> str:
    """As ``_statements``, with products instead of quotients: the last bit of a result that is trusted only far from
    a rounding boundary does not matter. Only in plain sums, where nothing makes that bit larger."""
    code, _ = flavour.structure
    text = _statements(flavour, index)
    if not all(op in PLAIN for op, *_ in code):
        return text
    for op, *args in code:
        if op == "div" and code[args[1]][0] == "const":
            slot = code[args[1]][1]
            text = text.replace(f" / c{slot}\n", f" * r{slot}\n")
    return text


def _operation(
    op: str, args: list[Any], code: tuple[Any, ...], acc: str, dtype_of: dict[int, str], index: str
) -> str:
    def value(position: int) -> str:
        leaf = code[position]
        return f"c{leaf[1]}" if leaf[0] == "const" else f"v{position}"

    match op:
        case "const":
            return ""
        case "input":
            return f"np.{acc}({_load(dtype_of[args[0]], f'x{args[0]}[{index}]')})"
        case "row":
            return f"np.{acc}(rows{args[0]}[row])"
        case "col":
            return f"np.{acc}(z{args[0]}[{index}])"
        case "uniform":
            draw = f"uniform24(np.uint32(lower + np.uint32({index})), ka{args[1]}, kh{args[0]})"
            return f"np.{acc}({draw}) * np.{acc}({2.0**-24!r})"
        case "index":
            return f"np.float64(first + {index})"
        case "wide":
            leaf = code[args[0]]
            return f"w{leaf[1]}" if leaf[0] == "const" else f"np.float64(v{args[0]})"
        case "narrow":
            return f"np.{acc}({value(args[0])})"
        case "where":
            return f"{value(args[1])} if {value(args[0])} else {value(args[2])}"
        case "neg":
            return f"-{value(args[0])}"
        case "abs" | "sqrt":
            return f"{'abs' if op == 'abs' else 'np.sqrt'}({value(args[0])})"
        case "sign":
            return f"np.sign({value(args[0])})"
        case "not":
            return f"not {value(args[0])}"
    return f"{value(args[0])} {_SYMBOLS[op]} {value(args[1])}"


def _exact_statements(flavour: Flavour, index: str) -> str:
    """Every number once more in float64 as ``u``; truth values and signs stay those of the accumulation dtype,
    as statistics have seen them."""
    code, _ = flavour.structure
    lines = []
    for position, (op, *args) in enumerate(code):
        text = _exact(position, op, args, code, index)
        if text:
            lines.append(f"u{position} = {text}")
    return "\n".join(lines) + "\n"


def _exact(position: int, op: str, args: list[Any], code: tuple[Any, ...], index: str) -> str:
    def value(position: int) -> str:
        leaf = code[position]
        return f"w{leaf[1]}" if leaf[0] == "const" else f"u{position}"

    match op:
        case "const" | "not" | "and" | "or" | "lt" | "le" | "gt" | "ge" | "eq" | "ne":
            return ""
        case "input" | "uniform" | "sign" | "index":
            return f"np.float64(v{position})"
        case "row":
            return f"rows{args[0]}[row]"
        case "col":
            return f"z{args[0]}[{index}]"
        case "wide" | "narrow":
            return value(args[0])
        case "where":
            truth = f"v{args[0]}"
            return f"{value(args[1])} if {truth} else {value(args[2])}"
        case "neg":
            return f"-{value(args[0])}"
        case "abs" | "sqrt":
            return f"{'abs' if op == 'abs' else 'np.sqrt'}({value(args[0])})"
    return f"{value(args[0])} {_SYMBOLS[op]} {value(args[1])}"


def _load(dtype: str, element: str) -> str:
    return {"BF16": f"bf16_to_single({element})", "F16": f"half_to_single({element})"}.get(dtype, element)


def _store(flavour: Flavour) -> str:
    """Output 0, in float64, rounded once."""
    code, outputs = flavour.structure
    op, *args = code[outputs[0]]
    value = f"w{args[0]}" if op == "const" else f"{'u' if flavour.acc == 'float32' else 'v'}{outputs[0]}"
    if flavour.out == "BF16":
        return f"double_to_bf16({value})"
    return f"double_to_half({value})" if flavour.out == "F16" else f"np.{_STORED[flavour.out]}({value})"


def _result(flavour: Flavour, output: int = 0) -> str:
    code, outputs = flavour.structure
    leaf = code[outputs[output]]
    return f"c{leaf[1]}" if leaf[0] == "const" else f"v{outputs[output]}"


def _views(flavour: Flavour, first: str, last: str, out: str = "") -> str:
    """Slices of the arrays: a loop over 0..n is one that LLVM knows to be contiguous."""
    lines = [f"x{position} = in{position}[{first}:{last}]" for position in flavour.inputs]
    lines.append(f"first = start + {first}")
    keys = [args[0] for op, *args in flavour.structure[0] if op == "uniform"]
    if keys:  # a block never crosses a multiple of 2**32, so the upper half of the index is one for all of it
        lines.append("lower = np.uint32(first)")
    lines += [f"kh{slot} = high_offset(first, kb{slot})" for slot in keys]
    if out:
        lines.append(f"y = {out}[{first}:{last}]")
    return "".join(f"{line}\n" for line in lines)


def _places(flavour: Flavour, at: str) -> str:
    """Row and column of the element where a run begins."""
    lines = ""
    if flavour.rows:
        lines += f"row = (start + {at}) // row_length\n"
    if flavour.cols:
        lines += f"column = (start + {at}) % column_length\n"
        lines += "".join(f"z{i} = cols{i}[column:]\n" for i in range(flavour.cols))
    return lines


def _runs(flavour: Flavour, inner: str, first: str, last: str, out: str) -> str:
    """Loops over elements ``i`` of runs; a run ends at a row when a coefficient belongs to a row or column."""
    if not flavour.rows and not flavour.cols:
        return (
            _views(flavour, first, last, out) + f"for i in range({last} - {first}):\n{indent(inner, '    ')}"
        )
    length = "row_length" if flavour.rows else "column_length"  # a row length divides the column length
    return (
        f"at = {first}\n"
        f"while at < {last}:\n"
        f"    stop = min({last}, ((start + at) // {length} + 1) * {length} - start)\n"
        + indent(
            _views(flavour, "at", "stop", out)
            + _places(flavour, "at")
            + f"for i in range(stop - at):\n{indent(inner, '    ')}at = stop\n",
            "    ",
        )
    )


def _combine(flavour: Flavour) -> str:
    if flavour.near:
        return _combine_near(flavour)
    inner = _statements(flavour, "i")
    if flavour.acc == "float32":
        inner += _exact_statements(flavour, "i")
    inner += f"y[i] = {_store(flavour)}\n"
    return _runs(flavour, inner, "0", "count", "out") + "return 0\n"


def _combine_near(flavour: Flavour) -> str:
    """Groups of elements in float32; a group that holds a result too close to a rounding boundary once more,
    and there those results in float64 (see ``rounding.near_boundary``)."""
    shifted = f"np.uint32(bits32(r) + np.uint32({0x8000 + NEAR}))"
    distance = f"np.uint32({shifted} & np.uint32(0xFFFF))"
    result = f"r = np.float32({_result(flavour)})\n"
    rounded = (
        f"np.uint16({shifted} >> np.uint32(16))" if _rounds_by_shifting(flavour) else "single_to_bf16(r)"
    )
    quick = (
        f"{_quick_statements(flavour, 'i')}{result}y[i] = {rounded}\n"
        f"near = np.uint32(1) if {distance} <= np.uint32({2 * NEAR}) else near\n"
    )
    exact = (
        f"{_statements(flavour, 'i')}{_exact_statements(flavour, 'i')}{result}"
        f"y[i] = {_store(flavour)} if {distance} <= np.uint32({2 * NEAR}) else single_to_bf16(r)\n"
    )
    group = (
        _views(flavour, "at", "stop", "out")
        + "".join(f"z{i} = cols{i}[column + at - begin:]\n" for i in range(flavour.cols))
        + f"near = np.uint32(1)\nif stop - at == {GROUP}:\n    near = np.uint32(0)\n"
        + f"    for i in range({GROUP}):\n{indent(quick, '        ')}"
        + f"if near != np.uint32(0):\n    for i in range(stop - at):\n{indent(exact, '        ')}at = stop\n"
    )
    return _groups(flavour, group) + "return 0\n"


def _rounds_by_shifting(flavour: Flavour) -> bool:
    """Whether a result far from a boundary is rounded by adding half of a unit to its bits, and a little more. Not
    where a NaN could have bits in its lower half, which would carry over: bf16 has none, nor has what the processor
    makes itself."""
    code, outputs = flavour.structure
    arithmetic = all(op in PLAIN for op, *_ in code) and code[outputs[0]][0] in _SYMBOLS
    return arithmetic and all(dtype == "BF16" for dtype in flavour.dtypes)


def _groups(flavour: Flavour, group: str) -> str:
    """Loops over groups of ``GROUP`` elements, cut where a row ends when coefficients belong to rows or columns."""
    inner = f"while at < end:\n    stop = min(end, at + {GROUP})\n{indent(group, '    ')}"
    if not flavour.rows and not flavour.cols:
        return f"at = 0\nend = count\n{inner}"
    length = "row_length" if flavour.rows else "column_length"
    return (
        "at = 0\nwhile at < count:\n"
        f"    end = min(count, ((start + at) // {length} + 1) * {length} - start)\n    begin = at\n"
        + indent(_places(flavour, "at") + inner, "    ")
    )


def _added(flavour: Flavour, output: int, total: str) -> str:
    """A sum and one output more. The product of two stored numbers of at most 24 bits is exact in float64, so it can
    be added in the same instruction with the same result."""
    code, outputs = flavour.structure
    op, *factors = code[outputs[output]]
    leaves = [code[code[factor][1]] for factor in factors if code[factor][0] == "wide"] if op == "mul" else []
    narrow = all(dtype in ("BF16", "F16", "F32") for dtype in flavour.dtypes) and flavour.acc == "float32"
    if narrow and len(leaves) == 2 and all(leaf[0] == "input" for leaf in leaves):
        return f"fused(v{factors[0]}, v{factors[1]}, {total})"
    return f"{total} + np.float64({_result(flavour, output)})"


def _sums(flavour: Flavour) -> str:
    """Lane sums per segment; the inner loop over lanes is what LLVM vectorises."""
    count = len(flavour.structure[1])
    adds = "".join(f"lane{k}[i] = {_added(flavour, k, f'lane{k}[i]')}\n" for k in range(count))
    body = indent(_statements(flavour, "i") + adds, "    ")
    several = "".join(f"s{k} = lane{k}[i]\n" for k in range(count))
    for turn in range(TURNS):
        several += _statements(flavour, f"i + {LANES * turn}")
        several += "".join(f"s{k} = {_added(flavour, k, f's{k}')}\n" for k in range(count))
    several += "".join(f"lane{k}[i] = s{k}\n" for k in range(count))
    lanes = "".join(f"lane{k} = stack_array({LANES}, np.float64)\n" for k in range(count))
    clear = "".join(f"lane{k}[:] = 0.0\n" for k in range(count))
    fold = "".join(
        f"width = {LANES // 2}\nwhile width > 0:\n"
        f"    for l in range(width):\n        lane{k}[l] += lane{k}[l + width]\n    width //= 2\n"
        f"out[s * {count} + {k}] = lane{k}[0]\n"
        for k in range(count)
    )
    whole = (
        _views(flavour, "at", f"at + {LANES}") + _places(flavour, "at") + f"for i in range({LANES}):\n{body}"
    )
    most = (
        _views(flavour, "at", f"at + {TURNS * LANES}")
        + _places(flavour, "at")
        + f"for i in range({LANES}):\n{indent(several, '    ')}"
    )
    rest = _views(flavour, "at", "end") + _places(flavour, "at") + f"for i in range(end - at):\n{body}"
    return (
        f"{lanes}for s in range(cuts.shape[0] - 1):\n"
        + indent(
            f"{clear}at = cuts[s]\nend = cuts[s + 1]\nwhile at + {TURNS * LANES} <= end:\n"
            f"{indent(most, '    ')}    at += {TURNS * LANES}\nwhile at + {LANES} <= end:\n"
            f"{indent(whole, '    ')}    at += {LANES}\n{rest}{fold}",
            "    ",
        )
        + "return 0\n"
    )


def _columns(flavour: Flavour) -> str:
    count = len(flavour.structure[1])
    adds = "".join(f"y{k}[i] += np.float64({_result(flavour, k)})\n" for k in range(count))
    places = (
        _places(flavour, "at").replace("column = ", "place = ")
        if not flavour.cols
        else _places(flavour, "at")
    )
    sums = "".join(f"y{k} = out{k}[column:]\n" for k in range(count))
    length = "row_length" if flavour.rows else "column_length"
    return (
        "at = 0\n"
        "while at < count:\n"
        f"    stop = min(count, ((start + at) // {length} + 1) * {length} - start)\n"
        "    column = (start + at) % column_length\n"
        + indent(
            _views(flavour, "at", "stop") + places + sums
            + f"for i in range(stop - at):\n{indent(_statements(flavour, 'i') + adds, '    ')}at = stop\n",
            "    ",
        )
        + "return 0\n"
    )  # fmt: skip


def _tiles(flavour: Flavour, after: str) -> str:
    """Bit patterns of the output, a tile at a time into ``tile``, then a scalar pass over them."""
    single = flavour.acc == "float32"
    unsigned = "uint32" if single else "uint64"
    bits = f"{'bits32' if single else 'bits64'}({_result(flavour)})"
    fill = _statements(flavour, "i") + f"y[i] = {bits}\n"
    return (
        f"tile = stack_array({_TILE}, np.{unsigned})\n"
        f"for tile_start in range(0, count, {_TILE}):\n"
        f"    tile_end = min(count, tile_start + {_TILE})\n"
        + indent(
            _runs(flavour, fill, "tile_start", "tile_end", "tile")
            .replace("y = tile[tile_start:tile_end]", "y = tile")
            .replace("y = tile[at:stop]", "y = tile[at - tile_start:stop - tile_start]"),
            "    ",
        )
        + indent(after, "    ")
    )


#: elements of the tile inside the bracket, moved to its front without a branch; unsigned, so below wraps above
_COMPACT = (
    "taken = np.uint64(0)\n"
    "for j in range(tile_end - tile_start):\n"
    "    p = tile[j]\n"
    "    {target}[{base}taken] = p\n"
    "    taken += np.uint64(1) if p - low <= width else np.uint64(0)\n"
)


def _bracket(flavour: Flavour) -> str:
    unsigned = pattern_type(flavour.acc)
    after = (
        _more(flavour)
        + "above += np.int64(more)\n"
        + _COMPACT.format(target="kept", base="")
        + "for j in range(np.int64(taken)):\n"
        "    p = kept[j]\n"
        "    b = (p - low) >> shift\n"
        "    counts[b] += 1\n"
        "    least[b] = min(least[b], p)\n"
        "    most[b] = max(most[b], p)\n"
    )
    head = f"above = 0\nwidth = high - low\nkept = stack_array({_TILE + 1}, np.{unsigned})\n"
    return head + _tiles(flavour, after) + "return above\n"


def _count(flavour: Flavour) -> str:
    unsigned = pattern_type(flavour.acc)
    after = (
        f"more = np.{unsigned}(0)\nsame = np.{unsigned}(0)\n"
        "for j in range(tile_end - tile_start):\n"
        f"    more = np.{unsigned}(more + (np.{unsigned}(1) if tile[j] > low else np.{unsigned}(0)))\n"
        f"    same = np.{unsigned}(same + (np.{unsigned}(1) if tile[j] == low else np.{unsigned}(0)))\n"
        "pair[0] += np.int64(more)\npair[1] += np.int64(same)\n"
    )
    return _tiles(flavour, after) + "return 0\n"


def _collect(flavour: Flavour) -> str:
    after = _more(flavour) + "above[0] += np.int64(more)\n"
    after += _COMPACT.format(target="found", base="done + ") + "done += taken\n"
    return "done = np.uint64(0)\nwidth = high - low\n" + _tiles(flavour, after) + "return np.int64(done)\n"


def _more(flavour: Flavour) -> str:
    """How many patterns of a tile are above the bracket, counted in vector lanes."""
    unsigned = pattern_type(flavour.acc)
    return (
        f"more = np.{unsigned}(0)\n"
        "for j in range(tile_end - tile_start):\n"
        f"    more = np.{unsigned}(more + (np.{unsigned}(1) if tile[j] > high else np.{unsigned}(0)))\n"
    )
