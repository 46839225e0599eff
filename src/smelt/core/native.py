"""Compiled functions kept as object code: Numba makes them once, LLVM alone loads them from then on.

Loading costs milliseconds where importing Numba costs a fifth of a second, and a call costs what ctypes asks, with
Python's lock given up meanwhile. A function takes and returns 64-bit integers only: counts, and addresses of memory
that the caller keeps alive. Inside, ``intrinsics`` turns addresses into arrays.
"""
# What Numba types itself has no Python signature.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import ctypes
import os
import stat
import threading
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace
from typing import Any

from smelt._version import __version__

_SYMBOL = "smelt_entry"
_CHECK = 16  # bytes of checksum before the object code
_LOADING = threading.RLock()
_LOADED: dict[str, Native] = {}  # for good: code must outlive every call of it
#: what a compiled function returns when Numba's own error path was taken
FAILED = -(2**62)


def cache_folder() -> Path:
    """Where compiled code is kept: $SMELT_CACHE, else the user's cache folder."""
    chosen = os.environ.get("SMELT_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "smelt"


class Native:
    """A compiled function: called from Python, or by other compiled code at its ``address``."""

    __slots__ = ("_engine", "address", "call")

    def __init__(self, code: bytes, arity: int) -> None:
        from llvmlite import binding as llvm

        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())  # owns the code
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.address: int = self._engine.get_function_address(_SYMBOL)
        self.call: Callable[..., int] = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arity)(
            self.address
        )


def expect() -> None:
    """Have LLVM's library mapped meanwhile, where compiled functions will be needed soon: linking it takes a good part
    of a tenth of a second, for which Python's lock is not held here, as it is in an import."""
    threading.Thread(target=_map_library, name="smelt-llvm", daemon=True).start()


def _map_library() -> None:
    try:
        package = find_spec("llvmlite")
        for folder in () if package is None else package.submodule_search_locations or ():
            for library in Path(folder, "binding").glob("libllvmlite.*"):
                ctypes.CDLL(None).dlopen(os.fsencode(library), os.RTLD_NOW)
    except (AttributeError, OSError, ImportError):  # the import of llvmlite will tell what is wrong
        return


def address(array: Any) -> int:
    """Where the elements of a numpy array lie; the caller keeps it alive."""
    found: int = array.__array_interface__["data"][0]
    return found


def load(source: bytes, arity: int, make: Callable[[], Callable[..., Any]]) -> Native:
    """The compiled form of the function that ``make`` gives; ``source`` is all that its meaning depends on, besides
    this version of smelt, of LLVM and this processor. ``make`` is called, and Numba imported, only if it must be
    compiled first."""
    with _LOADING:
        name = blake2b(b"\0".join([source, *_circumstances()]), digest_size=16).hexdigest()
        if name not in _LOADED:
            _LOADED[name] = Native(_find(name) or _make(name, make(), arity), arity)
        return _LOADED[name]


def _find(name: str) -> bytes | None:
    """Object code kept by an earlier run."""
    found = (_read(folder / f"{name}.o") for folder in _folders() if _is_ours(folder))
    return next((code for code in found if code is not None), None)


def _make(name: str, function: Callable[..., Any], arity: int) -> bytes:
    """Object code, kept where there is a place for it."""
    code = _compile(function, arity)
    for folder in _folders():
        if _is_ours(folder) and _keep(folder / f"{name}.o", code):
            break
    return code


def _folders() -> list[Path]:
    return [cache_folder() / "native", Path(gettempdir()) / f"smelt-native-{os.getuid()}"]


def _is_ours(folder: Path) -> bool:
    """Whether a folder can be made, belongs to this user and is closed to others: what lies there is executed."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid in (os.getuid(), 0)
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _read(file: Path) -> bytes | None:
    """Object code as it was kept; None when it is not there or damaged."""
    try:
        raw = file.read_bytes()
    except OSError:
        return None
    code = raw[_CHECK:]
    return code if code and blake2b(code, digest_size=_CHECK).digest() == raw[:_CHECK] else None


def _keep(file: Path, code: bytes) -> bool:
    fresh = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        fresh.write_bytes(blake2b(code, digest_size=_CHECK).digest() + code)
        fresh.replace(file)
    except OSError:
        return False
    return True


@cache
def _circumstances() -> tuple[bytes, ...]:
    from llvmlite import __version__ as version
    from llvmlite import binding as llvm

    features = llvm.get_host_cpu_features().flatten()
    here = (__version__, version, llvm.get_host_cpu_name(), features, llvm.get_default_triple())
    own = Path(__file__).read_bytes()  # the intrinsics below are part of every function
    return (own, *(text.encode() for text in here))


@cache
def _start_llvm() -> None:
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _target() -> Any:
    """This processor; made anew each time, since an engine takes what it is given."""
    from llvmlite import binding as llvm

    _start_llvm()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


def _compile(function: Callable[..., Any], arity: int) -> bytes:
    """Object code of a Python function of ``arity`` integers, with one entry of C's calling convention."""
    from llvmlite import binding as llvm
    from numba import njit, types

    options: Any = {
        "error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True,
    }  # fmt: skip
    made: Any = njit(types.int64(*[types.int64] * arity), **options)(function)
    (result,) = made.overloads.values()
    text = result.library.get_llvm_str() + _entry(result.fndesc.mangled_name, arity)
    module = llvm.parse_assembly(text)
    module.verify()
    return bytes(_target().emit_object(module))


def _entry(inner: str, arity: int) -> str:
    """LLVM text of a function that calls Numba's: the result comes back by value, an error as ``FAILED``."""
    arguments = ", ".join(f"i64 %a{number}" for number in range(arity))
    return (
        f"\ndefine i64 @{_SYMBOL}({arguments}) {{\n"
        "  %result = alloca i64\n  %trouble = alloca ptr\n  store i64 0, ptr %result\n"
        f'  %status = call i32 @"{inner}"(ptr %result, ptr %trouble{", " if arity else ""}{arguments})\n'
        "  %value = load i64, ptr %result\n  %bad = icmp ne i32 %status, 0\n"
        f"  %out = select i1 %bad, i64 {FAILED}, i64 %value\n  ret i64 %out\n}}\n"
    )


@cache
def intrinsics() -> SimpleNamespace:
    """What compiled functions need besides Numba's own: arrays over addresses, arrays on the stack, calls of other
    compiled functions. Nothing here allocates, so no runtime is needed."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array, populate_array

    def build(context, builder, kind, data, count):
        array = make_array(kind)(context, builder)
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        populate_array(array, data=data, shape=[count], strides=[size], itemsize=size, meminfo=None)
        return array._getvalue()

    @intrinsic
    def array_at(typing_context, address, count, dtype):
        """``count`` elements at an address."""
        kind = types.Array(dtype.dtype, 1, "C")

        def generate(context, builder, signature, arguments):
            pointer = context.get_data_type(kind.dtype).as_pointer()
            return build(context, builder, kind, builder.inttoptr(arguments[0], pointer), arguments[1])

        return kind(types.int64, types.int64, dtype), generate

    @intrinsic(prefer_literal=True)
    def stack_array(typing_context, count, dtype):
        """Room for a fixed number of elements until the function returns."""
        kind, size = types.Array(dtype.dtype, 1, "C"), count.literal_value

        def generate(context, builder, signature, arguments):
            data = cgutils.alloca_once(builder, context.get_data_type(kind.dtype), size=size)
            data.align = 64  # a vector must not straddle two cache lines
            return build(context, builder, kind, data, context.get_constant(types.intp, size))

        return kind(count, dtype), generate

    @intrinsic
    def address_of(typing_context, array):
        """Where the first element lies."""

        def generate(context, builder, signature, arguments):
            data = make_array(array)(context, builder, arguments[0]).data
            return builder.ptrtoint(data, ir.IntType(64))

        return types.int64(array), generate

    @intrinsic
    def call_at(typing_context, address, arguments):
        """Call the compiled function at an address with a tuple of integers."""

        def generate(context, builder, signature, values):
            word = ir.IntType(64)
            kind = ir.FunctionType(word, [word] * len(arguments))
            function = builder.inttoptr(values[0], kind.as_pointer())
            return builder.call(function, cgutils.unpack_tuple(builder, values[1]))

        return types.int64(types.int64, types.UniTuple(types.int64, len(arguments))), generate

    return SimpleNamespace(array_at=array_at, stack_array=stack_array, address_of=address_of, call_at=call_at)
