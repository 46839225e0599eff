"""Torch checkpoints (zip and pre-1.6 format) read without torch: places first, bytes when asked for."""

from __future__ import annotations

import mmap
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from smelt.checkpoint.files import read_some
from smelt.checkpoint.header import what_else
from smelt.checkpoint.problems import Problems, listing
from smelt.checkpoint.unpickle import MAX_PICKLE, Global, Machine, PickleRefused, plain_items
from smelt.core.types import ITEMSIZE, TensorMeta

#: a tensor that repeats its storage (strides of 0) may be this large and no larger
_MAX_EXPANDED = 2**30
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": "U8",
}  # fmt: skip
_DTYPES = {
    "float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_RESAVE = "save its state_dict as safetensors instead"


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


def read_torch(file: Path, fd: int, notes: list[str], problems: Problems) -> list[TensorMeta]:
    """Tensors of a torch file, in the order of their bytes; whatever else it holds is said in ``notes``."""
    try:
        if read_some(fd, 0, 4) == b"PK\x03\x04":
            content, places = _read_zip(file, fd)
        else:
            content, places = _read_legacy(fd)
        tensors = _find_state_dict(content, file, notes)
    except PickleRefused as error:
        problems.add(str(error), file, fix=_RESAVE)
        return []
    metas = [_place(name, tensor, places, file, problems) for name, tensor in tensors.items()]
    return sorted((meta for meta in metas if meta is not None), key=lambda meta: meta.offset)


def _place(
    name: str, tensor: _Tensor, places: dict[str, tuple[int, int]], file: Path, problems: Problems
) -> TensorMeta | None:
    """Where a tensor's bytes are, once they are known to lie inside its storage."""
    offset, room = places.get(tensor.storage.key, (0, 0))
    size = ITEMSIZE[tensor.dtype]
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    end = (tensor.start + reach + 1) * size if prod(tensor.shape) else 0
    if end > room:
        what = f"needs {end} bytes of a storage of {room}"
        problems.add(what, file, name, fix="the file is truncated or corrupt")
        return None
    if prod(tensor.shape) * size > max(room, _MAX_EXPANDED):
        problems.add(f"repeats {room} stored bytes {prod(tensor.shape) * size // room} times", file, name)
        return None
    dense, step = True, 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        dense &= n == 1 or stride == step
        step *= n
    strides = None if dense or not prod(tensor.shape) else tensor.strides
    return TensorMeta(name, tensor.dtype, tensor.shape, file, offset + tensor.start * size, strides)


# -- the two containers


def _read_zip(file: Path, fd: int) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The pickled object of a zip file, and offset and size of each storage."""
    with os.fdopen(os.dup(fd), "rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = {info.filename: info for info in archive.infolist()}
                if len(members) != len(archive.infolist()):
                    raise PickleRefused("holds two members of one name")
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError) as error:
            raise PickleRefused(f"is not a sound zip archive ({error}); fetch it again") from error
    roots = [
        name[: -len("data.pkl")] for name in members if name.endswith("data.pkl") and name.count("/") <= 1
    ]
    if len(roots) != 1:
        raise PickleRefused("is a zip archive, but none that torch.save writes")
    root = roots[0]
    if f"{root}constants.pkl" in members:
        raise PickleRefused("is a TorchScript program, not a checkpoint")
    places = {name: _member(fd, info) for name, info in members.items() if name.startswith(root)}
    if _content(fd, places.get(f"{root}byteorder")).strip() == b"big":
        raise PickleRefused("was written on a big-endian machine")
    offset, size = places[f"{root}data.pkl"]
    if size > MAX_PICKLE:
        raise PickleRefused(f"holds a pickle of {size} bytes; more than {MAX_PICKLE} is not read")
    content = Machine(read_some(fd, offset, size), 0, _ALLOWED, _storage).load()
    start = len(f"{root}data/")
    return content, {name[start:]: place for name, place in places.items() if name.startswith(f"{root}data/")}


def _member(fd: int, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Offset and size of the bytes of a stored member."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise PickleRefused(f"has a compressed or encrypted member {info.filename[:80]!r}; torch writes none")
    inside = 0 <= info.header_offset < os.fstat(fd).st_size
    local = read_some(fd, info.header_offset, 30) if inside else b""
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise PickleRefused(f"has a broken entry for {info.filename[:80]!r}")
    names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    offset = info.header_offset + 30 + names
    if offset + info.file_size > os.fstat(fd).st_size:
        raise PickleRefused(f"ends inside its member {info.filename[:80]!r}; fetch it again")
    return offset, info.file_size


def _content(fd: int, place: tuple[int, int] | None) -> bytes:
    return b"" if place is None else read_some(fd, place[0], min(place[1], 64))


def _read_legacy(fd: int) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The pickled object of a file from before torch 1.6, and offset and size of each storage."""
    first = read_some(fd, 0, 64)
    if first[:1] != b"\x80":
        raise PickleRefused(f"is no torch file; {what_else(first)}")
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        return _parse_legacy(fd, data)


def _parse_legacy(fd: int, data: mmap.mmap) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Five pickles in a row: magic number, version, machine, content, keys of the storages."""
    head = Machine(data, 0, {}, None)
    if head.load() != _LEGACY_MAGIC:
        raise PickleRefused("is a pickle, but not one that torch.save wrote")
    version = Machine(data, head.position, {}, None)
    system = Machine(data, version.position if version.load() == 1001 else len(data), {}, None)
    described = system.load()
    if not isinstance(described, dict) or described.get("little_endian") is not True:
        raise PickleRefused("was written on a big-endian machine")
    storages: dict[str, _Storage] = {}

    def persistent(reference: Any) -> _Storage:
        storage = _storage(reference)
        if storages.setdefault(storage.key, storage) != storage:
            raise PickleRefused(f"describes storage {storage.key[:40]!r} twice and differently")
        return storage

    body = Machine(data, system.position, _ALLOWED, persistent)
    content = body.load()
    keys = Machine(data, body.position, {}, None)
    return content, _legacy_places(fd, keys.load(), keys.position, storages)


def _legacy_places(
    fd: int, keys: Any, position: int, storages: dict[str, _Storage]
) -> dict[str, tuple[int, int]]:
    """Storages follow the pickles one after the other, each behind its element count."""
    places = {}
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        count = int.from_bytes(read_some(fd, position, 8), "little")
        if storage is None or count != storage.count:
            raise PickleRefused("is truncated, or its storages are not those its tensors name")
        size = count * ITEMSIZE[storage.dtype]
        if position + 8 + size > os.fstat(fd).st_size:
            raise PickleRefused("ends inside its last storages; fetch it again")
        places[key] = (position + 8, size)
        position += 8 + size
    return places


# -- what the pickle may build


def _storage(reference: Any) -> _Storage:
    """('storage', type, key, device, count[, view]) as torch names a storage outside the pickle."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise PickleRefused("refers to something outside itself that is no storage")
    _, kind, key, _, count = reference[:5]
    if len(reference) == 6 and reference[5] is not None:
        raise PickleRefused("uses views of storages, which torch has not written since 0.4")
    dtype = _STORAGES.get(kind.name.rpartition(".")[2]) if isinstance(kind, Global) else None
    if dtype is None or not isinstance(key, str) or not _is_count(count):
        raise PickleRefused("describes a storage that makes no sense")
    return _Storage(key, dtype, count)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _tensor(storage: Any, start: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    """_rebuild_tensor and _rebuild_tensor_v2: (requires_grad, hooks, metadata) follow."""
    return _build_tensor(storage, start, shape, strides, None, rest[2] if len(rest) > 2 else None)


def _tensor_v3(
    storage: Any, start: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, *rest: Any
) -> _Tensor:
    """_rebuild_tensor_v3: the dtype stands beside an untyped storage."""
    dtype = _DTYPES.get(rest[0].name.removeprefix("torch."))
    if dtype is None:
        raise PickleRefused(f"holds a tensor of dtype {rest[0].name!r}, which is not read here")
    return _build_tensor(storage, start, shape, strides, dtype, rest[1] if len(rest) > 1 else None)


def _build_tensor(
    storage: Any, start: Any, shape: Any, strides: Any, dtype: str | None, metadata: Any
) -> _Tensor:
    sound = isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
    if not sound or len(shape) != len(strides) or len(shape) > 64:
        raise PickleRefused("describes a tensor that makes no sense")
    if not all(_is_count(value) for value in (start, *shape, *strides)):
        raise PickleRefused("describes a tensor of impossible shape, strides or offset")
    if metadata:
        raise PickleRefused("holds a tensor stored conjugated or negated, which is not read here")
    return _Tensor(storage, start, shape, strides, dtype or storage.dtype)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """A tensor with attributes of its own, which are left aside."""
    if not isinstance(function, Global) or function.call is None or not isinstance(arguments, tuple):
        raise PickleRefused("holds a tensor of an unknown class")
    return function.call(*arguments)


_ALLOWED: dict[str, Callable[..., Any] | None] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.nn.parameter.Parameter": None,
    "torch.Tensor": None,
    "torch.Size": tuple,
    "torch.device": lambda *_: "device",
    "collections.OrderedDict": lambda *pairs: plain_items(pairs[0]) if pairs else {},
    "torch.storage.UntypedStorage": None,
    **{f"torch.{name}": None for name in (*_STORAGES, *_DTYPES)},
}


# -- which of the content is the model

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params")
_MAX_WRAPPING = 4


def _find_state_dict(content: Any, file: Path, notes: list[str]) -> dict[str, _Tensor]:
    """The dict of tensors in a checkpoint, unwrapped where only one can be meant."""
    path: list[str] = []
    while True:
        if not isinstance(content, dict):
            raise PickleRefused(f"holds a {type(content).__name__}, not a dict of tensors")
        inner = _wrapped(content)
        if inner is None or len(path) == _MAX_WRAPPING:
            break
        left = [_label(key) for key in content if key != inner]
        if left:
            notes.append(f"{file.name}: only {inner!r} is read, not {listing(left, 8)}")
        path.append(inner)
        content = content[inner]
    return _named_tensors(content, file, notes)


def _wrapped(content: dict[Any, Any]) -> str | None:
    """The key of the dict that holds the model, or None when this dict holds it itself."""
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    holding = [key for key, value in named.items() if isinstance(value, dict) and _holds_tensors(value)]
    usual = [key for key in _WRAPPERS if key in holding]
    # a scalar beside the model counts steps; anything larger may be a weight
    direct = any(isinstance(value, _Tensor) and value.shape for value in content.values())
    if len(usual) == 1 and not direct:
        return usual[0]
    if not holding:
        return None
    if direct or len(holding) > 1:
        keys = listing(holding, 8)
        raise PickleRefused(f"holds tensors in several places, here and under {keys}; which is the model?")
    return holding[0]


def _label(key: Any) -> str:
    return key if isinstance(key, str) else f"<{type(key).__name__}>"


def _holds_tensors(content: dict[Any, Any], nesting: int = 0) -> bool:
    """Whether a dict is a model's: tensors under names, possibly wrapped once more by a usual key."""
    if any(isinstance(value, _Tensor) and isinstance(key, str) for key, value in content.items()):
        return True
    inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)]
    return nesting < _MAX_WRAPPING and any(_holds_tensors(value, nesting + 1) for value in inner)


def _named_tensors(content: dict[Any, Any], file: Path, notes: list[str]) -> dict[str, _Tensor]:
    tensors = {
        key: value for key, value in content.items() if isinstance(value, _Tensor) and isinstance(key, str)
    }
    others = [_label(key) for key in content if key not in tensors]
    if others:
        notes.append(f"{file.name}: entries that are no tensors are not read: {listing(others, 8)}")
    if not tensors:
        raise PickleRefused("holds no named tensors")
    return tensors
