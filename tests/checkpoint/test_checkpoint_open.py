"""Checkpoints open by their headers alone, and everything that is wrong with one is said at once."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ckpt_tools import entry, raw_file, read_all, save, sharded

from smelt.checkpoint import open_checkpoint
from smelt.core.errors import CheckpointError

ONES = np.ones((2, 3), np.float32)


def refusal(path: Path) -> str:
    """The message with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def test_single_file_directory_and_bare_file(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"b": ONES, "a": 2 * ONES})
    (tmp_path / "config.json").write_text('{"vocab_size": 7}')
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["b", "a"], "in the order of the file"
        assert checkpoint.config == {"vocab_size": 7}
        assert np.frombuffer(read_all(checkpoint)["a"], "<f4").tolist() == [2.0] * 6
    with open_checkpoint(tmp_path / "model.safetensors") as alone:
        assert alone.config == {} and alone.files == (tmp_path / "model.safetensors",)
    with pytest.raises(CheckpointError, match="is a file; expected a model directory"):
        open_checkpoint(tmp_path / "model.safetensors", allow_single_file=False)


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    sharded(
        tmp_path,
        {"model-00001-of-00002.safetensors": {"a": ONES}, "model-00002-of-00002.safetensors": {"b": ONES}},
    )
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert [meta.file.name for meta in checkpoint.tensors.values()] == sorted(
            p.name for p in checkpoint.files
        )
        assert checkpoint.notes == []


def test_what_transformers_would_load_is_chosen_and_said(tmp_path: Path) -> None:
    sharded(tmp_path, {"model-00001-of-00001.safetensors": {"stale": ONES}})
    save(tmp_path / "model.safetensors", {"fresh": ONES})
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    (tmp_path / "optimizer.pt").write_bytes(b"not weights")
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["fresh"]
    assert checkpoint.notes == [
        "beside the weights that are read: 'model-00001-of-00001.safetensors', 'pytorch_model.bin', "
        "'model.safetensors.index.json'"
    ]


def test_a_models_own_torch_file_comes_before_an_adapter_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "adapter_model.safetensors", {"lora": ONES})
    save(tmp_path / "pytorch_model.bin", {"model": ONES})
    assert list(open_checkpoint(tmp_path).tensors) == ["model"]


@pytest.mark.parametrize(
    "names",
    [
        ["diffusion_pytorch_model.safetensors"],
        ["weights.safetensors"],
        ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"],
    ],
)
def test_unusual_names_are_read_where_only_one_thing_can_be_meant(tmp_path: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        save(tmp_path / name, {f"t{number}": ONES})
    assert len(open_checkpoint(tmp_path).tensors) == len(names)


def test_ambiguous_and_empty_directories(tmp_path: Path) -> None:
    assert "the directory is empty" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "holds no weights" in refusal(tmp_path)
    save(tmp_path / "one.safetensors", {"a": ONES})
    save(tmp_path / "two.safetensors", {"a": ONES})
    assert "several weight files and none with a usual name: 'one.safetensors', 'two.safetensors'" in refusal(
        tmp_path
    )


def test_missing_path_names_the_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "llama-merged").mkdir()
    assert "did you mean" in refusal(tmp_path / "lama-merged") and "llama-merged" in refusal(
        tmp_path / "lama-merged"
    )


F32 = entry("F32", [2, 3], 0, 24)
BROKEN_HEADERS = {
    "empty file": (b"", b"", 0, "too short"),
    "header longer than file": (
        {"a": F32},
        bytes(24),
        10_000,
        "header of 10000 bytes is longer than the file",
    ),
    "absurd header size": ({"a": F32}, bytes(24), 2**60, "would be 1152921504606846976 bytes long"),
    "invalid json": ('{"a": ', b"", None, "is not valid JSON"),
    "not utf-8": (b'{"\xff": 1}', b"", None, "is not UTF-8 text (byte 2)"),
    "a list": ("[1, 2]", b"", None, "does not start like safetensors"),
    "deep nesting": ('{"a":' * 200_000, b"", None, "nested too deeply"),
    "duplicate keys": ('{"a": 1, "b": 2, "a": 3}', b"", None, "duplicate keys: 'a'"),
    "duplicate keys inside": (
        '{"a": {"dtype": "F32", "dtype": "F16"}}',
        b"",
        None,
        "duplicate keys: 'dtype'",
    ),
    "unknown dtype": (
        {"a": entry("BF61", [2], 0, 4)},
        bytes(4),
        None,
        "unknown dtype 'BF61'; did you mean 'BF16'?",
    ),
    "packed dtype": (
        {"a": entry("F4", [2], 0, 1)},
        bytes(1),
        None,
        "dtype F4 packs several values into a byte",
    ),
    "dtype is a list": ({"a": entry([], [2], 0, 1)}, bytes(1), None, "unknown dtype []"),  # type: ignore[arg-type]
    "overlap": (
        {"a": F32, "b": entry("F32", [2], 20, 28)},
        bytes(28),
        None,
        "tensor 'b': overlaps 'a' by 4 bytes",
    ),
    "hole": ({"a": F32, "b": entry("F32", [1], 28, 32)}, bytes(32), None, "tensor 'b': a hole of 4 bytes"),
    "hole at the start": ({"a": entry("F32", [1], 4, 8)}, bytes(8), None, "a hole of 4 bytes"),
    "out of range": (
        {"a": F32, "b": entry("F32", [2], 24, 32)},
        bytes(28),
        None,
        "tensor 'b': the file ends at byte",
    ),
    "bytes left over": ({"a": F32}, bytes(25), None, "1 bytes after the last tensor"),
    "reversed offsets": ({"a": entry("F32", [1], 8, 4)}, bytes(8), None, "reversed data_offsets [8, 4]"),
    "wrong length": (
        {"a": entry("F32", [2, 2], 0, 24)},
        bytes(24),
        None,
        "spans 24 bytes; expected 16 for F32",
    ),
    "negative dim": ({"a": entry("F32", [-1], 0, 4)}, bytes(4), None, "impossible shape [-1]"),
    "fractional dim": ({"a": entry("F32", [1.0], 0, 4)}, bytes(4), None, "impossible shape [1.0]"),  # type: ignore[list-item]
    "boolean dim": ({"a": entry("F32", [True], 0, 4)}, bytes(4), None, "impossible shape [True]"),
    "huge dims": ({"a": entry("F32", [2**62] * 5, 0, 4)}, bytes(4), None, "spans 4 bytes"),
    "negative offset": ({"a": entry("F32", [1], -4, 0)}, bytes(4), None, "impossible data_offsets [-4, 0]"),
    "missing field": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), None, "header entry is incomplete"),
    "entry is a number": ({"a": 3}, b"", None, "header entry is incomplete"),
    "metadata not text": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__ is not a map of strings"),
}


@pytest.mark.parametrize("case", BROKEN_HEADERS)
def test_broken_headers_name_file_and_tensor(tmp_path: Path, case: str) -> None:
    header, data, length, fragment = BROKEN_HEADERS[case]
    path = raw_file(tmp_path / "model.safetensors", header, data, length=length)
    if case == "empty file":
        path.write_bytes(b"")
    message = refusal(path)
    assert fragment in message and str(path) in message


def test_absurd_header_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """A sparse file that really is long enough for a 200 MB header is still refused by the bound."""
    path = raw_file(tmp_path / "model.safetensors", {"a": F32}, length=200_000_000)
    os.truncate(path, 300_000_000)
    assert "at most 100000000 bytes" in refusal(path)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"GGUF" + bytes(40), "GGUF"),
        (b"PK\x03\x04" + bytes(40), "rename it to .bin"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_other_files_under_a_weights_name_are_recognised(
    tmp_path: Path, content: bytes, advice: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    expected = "sound zip archive" if name.endswith("bin") and content.startswith(b"PK") else advice
    assert expected in refusal(tmp_path)


def test_all_problems_of_a_checkpoint_come_in_one_error(tmp_path: Path) -> None:
    bad = {f"t{number}": entry("F33", [1], 0, 4) for number in range(3)}
    raw_file(tmp_path / "model-00001-of-00002.safetensors", bad, bytes(4))
    raw_file(tmp_path / "model-00002-of-00002.safetensors", "{", b"")
    index = {
        "weight_map": {"t0": "model-00001-of-00002.safetensors", "u": "model-00002-of-00002.safetensors"}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert len(caught.value.problems) == 4


def test_a_thousand_problems_do_not_fill_the_screen(tmp_path: Path) -> None:
    raw_file(tmp_path / "model.safetensors", {f"t{n}": 3 for n in range(1000)})
    message = refusal(tmp_path)
    assert len(message.splitlines()) == 21 and message.endswith("and 980 more problems like these")


INDEX_FAULTS = {
    "missing shard": (
        {"a": "one.safetensors", "b": "gone.safetensors"},
        "shard 'gone.safetensors', which should hold 1",
    ),
    "parent directory": (
        {"a": "one.safetensors", "b": "../x.safetensors"},
        "names '../x.safetensors', outside",
    ),
    "absolute": ({"a": "one.safetensors", "b": "/etc/passwd"}, "names '/etc/passwd', outside its directory"),
    "nul byte": ({"a": "one.safetensors", "b": "a\0b"}, "names 'a\\x00b', outside"),
    "not a name": ({"a": "one.safetensors", "b": 3}, "gives no file name for 'b'"),
    "empty": ({}, "has no weight_map"),
    "tensor not in shard": (
        {"a": "one.safetensors", "c": "one.safetensors", "b": "two.safetensors"},
        "tensor 'c': 'one.saf",
    ),
    "tensor elsewhere": (
        {"a": "two.safetensors", "b": "one.safetensors"},
        "stands in one.safetensors, the index says 'two",
    ),
    "not in index": ({"a": "one.safetensors"}, ""),
    "unlisted": (
        {"a": "one.safetensors", "b": "two.safetensors", "d": "three.safetensors"},
        "1 tensors of its shards are not",
    ),
}


@pytest.mark.parametrize("case", [case for case in INDEX_FAULTS if case != "not in index"])
def test_index_faults(tmp_path: Path, case: str) -> None:
    weight_map, fragment = INDEX_FAULTS[case]
    shards = {
        "one.safetensors": {"a": ONES},
        "two.safetensors": {"b": ONES},
        "three.safetensors": {"d": ONES, "e": ONES},
    }
    sharded(tmp_path, shards, weight_map)  # type: ignore[arg-type]
    message = refusal(tmp_path)
    assert fragment in message and "model.safetensors.index.json" in message


def test_same_tensor_in_two_shards(tmp_path: Path) -> None:
    shards = {"one.safetensors": {"a": ONES, "b": ONES}, "two.safetensors": {"b": ONES}}
    sharded(tmp_path, shards, {"a": "one.safetensors", "b": "two.safetensors"})
    assert "two.safetensors, tensor 'b': also stands in one.safetensors" in refusal(tmp_path)


def test_shard_links_may_only_lead_into_the_hub_cache(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside.safetensors", {"a": ONES})
    folder = sharded(tmp_path / "model", {"one.safetensors": {"a": ONES}})
    (folder / "one.safetensors").unlink()
    (folder / "one.safetensors").symlink_to(outside)
    assert f"is a link to {outside}, outside its directory" in refusal(folder)

    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.parent.mkdir()
    sharded(snapshot, {"one.safetensors": {"a": ONES}})
    (snapshot / "one.safetensors").rename(repository / "blobs" / "0123")
    (snapshot / "one.safetensors").symlink_to("../../blobs/0123")
    assert list(open_checkpoint(snapshot).tensors) == ["a"]


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1', "\xff"])
def test_broken_config_is_an_error_of_its_own(tmp_path: Path, text: str) -> None:
    save(tmp_path / "model.safetensors", {"a": ONES})
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert "config.json" in refusal(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert "cannot be read" in refusal(tmp_path) or "too short" in refusal(tmp_path)


def test_file_truncated_after_opening_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", {"a": ONES, "b": ONES})
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, path.stat().st_size - 5)
        with pytest.raises(CheckpointError, match=r"tensor 'b': the file ends 5 bytes early"):
            read_all(checkpoint)


def test_reads_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", {"a": ONES, "b": ONES})
    with open_checkpoint(path) as checkpoint:
        for start, length in ((20, 8), (-1, 2), (25, 0)):
            with pytest.raises(CheckpointError, match="tensor 'a'"):
                checkpoint.read_into(checkpoint.tensors["a"], start, bytearray(length))


def test_many_threads_read_what_one_would(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t{n}": rng.normal(size=(50, n + 1)).astype(np.float32) for n in range(12)}
    names = list(arrays)
    sharded(tmp_path, {f"s{k}.safetensors": {n: arrays[n] for n in names[k::3]} for k in range(3)})
    wrong: list[str] = []
    with open_checkpoint(tmp_path) as checkpoint:

        def work(offset: int) -> None:
            for number in range(200):
                name = names[(number + offset) % 12]
                meta = checkpoint.tensors[name]
                out = np.empty(arrays[name].shape, np.float32)
                checkpoint.read_into(meta, 0, out.reshape(-1))
                if not np.array_equal(out, arrays[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == [] and len(checkpoint._fds) == 3
    assert checkpoint._fds == {}


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model.safetensors", {"a": np.arange(100, dtype=np.float32)})
    whole = read_all(open_checkpoint(path))["a"]
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:7]], offset))
    assert read_all(open_checkpoint(path))["a"] == whole


def test_large_headers_open_fast(tmp_path: Path) -> None:
    header = {
        f"model.layers.{n // 800}.experts.{n % 800}.w": entry("U8", [2], 2 * n, 2 * n + 2)
        for n in range(40_000)
    }
    path = raw_file(tmp_path / "model.safetensors", header, bytes(80_000))
    times = []
    for _ in range(3):
        began = time.process_time()
        assert len(open_checkpoint(path).tensors) == 40_000
        times.append(time.process_time() - began)
    assert min(times) < 1.0, "measured: 0.3 s"
