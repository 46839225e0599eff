"""GGUF control vectors: round trips, agreement with the format's own library, and hostile files."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
import torch

from smelt.core.errors import CheckpointError, LatentError
from smelt.latent.gguf_vectors import read_gguf, write_gguf
from smelt.latent.steering import SteeringVector


def vector(layers=(2, 3, 5), size=5) -> SteeringVector:
    generator = torch.Generator().manual_seed(0)
    return SteeringVector(
        {layer: torch.randn(size, generator=generator) for layer in layers}, 6, model_type="qwen2"
    )


def written_by_the_library(path, directions, architecture="controlvector", hint="mistral", **extra):
    """A file as repeng writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", hint)
    writer.add_uint32(f"{architecture}.layer_count", len(directions))
    for key, value in extra.items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_float64(key, value)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("size", [1, 5, 8, 33])
def test_round_trip_is_exact(tmp_path, size):
    path = vector(size=size).to_gguf(tmp_path / "v.gguf")
    again = SteeringVector.load(path, n_layers=6)
    assert again == vector(size=size)
    assert again.model_type == "qwen2"


def test_the_formats_own_library_reads_what_we_write(tmp_path):
    """direction.N is added after layer N: the input of layer N + 1."""
    path = vector().to_gguf(tmp_path / "v.gguf")
    reader = gguf.GGUFReader(path)
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert sorted(found) == ["direction.1", "direction.2", "direction.4"]
    assert np.array_equal(found["direction.4"], vector().vectors[5].numpy())
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "qwen2"
    assert reader.get_field("controlvector.layer_count").contents() == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_we_read_what_the_library_writes(tmp_path, dtype):
    directions = {layer: (np.arange(7) / 8 - layer).astype(dtype) for layer in (1, 2, 11)}
    extra = {"some.list": ["a", "bc"], "some.number": 0.5, "some.ints": [1, 2, 3]}
    written_by_the_library(tmp_path / "v.gguf", directions, **extra)
    found = read_gguf(tmp_path / "v.gguf")
    assert list(found.directions) == [1, 2, 11]
    assert all(np.array_equal(found.directions[k], v.astype(np.float32)) for k, v in directions.items())
    assert found.keys["some.list"] == ["a", "bc"]
    loaded = SteeringVector.load(tmp_path / "v.gguf")
    assert (loaded.layers, loaded.model_type) == ([2, 3, 12], "mistral")


def test_bfloat16_is_read(tmp_path):
    value = torch.tensor([1.5, -2.0, 0.0078125]).to(torch.bfloat16)
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    raw = value.view(torch.int16).numpy().view(np.uint8)
    writer.add_tensor("direction.3", raw, raw_shape=raw.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert np.array_equal(read_gguf(tmp_path / "v.gguf").directions[3], value.float().numpy())


def test_layers_without_a_place_are_refused_or_dropped_on_request(tmp_path):
    early = vector(layers=(0, 1, 2))
    with pytest.raises(LatentError, match=r"no place for layers \[0, 1\]"):
        early.save(tmp_path / "v.gguf")
    early.to_gguf(tmp_path / "v.gguf", drop_early=True)
    assert SteeringVector.load(tmp_path / "v.gguf").layers == [2]
    with pytest.raises(LatentError, match="no directions"):
        vector(layers=(0, 1)).to_gguf(tmp_path / "w.gguf", drop_early=True)
    with pytest.raises(LatentError, match="one vector per layer"):
        SteeringVector({2: torch.ones(3, 4)}).to_gguf(tmp_path / "w.gguf")


def test_an_existing_file_survives_a_refused_write(tmp_path):
    path = vector().to_gguf(tmp_path / "v.gguf")
    before = path.read_bytes()
    with pytest.raises(LatentError):
        write_gguf(path, {})
    assert path.read_bytes() == before


def test_a_model_file_is_no_control_vector(tmp_path):
    written_by_the_library(tmp_path / "m.gguf", {1: np.ones(3, np.float32)}, architecture="llama")
    with pytest.raises(CheckpointError, match="'llama'"):
        read_gguf(tmp_path / "m.gguf")


def test_every_truncation_is_noticed(tmp_path):
    whole = vector().to_gguf(tmp_path / "v.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    data_end = len(whole) - (32 - 5 * 4)  # the padding after the last tensor carries nothing
    for end in [*range(1, data_end, 7), data_end - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            read_gguf(path)


def test_every_flipped_header_byte_is_survived(tmp_path):
    """A damaged header gives an error of ours or a readable vector, never a crash or a hang."""
    whole = bytearray(vector().to_gguf(tmp_path / "v.gguf").read_bytes())
    path = tmp_path / "bad.gguf"
    refused = 0
    for index in range(320):
        damaged = whole.copy()
        damaged[index] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_gguf(path)
        except CheckpointError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"GGML" + bytes(40), "no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "ends at byte"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "ends at byte"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "value type 99"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 0, 2**50),
            "array claims",
        ),
    ],
)
def test_hostile_headers_are_refused(tmp_path, data, said):
    (tmp_path / "v.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=said):
        read_gguf(tmp_path / "v.gguf")


def test_one_layer_twice_is_refused(tmp_path):
    written_by_the_library(tmp_path / "v.gguf", {"1": np.ones(3, np.float32), "01": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match="each once"):
        read_gguf(tmp_path / "v.gguf")
