"""A few Linux calls Python does not offer, each with its answer where the system lacks it."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
_POPULATE_READ = 22
_LIBRARY = ctypes.CDLL(None, use_errno=True)
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def _call(name: str, *arguments: Any) -> bool:
    """Call a function of the C library; False where the function or its filesystem does not exist."""
    function = getattr(_LIBRARY, name, None)
    if function is None:
        return False
    while function(*arguments) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def reserve(fd: int, size: int) -> None:
    """Give a new file its size, with blocks reserved where the filesystem can (the C library's own
    posix_fallocate would write to every block where it cannot)."""
    if size == 0 or not _call("fallocate", fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        os.ftruncate(fd, size)


def start_writeback(fd: int, start: int, length: int) -> bool:
    """Have the kernel begin to write dirty pages of a range; False where it takes no such hint."""
    return _sync_range(fd, start, length, _WRITE)


def finish_writeback(fd: int, start: int, length: int) -> bool:
    """Wait until a range is written; False where the kernel does not tell."""
    return _sync_range(fd, start, length, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)


def _sync_range(fd: int, start: int, length: int, flags: int) -> bool:
    try:
        return _call(
            "sync_file_range", fd, ctypes.c_int64(start), ctypes.c_int64(length), ctypes.c_uint(flags)
        )
    except OSError:
        return False  # only a hint: what is wrong with the disk shows in fsync


def populate(start: int, length: int) -> bool:
    """Have the pages of a mapping at an address be there; False where the kernel cannot get them."""
    try:
        return _call("madvise", ctypes.c_void_p(start), ctypes.c_size_t(length), _POPULATE_READ)
    except OSError:
        return False


def drop_cached(fd: int, start: int, length: int) -> None:
    """Have the kernel let go of what it caches of a range; dirty pages stay."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


def exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    names = os.fsencode(first), os.fsencode(second)
    return _call("renameat2", _AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE))
