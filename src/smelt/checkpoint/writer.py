"""Write a checkpoint at final offsets, prove it, and make it appear at its target in one step."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from smelt.checkpoint import behind
from smelt.checkpoint.digest import WriteLog
from smelt.checkpoint.files import as_bytes, spill
from smelt.checkpoint.layout import INDEX, ShardLayout
from smelt.checkpoint.native import reserve
from smelt.checkpoint.workdir import WorkFolder, check_space
from smelt.core.errors import OutputError, Problem, VerificationError
from smelt.core.types import ITEMSIZE

if TYPE_CHECKING:
    from smelt.checkpoint.swift import Port
    from smelt.checkpoint.verify import Scan, VerifyReport


class CheckpointWriter:
    """Builds the files of ``layout`` beside ``target``; they appear there on ``commit`` and not before.

        with CheckpointWriter(target, layout) as writer:
            writer.write("a.weight", 0, data)        # from any thread, in any order
            writer.add_json("config.json", config)
            writer.commit()                          # sync, verify, rename

    Leaving the ``with`` block without a commit removes every trace. ``swift`` has compiled code do the writing
    and reading back.
    """

    def __init__(
        self, target: str | Path, layout: ShardLayout, *, overwrite: bool = False, swift: bool = False
    ) -> None:
        self.target = Path(target)
        self.layout = layout
        self.logs: Mapping[str, WriteLog] = {
            name: WriteLog(spec.nbytes) for name, spec in layout.specs.items()
        }
        self._swift = swift
        self._work = WorkFolder(self.target, overwrite=overwrite)
        self._fds: list[int] = []
        self._follower: behind.Follower | None = None
        self._scan: Scan | None = None
        self._verified: VerifyReport | None = None

    @property
    def path(self) -> Path:
        """The folder in which the output grows."""
        return self._work.out

    def __enter__(self) -> CheckpointWriter:
        self._work.enter()
        try:
            self.check_space()
            with _disk_errors(self.target):
                for shard in self.layout.shards:
                    self._fds.append(_create(self.path / shard.file, shard.size))
                    spill(self._fds[-1], memoryview(shard.header), 0)
            index = self.layout.index()
            if index is not None:
                (self.path / INDEX).write_bytes(_as_json(index))
            if self.layout.file_bytes >= behind.LEAST:
                self._follow()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._follower is not None:
            self._follower.abandon()
        if self._scan is not None:
            self._scan.checkpoint.close()
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)
        self._work.remove()

    def _follow(self) -> None:
        """Read back behind the writing, through the headers as they stand in the files."""
        from smelt.checkpoint.reader import open_checkpoint
        from smelt.checkpoint.verify import Scan

        self._scan = Scan(open_checkpoint(self.path), swift=self._swift)
        self._follower = behind.Follower(self._fds, self._scan.check, self.layout.place)

    def check_space(self, extra: int = 0) -> None:
        """Refuse when the disk cannot hold the weights and ``extra`` bytes of side files."""
        check_space(self._work.folder, self.layout.file_bytes + extra)

    def write(self, name: str, start: int, data: Any) -> None:
        """Write bytes of a tensor at byte ``start`` of it. Thread-safe; every byte once."""
        view = as_bytes(data)
        spec = self.layout.specs[name]
        if start < 0 or start + len(view) > spec.nbytes:
            what = f"bytes {start} to {start + len(view)} of {spec.nbytes} are outside the tensor"
            raise OutputError(what, where=f"output tensor {name!r}")
        shard, offset = self.layout.place(name)
        log = self.logs[name]
        if not (self._swift and self._write_swiftly(shard, offset, view, log, start)):
            with _disk_errors(self.target):
                spill(self._fds[shard], view, offset + start)
            log.add_pieces(start, view)
        self.wrote(name, start, len(view))

    def port(self, name: str) -> Port | None:
        """Where compiled code may write a tensor itself; it tells ``wrote`` then. None where all goes by ``write``."""
        if not self._swift:
            return None
        from smelt.checkpoint.swift import Port

        shard, offset = self.layout.place(name)
        return Port(self._fds[shard], offset, ITEMSIZE[self.layout.specs[name].dtype], self.logs[name].digest)

    def wrote(self, name: str, start: int, length: int) -> None:
        """Take note of bytes that were written and fingerprinted through a port."""
        self.logs[name].add_span(start, start + length)
        if self._follower is not None:
            self._follower.note(name, start, length)

    def _write_swiftly(self, shard: int, offset: int, view: memoryview, log: WriteLog, start: int) -> bool:
        import numpy as np

        from smelt.checkpoint import swift

        return swift.write(self._fds[shard], offset, np.frombuffer(view, np.uint8), log.digest, start)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a side file; ``name`` may lie in a subfolder."""
        path = self._side_path(name)
        with _disk_errors(self.target):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def add_json(self, name: str, value: Any) -> None:
        """Add a JSON side file, indented, in UTF-8."""
        self.add_bytes(name, _as_json(value))

    def add_file(self, source: Path, name: str | None = None) -> None:
        """Copy a side file from elsewhere."""
        self.add_bytes(name or Path(source).name, Path(source).read_bytes())

    def _side_path(self, name: str) -> Path:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise OutputError(f"side file {name!r} would lie outside the output")
        if str(path) in {INDEX, *(shard.file for shard in self.layout.shards)}:
            raise OutputError(f"side file {name!r} would replace weights or their index")
        return self.path / path

    def verify(self, **options: Any) -> VerifyReport:
        """Compare all that stands in the files with the layout and with every byte that was written.

        What was read back behind the writing is not read again.
        """
        from smelt.checkpoint.verify import verify_directory

        self._check_coverage()
        self._finish_following()
        report = verify_directory(
            self.path, expected=self.layout, written=self.logs, scanned=self._scan, **options
        )
        report.raise_for_problems()
        self._verified = report
        return report

    def _finish_following(self) -> None:
        if self._follower is not None:
            self._follower.finish()
            self._follower = None

    def _check_coverage(self) -> None:
        gaps = [(name, log.gap()) for name, log in self.logs.items()]
        problems = [Problem(gap, f"output tensor {name!r}", "every byte once") for name, gap in gaps if gap]
        if problems:
            raise VerificationError(problems)

    def commit(self, check: Callable[[Path], object] | None = None) -> None:
        """Sync, verify, and rename into place. ``check`` gets the folder and stands in for ``verify``."""
        self._check_coverage()
        self._finish_following()
        self._sync()
        if check is not None:
            check(self.path)
        elif self._verified is None:
            self.verify()
        self._work.publish()

    def _sync(self) -> None:
        """Make every file durable, several at a time."""
        from concurrent.futures import ThreadPoolExecutor

        files = [path for path in self.path.rglob("*") if path.is_file()]
        with _disk_errors(self.target), ThreadPoolExecutor(4) as pool:
            list(pool.map(_sync_file, files))


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _create(path: Path, size: int) -> int:
    """A new file of ``size`` bytes, its blocks reserved where the filesystem can."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        reserve(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a broken device into an OutputError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "free some space or choose another disk" if full else "check the disk"
        raise OutputError(f"writing failed ({error.strerror})", where=str(target), fix=fix) from error
