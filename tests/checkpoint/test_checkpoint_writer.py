"""The writer: nothing at the target until all of it is proven, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ckpt_tools import (
    content_of,
    example_layout,
    example_specs,
    is_complete,
    left_over,
    make,
    strays,
    write_all,
)

from smelt.checkpoint import CheckpointWriter, check_space, verify_directory
from smelt.checkpoint import workdir as workdir_module
from smelt.checkpoint import writer as writer_module
from smelt.checkpoint.digest import PIECE
from smelt.core.errors import OutputError, VerificationError


@pytest.mark.parametrize("shard_size", [0, 100_000])
def test_blocks_from_many_threads_in_any_order(tmp_path: Path, shard_size: int) -> None:
    jobs = [(spec, start) for spec in example_specs() for start in range(0, spec.nbytes, 50_000)]
    random.Random(0).shuffle(jobs)
    with CheckpointWriter(tmp_path / "out", example_layout(shard_size)) as writer:

        def work(number: int) -> None:
            for spec, start in jobs[number::3]:
                writer.write(spec.name, start, content_of(spec)[start : start + 50_000])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not (tmp_path / "out").exists()
        writer.commit()
    assert is_complete(tmp_path / "out") and left_over(tmp_path) == ["out"]
    assert verify_directory(tmp_path / "out", expected=example_layout(shard_size)).ok


def test_side_files_and_their_bounds(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer.json"
    source.write_text("{}")
    with CheckpointWriter(tmp_path / "out", example_layout()) as writer:
        write_all(writer)
        writer.add_json("config.json", {"name": "ä"})
        writer.add_bytes("1_Pooling/config.json", b"{}")
        writer.add_file(source)
        for name in (
            "../x",
            "/etc/x",
            "a/../../x",
            "model.safetensors",
            "",
            ".",
            "model.safetensors.index.json",
            "./model.safetensors",
        ):
            with pytest.raises(OutputError, match="side file"):
                writer.add_bytes(name, b"")
        writer.commit()
    assert (tmp_path / "out/config.json").read_text(encoding="utf-8") == '{\n  "name": "ä"\n}\n'
    assert left_over(tmp_path / "out") == ["1_Pooling", "config.json", "model.safetensors", "tokenizer.json"]


def test_writes_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", example_layout()) as writer:
        for start, length in ((-1, 1), (665, 2), (0, 667)):
            with pytest.raises(OutputError, match="outside the tensor"):
                writer.write("model.norm.weight", start, bytes(length))


def test_missing_and_repeated_writes_never_become_an_output(tmp_path: Path) -> None:
    for change, message in (
        (lambda w: None, "bytes 0 to 666 were not written"),
        (lambda w: _twice(w), "byte 0 was written twice"),
    ):
        with (
            pytest.raises(VerificationError, match=message),
            CheckpointWriter(tmp_path / "out", example_layout()) as w,
        ):
            for spec in example_specs()[:-1]:
                w.write(spec.name, 0, content_of(spec))
            change(w)
            w.commit()
        assert left_over(tmp_path) == []


def test_coverage_is_asked_for_even_with_a_check_of_ones_own(tmp_path: Path) -> None:
    with (
        pytest.raises(VerificationError, match="were not written"),
        CheckpointWriter(tmp_path / "o", example_layout()) as w,
    ):
        w.commit(lambda path: None)
    assert left_over(tmp_path) == []


def _twice(writer: CheckpointWriter) -> None:
    for _ in range(2):
        writer.write("model.norm.weight", 0, content_of(example_specs()[-1]))


@pytest.mark.parametrize("position", [0, 3, 131_071, 131_072, 400_000, 665_999])
def test_a_byte_that_differs_on_disk_is_found(tmp_path: Path, position: int) -> None:
    with (
        pytest.raises(VerificationError, match=r"on disk are not those that were written"),
        CheckpointWriter(tmp_path / "out", example_layout()) as writer,
    ):
        write_all(writer, block=50_001)
        _, offset = example_layout().place("model.embed_tokens.weight")
        with (writer.path / "model.safetensors").open("r+b") as file:
            file.seek(offset + position)
            byte = file.read(1)[0]
            file.seek(offset + position)
            file.write(bytes([byte ^ 1]))
        writer.commit()
    assert left_over(tmp_path) == []


def test_nan_in_an_output_is_refused_unless_allowed(tmp_path: Path) -> None:
    def run() -> None:
        with CheckpointWriter(tmp_path / "out", example_layout()) as writer:
            for spec in example_specs():
                nan = spec.name.endswith("norm.weight")
                writer.write(spec.name, 0, b"\xff" * spec.nbytes if nan else content_of(spec))
            writer.verify(allow_nonfinite=allow)
            writer.commit()

    allow = False
    with pytest.raises(VerificationError, match=r"'model\.norm\.weight': 333 of 333 values are NaN or Inf"):
        run()
    allow = True
    run()
    assert (tmp_path / "out").exists()


def test_a_check_of_ones_own_can_stop_the_commit(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        assert (path / "model.safetensors").exists()
        raise VerificationError("no", where="here")

    with (
        pytest.raises(VerificationError, match="here: no"),
        CheckpointWriter(tmp_path / "out", example_layout()) as w,
    ):
        write_all(w)
        w.commit(check)
    assert left_over(tmp_path) == []


# -- the target


def test_target_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    make(tmp_path / "deep/er/out")
    (tmp_path / "file").write_text("")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/thesis.tex").write_text("years of work")
    for target, overwrite, message in (
        ("empty", False, "directory is not empty; choose another, or pass --overwrite"),
        ("file", True, "is a file; expected a directory"),
        ("papers", True, "does not look like a model directory"),
    ):
        with (
            pytest.raises(OutputError, match=message),
            CheckpointWriter(tmp_path / target, example_layout(), overwrite=overwrite),
        ):
            pass
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(OutputError, match="holds the current directory"):
        make(tmp_path / "empty", overwrite=True)
    assert is_complete(tmp_path / "empty") and (tmp_path / "papers/thesis.tex").exists()


def test_a_mount_point_is_refused_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path))
    with pytest.raises(OutputError, match=rf"mount point.*write to {tmp_path}/model"):
        make(tmp_path)


@pytest.mark.parametrize("atomic", [True, False])
def test_overwrite_replaces_the_old_model_wholly(
    tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", shard_size=100_000)
    (tmp_path / "out" / "stale.json").write_text("{}")
    if not atomic:
        monkeypatch.setattr(workdir_module, "exchange", lambda first, second: False)
    make(tmp_path / "out", seed=1, overwrite=True)
    assert is_complete(tmp_path / "out", seed=1) and left_over(tmp_path) == ["out"]
    assert left_over(tmp_path / "out") == ["config.json", "model.safetensors"]


def test_a_failed_overwrite_keeps_the_old_model(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with (
        pytest.raises(VerificationError),
        CheckpointWriter(tmp_path / "out", example_layout(), overwrite=True) as w,
    ):
        w.commit()
    assert is_complete(tmp_path / "out") and left_over(tmp_path) == ["out"]


def test_a_target_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and is_complete(tmp_path / "real")


def test_parents_made_for_a_failed_run_vanish(tmp_path: Path) -> None:
    with pytest.raises(VerificationError), CheckpointWriter(tmp_path / "a/b/out", example_layout()) as writer:
        assert (tmp_path / "a/b").is_dir()
        writer.commit()
    assert left_over(tmp_path) == []


def test_two_runs_into_one_target(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", example_layout()) as first:
        with (
            pytest.raises(OutputError, match=rf"another smelt run \(process {os.getpid()}\) is writing here"),
            CheckpointWriter(tmp_path / "out", example_layout()),
        ):
            pass
        write_all(first)
        first.commit()
    assert is_complete(tmp_path / "out") and left_over(tmp_path) == ["out"]


def test_what_a_dead_run_left_is_cleaned(tmp_path: Path) -> None:
    work = tmp_path / ".out.smelt-work"
    (work / "out").mkdir(parents=True)
    (work / "out/model.safetensors").write_bytes(b"half")
    (work / "lock").write_text("99999999")
    (tmp_path / ".out.smelt-work-123" / "out").mkdir(parents=True)
    (tmp_path / ".out.smelt-work-mine").mkdir()
    make(tmp_path / "out")
    assert is_complete(tmp_path / "out") and left_over(tmp_path) == [".out.smelt-work-mine", "out"]


def test_a_model_moved_aside_by_a_dead_run_goes_back(tmp_path: Path) -> None:
    make(tmp_path / "out")
    work = tmp_path / ".out.smelt-work"
    work.mkdir()
    (tmp_path / "out").rename(work / "replaced")
    with pytest.raises(OutputError, match="not empty"):
        make(tmp_path / "out", seed=1)
    assert is_complete(tmp_path / "out") and left_over(tmp_path) == ["out"]


# -- the disk


def test_too_little_space_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 500_000
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(workdir_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"the disk is too small: 80\d.\d\d kB needed, 500.00 kB free"):
        make(tmp_path / "out")
    check_space(tmp_path / "not/there/yet", free)
    with pytest.raises(OutputError):
        check_space(tmp_path, free + 1)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("where", ["reserve", "spill"])
def test_disk_errors_are_told_and_cleaned(
    tmp_path: Path, code: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(writer_module, where)
    calls = []

    def failing(*arguments: object) -> None:
        calls.append(1)
        if len(calls) > (3 if where == "spill" else 0):
            raise OSError(code, os.strerror(code))
        real(*arguments)

    monkeypatch.setattr(writer_module, where, failing)
    with pytest.raises(OutputError, match="writing failed"):
        make(tmp_path / "out")
    assert left_over(tmp_path) == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file size limit stands in for the disk: the kernel refuses the reservation."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from ckpt_tools import make; from pathlib import Path;"
        f"make(Path({str(tmp_path / 'out')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "OutputError" in done.stderr and "File too large" in done.stderr and left_over(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data[:999]), offset))
    make(tmp_path / "out")
    monkeypatch.undo()
    assert is_complete(tmp_path / "out")


@pytest.mark.parametrize("missing", ["fallocate", "sync_file_range", "renameat2"])
def test_systems_without_a_call(tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from smelt.checkpoint import behind, native

    real = native._call
    monkeypatch.setattr(native, "_call", lambda name, *rest: name != missing and real(name, *rest))
    monkeypatch.setattr(behind, "LEAST", 0)
    monkeypatch.setattr(behind, "STEP", 1000)
    make(tmp_path / "out")
    make(tmp_path / "out", seed=1, overwrite=True)
    assert is_complete(tmp_path / "out", seed=1) and left_over(tmp_path) == ["out"]


@pytest.fixture(params=[False, True], ids=["plain", "swift"])
def followed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Small outputs are followed too; whether compiled code does it."""
    from smelt.checkpoint import behind

    monkeypatch.setattr(behind, "LEAST", 0)
    monkeypatch.setattr(behind, "STEP", 100_000)
    return bool(request.param)


def test_what_was_read_back_behind_the_writing_is_not_read_again(
    tmp_path: Path, followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces that lie whole in one write are done; those that writes share are left for the end."""
    from smelt.checkpoint.verify import Scan

    with CheckpointWriter(tmp_path / "out", example_layout(), swift=followed) as writer:
        write_all(writer)
        assert writer._follower is not None
        writer._follower.finish()
        seen: list[int] = []
        real = Scan._look

        def look(self: Scan, meta: Any, start: int, view: Any) -> None:
            seen.append(len(view))
            real(self, meta, start, view)

        monkeypatch.setattr(Scan, "_look", look)
        before = {
            (name, start, end)
            for name, digest in writer._scan.digests.items()  # type: ignore[union-attr]
            for start, end in digest.unseen()
        }
        writer.commit()
    assert sum(seen) == sum(end - start for _, start, end in before)
    assert is_complete(tmp_path / "out") and strays() == []


def test_pages_go_to_the_disk_and_are_let_go(
    tmp_path: Path, followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smelt.checkpoint import behind

    monkeypatch.setattr(behind, "FLYING", 0)
    written: list[tuple[int, int]] = []
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr(behind, "start_writeback", lambda fd, at, size: written.append((at, size)) or True)
    monkeypatch.setattr(behind, "drop_cached", lambda fd, at, size: dropped.append((at, size)))
    with CheckpointWriter(tmp_path / "out", example_layout(), swift=followed) as writer:
        write_all(writer)
        writer.commit()
    assert sorted(written) == sorted(dropped) and written
    assert sum(size for _, size in written) == sum(spec.nbytes for spec in example_layout().specs.values())


@pytest.mark.parametrize("when", ["at once", "later"])
def test_bytes_changed_behind_the_writer_are_found(
    tmp_path: Path, followed: bool, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong byte on its way to the disk is seen whether it is read back early or at the end."""
    from smelt.checkpoint import behind

    if when == "later":  # the follower does not wake up before all is written
        monkeypatch.setattr(behind, "STEP", 1 << 40)
    writer = CheckpointWriter(tmp_path / "out", example_layout(), swift=followed)
    with pytest.raises(VerificationError, match="are not those that were written"), writer:
        name, _ = max(writer.layout.specs.items(), key=lambda item: item[1].nbytes)
        shard, offset = writer.layout.place(name)
        write_all(writer, block=PIECE)
        if when == "at once":
            writer._follower.finish()  # type: ignore[union-attr]
            writer._scan.digests[name].put(0, b"12345678")  # type: ignore[union-attr]
        else:
            os.pwrite(writer._fds[shard], b"\xa5" * 7, offset + 11)
        writer.commit()
    assert left_over(tmp_path) == []


def test_a_failure_behind_the_writing_is_told(tmp_path: Path, followed: bool) -> None:
    with pytest.raises(ZeroDivisionError), CheckpointWriter(
        tmp_path / "out", example_layout(), swift=followed
    ) as writer:  # fmt: skip
        writer._follower._check = lambda *span: 1 // 0  # type: ignore[union-attr,assignment]
        write_all(writer)
        writer.commit()
    assert left_over(tmp_path) == [] and strays() == []


def test_a_failure_behind_the_writing_stops_the_next_write(tmp_path: Path, followed: bool) -> None:
    with pytest.raises(ZeroDivisionError), CheckpointWriter(
        tmp_path / "out", example_layout(), swift=followed
    ) as writer:  # fmt: skip
        follower = writer._follower
        assert follower is not None
        follower._check = lambda *span: 1 // 0  # type: ignore[assignment]
        spec = example_specs()[0]
        content = content_of(spec)
        writer.write(spec.name, 0, content[:PIECE])
        follower._thread.join(10)
        writer.write(spec.name, PIECE, content[PIECE : 2 * PIECE])
        raise AssertionError("the second write went through")
    assert left_over(tmp_path) == []
