"""Torch files are read tensor by tensor without torch, and no code in them ever runs."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ckpt_tools import read_all, save

from smelt.checkpoint import open_checkpoint
from smelt.checkpoint.unpickle import Machine, PickleRefused
from smelt.core.errors import CheckpointError

torch.set_num_threads(1)
LEGACY: dict[str, Any] = {"_use_new_zipfile_serialization": False}
FORMS: list[dict[str, Any]] = [
    {},
    LEGACY,
    {"pickle_protocol": 4},
    {"pickle_protocol": 5},
    {**LEGACY, "pickle_protocol": 4},
]


def plain_state() -> dict[str, torch.Tensor]:
    """Tensors of every kind a state dict may hold."""
    torch.manual_seed(0)
    base = torch.randn(40, 30)
    state: dict[str, torch.Tensor] = {
        "dense": torch.randn(3, 4),
        "bf16": torch.randn(5).bfloat16(),
        "half": torch.randn(2, 2).half(),
        "double": torch.randn(3).double(),
        "transposed": base.t(),
        "view": base[3:20:2, 4:9],
        "expanded": torch.randn(4, 1).expand(4, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "int8": torch.arange(5, dtype=torch.int8),
        "uint16": torch.arange(4).to(torch.uint16),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
    }
    state["shared"] = state["dense"]
    state["part"] = state["dense"][1]
    return state


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of the dense tensor."""
    dense = tensor.detach().contiguous().flatten()
    return dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_tensor_reads_as_torch_reads_it(tmp_path: Path, form: dict[str, Any]) -> None:
    state = plain_state()
    torch.save(collections.OrderedDict(state), tmp_path / "pytorch_model.bin", **form)
    with open_checkpoint(tmp_path) as checkpoint:
        content = read_all(checkpoint)
        assert {name: raw(tensor) for name, tensor in state.items()} == content
        assert all(checkpoint.tensors[name].shape == tuple(tensor.shape) for name, tensor in state.items())
        assert {n for n, m in checkpoint.tensors.items() if m.strides} == {
            "transposed",
            "view",
            "expanded",
            "channels_last",
        }
        assert checkpoint.notes == []


def test_any_byte_range_of_a_strided_tensor(tmp_path: Path) -> None:
    state = plain_state()
    torch.save(state, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        for name in ("transposed", "view", "expanded", "channels_last"):
            whole, meta = raw(state[name]), checkpoint.tensors[name]
            for start in range(0, len(whole), 7):
                out = bytearray(min(13, len(whole) - start))
                checkpoint.read_into(meta, start, out)
                assert bytes(out) == whole[start : start + 13], (name, start)


def test_a_saved_module_with_metadata_and_buffers(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    torch.save(module.state_dict(), tmp_path / "model.pt")
    assert set(open_checkpoint(tmp_path).tensors) == set(module.state_dict())


def test_shards_of_torch_files_with_an_index(tmp_path: Path) -> None:
    weight_map = {}
    for number in (1, 2):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({f"t{number}": torch.full((2,), float(number))}, tmp_path / name)
        weight_map[f"t{number}"] = name
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        f'{{"weight_map": {weight_map}}}'.replace("'", '"')
    )
    checkpoint = open_checkpoint(tmp_path)
    assert read_all(checkpoint) == {"t1": struct.pack("<2f", 1, 1), "t2": struct.pack("<2f", 2, 2)}


def test_safetensors_are_preferred_and_recognised_under_any_name(tmp_path: Path) -> None:
    import numpy as np

    torch.save({"old": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save(tmp_path / "model.safetensors", {"new": np.ones(1)})
    assert list(open_checkpoint(tmp_path).tensors) == ["new"]
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["new"] and "in spite of its name" in checkpoint.notes[0]


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (
            lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
            "'epoch', 'optimizer'",
        ),
        (lambda s: {"model": {"state_dict": s}}, ""),
        (lambda s: {"net": s, "step": 5}, "'step'"),
        (lambda s: {"module": s, "global_step": torch.tensor(4)}, "'global_step'"),
        (lambda s: {"model": s, "ema": {"dense": torch.zeros(1)}}, "'ema'"),
        (lambda s: {**s, "version": 2, 7: "x"}, "'version', '<int>'"),
    ],
)
def test_wrapped_state_dicts_are_unwrapped_and_the_rest_is_said(tmp_path: Path, wrap: Any, note: str) -> None:
    state = plain_state()
    torch.save(wrap(state), tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert set(checkpoint.tensors) == set(state)
    assert note in " ".join(checkpoint.notes) and bool(note) == bool(checkpoint.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}},
            "tensors in several places, here and under 'a', 'b'",
        ),
        ({"w": torch.ones(1), "sub": {"v": torch.ones(1)}}, "tensors in several places"),
        (
            {"w": torch.ones(1), "model": {"v": torch.ones(1)}},
            "tensors in several places, here and under 'model'",
        ),
        ({"w": 1}, "holds no named tensors"),
        ([torch.ones(1)], "holds a list, not a dict of tensors"),
        (torch.ones(1), "not a dict of tensors"),
        ({"w": torch.ones(2, dtype=torch.complex128)}, "refers to 'torch.ComplexDoubleStorage'"),
        ({"w": torch.ones(2, 2).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"w": torch.ones(2, dtype=torch.complex64).conj()}, "conjugated"),
        (torch.nn.Linear(2, 2), "refers to 'torch.nn.modules.linear.Linear'"),
    ],
)
@pytest.mark.parametrize("form", [{}, LEGACY])
def test_what_is_no_plain_state_dict_is_refused(
    tmp_path: Path, content: Any, message: str, form: dict[str, Any]
) -> None:
    torch.save(content, tmp_path / "x.pt", **form)
    assert message in refusal(tmp_path / "x.pt") and "x.pt" in refusal(tmp_path / "x.pt")


class Evil:
    """Pickles to a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", FORMS)
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, form: dict[str, Any]) -> None:
    marker, path = tmp_path / "owned", tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(2), "x": Evil(marker)}, path, **form)
    message = refusal(tmp_path)
    assert (
        "refers to 'posix.system', which no tensor needs; it was not run" in message and str(path) in message
    )
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file is a working attack: torch runs it
    assert marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL and REDUCE
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00}b.",  # state for a function
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # a name that may be referred to, not called
        b"\x80\x02K\x05)R.",  # a number called
        b"\x80\x02X\x02\x00\x00\x00osQ.",  # persistent id that is no storage
        b"\x80\x02r\xff\xff\xff\x7f.",  # memo of nothing
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # a long that is longer than the file
        b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes likewise
        b"\x80\x02" + b"(" * 10 + b"u.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02",
        b"",
    ],
)
def test_hostile_and_broken_pickles(code: bytes) -> None:
    from smelt.checkpoint.torchfile import _ALLOWED, _storage

    with pytest.raises(PickleRefused):
        Machine(code, 0, _ALLOWED, _storage).load()


def test_huge_memo_numbers_cost_nothing() -> None:
    """The interpreter's own unpickler takes 30 GB for this one."""
    assert Machine(b"\x80\x02K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.", 0, {}, None).load() == 7


def test_pickles_without_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.checkpoint.unpickle.MAX_PICKLE", 1000)
    for code in (b"(" * 2000 + b".", b"X\xd0\x07\x00\x00" + b"a" * 2000 + b"."):
        with pytest.raises(PickleRefused):
            Machine(code, 0, {}, None).load()


def test_deep_tuples_as_keys_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    deep = b"\x80\x02})" + b"\x85" * 500_000 + b"K\x01s."
    assert Machine(deep, 0, {}, None).load() == {"<tuple>": 1}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_machine_agrees_with_pickle_on_plain_data(protocol: int) -> None:
    value = {
        "a": [1, -1, 255, 256, 65535, 65536, 2**31, -(2**40), 2**200, 1.5, True, False, None],
        "b": ("x", "ä" * 300, ("", ())), 3: {"n": [[], {}]}, "long": list(range(3000)),
    }  # fmt: skip
    data = pickle.dumps(value, protocol)
    assert Machine(data, 0, {}, None).load() == value
    assert Machine(pickletools.optimize(data), 0, {}, None).load() == value


def rezip(
    path: Path, *, compress: bool = False, drop: str = "", replace: tuple[str, bytes] | None = None
) -> None:
    """Rewrite a torch zip with some of its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            if not (drop and name.endswith(drop)):
                archive.writestr(name, replace[1] if replace and name.endswith(replace[0]) else data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compress": True}, "compressed or encrypted member"),
        ({"drop": "data/0"}, "needs 24 bytes of a storage of 0"),
        ({"drop": "data.pkl"}, "none that torch.save writes"),
        ({"replace": ("data/0", b"short")}, "tensor 'w': needs 24 bytes of a storage of 5"),
        ({"replace": ("byteorder", b"big")}, "big-endian"),
        ({"replace": ("data.pkl", b"\x80\x02}.")}, "holds no named tensors"),
        ({"replace": (".format_version", b"1")}, None),
    ],
)
def test_tampered_zips(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    path = tmp_path / "x.bin"
    torch.save({"w": torch.ones(2, 3)}, path)
    rezip(path, **change)
    if message is None:
        assert read_all(open_checkpoint(path))["w"] == raw(torch.ones(2, 3))
    else:
        assert message in refusal(path)


@pytest.mark.parametrize(("field", "value"), [(10, 8), (8, 1)])
def test_members_that_only_claim_to_be_compressed_or_encrypted(
    tmp_path: Path, field: int, value: int
) -> None:
    path = tmp_path / "x.bin"
    torch.save({"w": torch.ones(2, 3)}, path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + field] = value
    path.write_bytes(content)
    assert "compressed or encrypted member" in refusal(path)


@pytest.mark.parametrize("form", [{}, LEGACY])
def test_truncated_torch_files(tmp_path: Path, form: dict[str, Any]) -> None:
    path = tmp_path / "x.bin"
    torch.save({"w": torch.randn(100, 30), "v": torch.randn(7)}, path, **form)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 2000, len(whole) // 2, 700, 100, 20, 3, 0):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(path)


def test_a_tensor_that_repeats_its_storage_beyond_reason(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "x.bin")
    assert "repeats 4 stored bytes" in refusal(tmp_path / "x.bin")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/constants.pkl", b"\x80\x02).")
    assert "TorchScript" in refusal(tmp_path / "x.pt")


def test_reading_torch_files_does_not_import_torch(tmp_path: Path) -> None:
    torch.save(plain_state(), tmp_path / "x.pt")
    code = (
        "import sys; from smelt.checkpoint import open_checkpoint, verify_directory;"
        f"print(verify_directory({str(tmp_path / 'x.pt')!r}).tensors, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(plain_state())), "False"]
