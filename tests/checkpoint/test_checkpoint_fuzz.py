"""Whatever a file, an index or an archive is made of: it opens soundly, or a CheckpointError says why not."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ckpt_tools import read_all, save, sharded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smelt.checkpoint import open_checkpoint, verify_directory
from smelt.checkpoint.unpickle import Machine, PickleRefused
from smelt.core.errors import CheckpointError
from smelt.core.types import ITEMSIZE

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.integers(-3, 2**65), max_size=3), st.sampled_from(sorted(ITEMSIZE)),
)  # fmt: skip


@functools.cache
def sound_file(kind: str) -> bytes:
    """A small file that opens."""
    torch.manual_seed(0)
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.randn(4, 4).t()}
    if kind == "safetensors":
        from safetensors.torch import save as to_bytes

        return to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()})
    stream = io.BytesIO()
    torch.save({"state_dict": tensors, "step": 3}, stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


def opens_or_refuses(path: Path) -> bool:
    """True when a checkpoint opens and every byte it promises can be read; False when it is refused."""
    try:
        with open_checkpoint(path) as checkpoint:
            read_all(checkpoint)
    except CheckpointError as error:
        assert str(path.name) in str(error) or path.is_dir(), "the message names the file"
        assert not verify_directory(path).ok
        return False
    return True


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@FUZZ
@given(data=st.data())
def test_mutated_bytes(kind: str, data: st.DataObject) -> None:
    content = bytearray(sound_file(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["set", "cut", "insert", "move"]))
        if how == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[at : at + data.draw(st.integers(1, 40))]
        elif how == "insert":
            content[at:at] = data.draw(st.binary(max_size=20))
        else:
            content += content[at : at + 30]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x.safetensors" if kind == "safetensors" else "x.bin")
        path.write_bytes(content)
        opens_or_refuses(path)


ENTRIES = st.one_of(
    JUNK,
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.one_of(JUNK, st.sampled_from(sorted(ITEMSIZE))),
            "shape": st.one_of(JUNK, st.lists(st.integers(-1, 4), max_size=3)),
            "data_offsets": st.one_of(JUNK, st.lists(st.integers(-1, 40), min_size=2, max_size=2)),
            "more": JUNK,
        },
    ),
)


@FUZZ
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "", "é\n"]), ENTRIES),
    size=st.integers(0, 50),
)
def test_headers_made_of_anything(header: dict[str, Any], size: int) -> None:
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
        opens_or_refuses(path)


@FUZZ
@given(
    weight_map=st.one_of(
        JUNK,
        st.dictionaries(
            st.sampled_from(["a", "b", "c"]),
            st.one_of(
                JUNK,
                st.sampled_from(["one.safetensors", "two.safetensors", "../one.safetensors", ".", "", "\0"]),
            ),
        ),
    ),
    extra=JUNK,
)
def test_indexes_made_of_anything(weight_map: Any, extra: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder / "one.safetensors", {"a": np.ones(2)})
        save(folder / "two.safetensors", {"b": np.ones(2)})
        index = {"weight_map": weight_map, "metadata": extra}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        opened = opens_or_refuses(folder)
        assert opened == (
            weight_map
            in (
                {"a": "one.safetensors", "b": "two.safetensors"},
                {"a": "one.safetensors"},
                {"b": "two.safetensors"},
            )
        )


@FUZZ
@given(st.binary(max_size=200))
def test_index_files_of_raw_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = sharded(Path(name), {"one.safetensors": {"a": np.ones(2)}})
        (folder / "model.safetensors.index.json").write_bytes(content)
        assert not opens_or_refuses(folder)


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_random_pickles(code: bytes, protocol: bool) -> None:
    from smelt.checkpoint.torchfile import _ALLOWED, _storage

    with contextlib.suppress(PickleRefused):
        Machine(b"\x80\x02" * protocol + code + b".", 0, _ALLOWED, _storage).load()


NAMES = [
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nSize\n",
]
VALUES = [
    b"K\x05",
    b"J\xff\xff\xff\xff",
    b"X\x01\x00\x00\x00a",
    b"q\x01",
    b"h\x01",
    b"X\x07\x00\x00\x00storage",
]
OPCODES = [bytes([code]) for code in b"()N\x88\x89\x85\x86\x87t]aels}ubRQ02"]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(NAMES + VALUES + OPCODES), max_size=30))
def test_pickles_of_real_opcodes(steps: list[bytes]) -> None:
    from smelt.checkpoint.torchfile import _ALLOWED, _storage

    with contextlib.suppress(PickleRefused):
        Machine(b"\x80\x02" + b"".join(steps) + b".", 0, _ALLOWED, _storage).load()
