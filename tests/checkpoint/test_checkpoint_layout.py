"""Shard layouts: deterministic, aligned, and read by safetensors itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ckpt_tools import content_of, example_specs
from hypothesis import given
from hypothesis import strategies as st

from smelt.checkpoint import CheckpointWriter, open_checkpoint, parse_mergekit_size, parse_size, plan_shards
from smelt.checkpoint.layout import ALIGNMENT
from smelt.core.errors import OutputError
from smelt.core.types import ITEMSIZE, TensorSpec


def test_one_file_or_numbered_shards() -> None:
    specs = [TensorSpec(f"t{n}", "F32", (10,)) for n in range(5)]
    assert [s.file for s in plan_shards(specs, 0).shards] == ["model.safetensors"]
    assert [s.file for s in plan_shards(specs, 200).shards] == ["model.safetensors"]
    layout = plan_shards(specs, 80)
    assert [s.file for s in layout.shards] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert [list(s.offsets) for s in layout.shards] == [["t0", "t1"], ["t2", "t3"], ["t4"]]
    index = layout.index()
    assert index is not None and index["metadata"]["total_size"] == 200
    assert index["weight_map"]["t3"] == "model-00002-of-00003.safetensors"


def test_a_tensor_larger_than_a_shard_stands_alone() -> None:
    specs = [TensorSpec("a", "F32", (1,)), TensorSpec("big", "F32", (100,)), TensorSpec("b", "F32", (1,))]
    assert [list(s.offsets) for s in plan_shards(specs, 50).shards] == [["a"], ["big"], ["b"]]


def test_headers_are_those_the_format_asks_for() -> None:
    shard = plan_shards(example_specs(), 0, metadata={"made": "by smelt"}).shards[0]
    assert (
        len(shard.header) % ALIGNMENT == 0
        and int.from_bytes(shard.header[:8], "little") == len(shard.header) - 8
    )
    header = json.loads(shard.header[8:])
    assert header.pop("__metadata__") == {"made": "by smelt", "format": "pt"}
    for name, entry in header.items():
        assert shard.offsets[name] == len(shard.header) + entry["data_offsets"][0]


def test_large_files_begin_at_large_pages_and_whole_pages_come_first() -> None:
    specs = [
        TensorSpec("norm", "BF16", (2048,)),
        TensorSpec("up", "BF16", (8192, 4096)),
        TensorSpec("none", "BF16", (0, 8)),
        TensorSpec("odd", "BF16", (3,)),
        TensorSpec("down", "BF16", (4096, 8192)),
    ]
    shard = plan_shards(specs, 0).shards[0]
    assert len(shard.header) == 128 * 1024, "a power of two, at most a thousandth of the file"
    assert json.loads(shard.header[8:]), "spaces behind the JSON"
    assert list(shard.offsets) == ["up", "none", "down", "norm", "odd"]
    assert all(shard.offsets[name] % (128 * 1024) == 0 for name in ("up", "down"))
    huge = plan_shards([TensorSpec(f"w{n}", "BF16", (8192, 65536)) for n in range(3)], 0).shards[0]
    assert len(huge.header) == 2**21, "but no more than a huge page"


def test_order_is_kept_unless_a_tensor_would_be_misaligned() -> None:
    kept = plan_shards([TensorSpec("b", "BF16", (2,)), TensorSpec("a", "F32", (1,))], 0)
    assert list(kept.shards[0].offsets) == ["b", "a"]
    moved = plan_shards(
        [TensorSpec("odd", "U8", (3,)), TensorSpec("x", "F32", (1,)), TensorSpec("y", "F32", (1,))], 0
    )
    assert list(moved.shards[0].offsets) == ["x", "y", "odd"]


@given(
    st.lists(
        st.builds(
            TensorSpec,
            st.text(min_size=1).filter(lambda name: name != "__metadata__"),
            st.sampled_from(sorted(ITEMSIZE)),
            st.lists(st.integers(0, 5), max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda spec: spec.name,
    ),
    st.integers(0, 300),
)
def test_layouts_hold_every_tensor_once_aligned_and_without_holes(
    specs: list[TensorSpec], shard_size: int
) -> None:
    layout = plan_shards(specs, shard_size)
    assert layout == plan_shards(specs, shard_size)
    assert sorted(layout.shard_of) == sorted(spec.name for spec in specs)
    for shard in layout.shards:
        reached = len(shard.header)
        for name, offset in shard.offsets.items():
            assert offset == reached and offset % ITEMSIZE[layout.specs[name].dtype] == 0
            reached += layout.specs[name].nbytes
        assert reached == shard.size
        assert shard_size == 0 or len(shard.offsets) == 1 or shard.size - len(shard.header) <= shard_size


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no tensors to write"),
        ([TensorSpec("a", "BF16", (2,))] * 2, "the name is taken"),
        ([TensorSpec("__metadata__", "BF16", (2,))], "the name is taken"),
        ([TensorSpec("a", "BF17", (2,))], "did you mean 'BF16'"),
        ([TensorSpec("a", "BF16", (-2,))], "impossible shape"),
    ],
)
def test_impossible_layouts(specs: list[TensorSpec], message: str) -> None:
    with pytest.raises(OutputError, match=message):
        plan_shards(specs, 0)


@pytest.mark.parametrize("shard_size", [0, 100_000])
def test_safetensors_and_torch_read_what_was_written(tmp_path: Path, shard_size: int) -> None:
    from safetensors import safe_open

    layout = plan_shards(example_specs(), shard_size)
    with CheckpointWriter(tmp_path / "out", layout) as writer:
        for spec in example_specs():
            writer.write(spec.name, 0, content_of(spec))
        writer.commit()
    found = {}
    for shard in layout.shards:
        with safe_open(tmp_path / "out" / shard.file, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    import torch

    for spec in example_specs():
        tensor = found[spec.name]
        flat = tensor.flatten().view(torch.uint8).numpy().tobytes() if spec.numel else b""
        assert tuple(tensor.shape) == spec.shape and flat == content_of(spec)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert {name: (m.dtype, m.shape) for name, m in checkpoint.tensors.items()} == {
            spec.name: (spec.dtype, spec.shape) for spec in example_specs()
        }


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500mb", 5 * 10**8),
        ("2GiB", 2**31),
        (" 1.5 KiB ", 1536),
        ("123", 123),
        (7, 7),
        ("3T", 3 * 10**12),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 XB", "-1GB", "5B", "0", "0.2", "1e9", "five"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(OutputError, match=r"is not a size|no room"):
        parse_size(text)


def test_mergekit_sizes() -> None:
    assert [parse_mergekit_size(t) for t in ("5B", "1k", "20M", "300", "0", "-5B")] == [
        5 * 10**9,
        1000,
        2 * 10**7,
        300,
        0,
        0,
    ]
    for text in ("5GB", "1.5B", ""):
        with pytest.raises(OutputError, match="is not a shard size"):
            parse_mergekit_size(text)
