"""The folder in which an output grows beside its target, locked, and the rename that publishes it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from pathlib import Path

from smelt.checkpoint.native import exchange
from smelt.checkpoint.sizes import show_bytes
from smelt.core.errors import OutputError

_MODEL_FILES = ("config.json", "smelt.json", "model.safetensors", "model.safetensors.index.json")


def check_target(target: Path, overwrite: bool) -> None:
    """The target must be new, an empty directory, or with ``overwrite`` a directory that holds a model."""
    where = str(target)
    if target.is_dir():
        if os.path.ismount(target):
            raise OutputError(
                "is a mount point and cannot be replaced", where=where, fix=f"write to {target / 'model'}"
            )
        if not any(target.iterdir()):
            return
        if not overwrite:
            raise OutputError(
                "directory is not empty", where=where, fix="choose another, or pass --overwrite"
            )
        if not any((target / name).exists() for name in _MODEL_FILES) and not any(
            target.glob("*.safetensors")
        ):
            what = "does not look like a model directory, so it is not replaced"
            raise OutputError(what, where=where, fix="remove it yourself, or choose another")
        cwd = Path.cwd()
        if cwd == target or target in cwd.parents:
            raise OutputError("holds the current directory, so it is not replaced", where=where)
    elif target.exists():
        raise OutputError("is a file", where=where, expected="a directory to create")


def check_space(path: Path, needed: int) -> None:
    """Refuse when the filesystem that holds ``path``, or will, has less than ``needed`` bytes free."""
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < needed:
        what = f"the disk is too small: {show_bytes(needed)} needed, {show_bytes(free)} free"
        raise OutputError(what, where=str(path), fix="free some space or choose another disk")


class WorkFolder:
    """``.NAME.smelt-work`` beside the target: one run at a time, what a dead run left is removed.

    ``out`` becomes the target on ``publish``. The folder is gone after ``remove``.
    """

    def __init__(self, target: Path, *, overwrite: bool = False) -> None:
        self.target = Path(os.path.realpath(target))
        self.overwrite = overwrite
        self.folder = self.target.parent / f".{self.target.name}.smelt-work"
        self.out = self.folder / "out"
        self._aside = self.folder / "replaced"
        self._lock = -1
        self._made: list[Path] = []

    def enter(self) -> None:
        """Check the target, make its parents, take the lock and start with an empty folder."""
        check_target(self.target, self.overwrite)
        try:
            self._make_parents()
            self._take_lock()
            self._clean()
            self.out.mkdir()
        except OSError as error:
            self.remove()
            raise OutputError(f"cannot be written ({error.strerror})", where=str(self.target)) from error
        except BaseException:
            self.remove()
            raise

    def _make_parents(self) -> None:
        missing = [path for path in self.target.parents if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            self._made.append(path)

    def _take_lock(self) -> None:
        """Lock a file in the folder; begin again when the folder was removed by its owner meanwhile."""
        path = self.folder / "lock"
        while True:
            self.folder.mkdir(exist_ok=True)
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(lock, 20, 0).decode(errors="replace")
                os.close(lock)
                what = f"another smelt run (process {owner or 'unknown'}) is writing here"
                raise OutputError(
                    what, where=str(self.target), fix="wait for it, or choose another target"
                ) from None
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                break
            os.close(lock)
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)

    def _clean(self) -> None:
        """Remove what a dead run left; a target it had moved aside goes back to its place first."""
        if self._aside.exists() and not self.target.exists():
            self._aside.rename(self.target)
            check_target(self.target, self.overwrite)
        old = [entry for entry in self.folder.iterdir() if entry.name != "lock"]
        old += [path for path in self.folder.parent.iterdir() if self._is_trash(path.name)]
        for entry in old:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _is_trash(self, name: str) -> bool:
        """Whether a name beside the work folder is that of one being removed when its run was killed."""
        return name.startswith(f"{self.folder.name}-") and name[len(self.folder.name) + 1 :].isdigit()

    def publish(self) -> None:
        """Rename ``out`` to the target. At no moment does the target exist incomplete."""
        sync_directory(self.out)
        try:
            if self.target.is_dir() and any(self.target.iterdir()):
                check_target(self.target, self.overwrite)
                self._swap()
            else:
                self.out.rename(self.target)
        except OSError as error:
            what = f"the finished output could not be put in place ({error.strerror})"
            raise OutputError(what, where=str(self.target)) from error
        self._made.clear()
        sync_directory(self.target.parent)

    def _swap(self) -> None:
        """Exchange ``out`` and the target in one step where the kernel can, else in two."""
        if not exchange(self.out, self.target):
            self.target.rename(self._aside)
            self.out.rename(self.target)

    def remove(self) -> None:
        """Delete the folder and give the lock back; without an output also the parents that were made."""
        if self._lock < 0 and not self._made:
            return
        if self._lock >= 0:
            # under another name first: a run that starts now must not find a folder that is being emptied
            trash = self.folder.with_name(f"{self.folder.name}-{os.getpid()}")
            with contextlib.suppress(OSError):
                self.folder = self.folder.rename(trash)
            os.close(self._lock)
            self._lock = -1
            shutil.rmtree(self.folder, ignore_errors=True)
        for path in reversed(self._made):
            if path.exists() and not any(path.iterdir()):
                path.rmdir()
        self._made.clear()


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:  # some network filesystems cannot sync a directory
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
