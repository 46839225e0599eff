"""Verification reads every byte once and names each tensor that is not what it should be."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ckpt_tools import content_of, example_layout, example_specs, raw_file, strays

from smelt.arch import check_agreement
from smelt.checkpoint import CheckpointWriter, digest, tensor_digest, verify, verify_directory
from smelt.core.errors import CheckpointError, VerificationError
from smelt.core.types import TensorSpec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A finished checkpoint in two shards, with its provenance."""
    target = tmp_path / "model"
    with CheckpointWriter(target, example_layout(500_000)) as writer:
        for spec in example_specs():
            writer.write(spec.name, 0, content_of(spec))
        writer.add_json("config.json", {"vocab_size": 1000, "num_hidden_layers": 1})
        writer.add_json("smelt.json", {"outputs": writer.verify().digests})
        writer.commit()
    return target


def damage(model: Path, name: str, position: int, value: int | None = None) -> None:
    """Change one byte of a tensor."""
    shard, offset = example_layout(500_000).place(name)
    path = model / example_layout(500_000).shards[shard].file
    content = bytearray(path.read_bytes())
    content[offset + position] = content[offset + position] ^ 1 if value is None else value
    path.write_bytes(content)


def problems(model: Path, **options: Any) -> list[str]:
    return [str(problem) for problem in verify_directory(model, **options).problems]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_sound_model_is_summed_up(model: Path, threads: int) -> None:
    seen: list[int] = []
    report = verify_directory(
        model, threads=threads, expected=example_layout(), agreement=check_agreement, on_progress=seen.append
    )
    assert report.ok and report.warnings == () and report.compared == 5
    assert (report.tensors, report.files) == (5, 2)
    assert report.bytes == sum(spec.nbytes for spec in example_specs()) == sum(seen)
    assert report.parameters == sum(spec.numel for spec in example_specs())
    assert report.dtypes == {"BF16": 666_666, "F32": 132_616, "F16": 0}
    assert report.digests == {spec.name: tensor_digest(content_of(spec)) for spec in example_specs()}
    report.raise_for_problems()


@pytest.mark.parametrize("position", [0, 131_071, 665_999])
def test_one_changed_byte_is_named_by_tensor(model: Path, position: int) -> None:
    damage(model, "model.embed_tokens.weight", position)
    found = problems(model)
    assert len(found) == 1 and found[0].startswith("tensor 'model.embed_tokens.weight': content has digest")
    with pytest.raises(VerificationError):
        verify_directory(model).raise_for_problems()


def test_digests_may_be_given_and_are_then_exhaustive(model: Path) -> None:
    known = dict(verify_directory(model).digests)
    del known["model.norm.weight"]
    known["lm_head.weight"] = "00"
    assert problems(model, digests=known) == [
        "tensor 'lm_head.weight': is recorded but cannot be found or read",
        "tensor 'model.norm.weight': is not among the recorded outputs",
    ]
    assert problems(model, digests={}) == []


def test_cold_verification_asks_the_disk(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = verify.os.posix_fadvise
    monkeypatch.setattr(verify.os, "posix_fadvise", lambda *hint: asked.append(hint[3]) or real(*hint))
    assert verify_directory(model).ok and asked == []
    assert verify_directory(model, cold=True).ok and asked == [verify.os.POSIX_FADV_DONTNEED] * 2


def test_names_shapes_and_dtypes_against_the_plan(model: Path) -> None:
    specs = [
        *example_specs()[:-2],
        TensorSpec("model.norm.weight", "F16", (333,)),
        TensorSpec("x", "BF16", (1, 2)),
    ]
    assert problems(model, expected=specs) == [
        "tensor 'model.norm.weight': is BF16 [333]; expected F16 [333]",
        "tensor 'x': is missing; expected BF16 [1, 2]",
        "tensor 'model.layers.0.none': is not in the plan; expected no such tensor",
    ]


def test_nan_is_found_counted_and_located(model: Path) -> None:
    damage(model, "model.layers.0.up.weight", 4 * 20_000 + 3, 0x7F)
    damage(model, "model.layers.0.up.weight", 4 * 20_000 + 2, 0x80)
    found = problems(model, digests={})
    assert len(found) == 1
    assert (
        "'model.layers.0.up.weight': 1 of 33153 values are NaN or Inf, the first at element 20000" in found[0]
    )
    assert problems(model, digests={}, allow_nonfinite=True) == []


def test_a_corrupt_checkpoint_is_a_report_and_a_missing_one_an_error(model: Path, tmp_path: Path) -> None:
    (model / "model-00002-of-00002.safetensors").unlink()
    assert "is missing" in problems(model)[0]
    with pytest.raises(CheckpointError, match="no such file"):
        verify_directory(tmp_path / "nowhere")


def test_broken_provenance_is_a_problem(model: Path) -> None:
    for text in ("{", '{"outputs": 3}'):
        (model / "smelt.json").write_text(text)
        assert "smelt.json" in problems(model)[0]


def test_a_single_file_is_verified_without_the_provenance_beside_it(model: Path) -> None:
    report = verify_directory(model / "model-00001-of-00002.safetensors")
    assert report.ok and report.tensors == 1 and report.compared == 0


@pytest.mark.parametrize(
    ("config", "error", "warning"),
    [
        (
            {"vocab_size": 1000, "num_hidden_layers": 3},
            "num_hidden_layers is 3, but the weights hold layers",
            None,
        ),
        ({"vocab_size": 1001, "num_hidden_layers": 1}, "has 1000 rows; expected 1001, the vocab_size", None),
        ({"vocab_size": 990, "num_hidden_layers": 1}, None, "has 1000 rows; expected 990"),
        (
            {"vocab_size": 1000, "num_hidden_layers": 1, "torch_dtype": "float16"},
            None,
            "dtype is float16, but most",
        ),
        (
            {"vocab_size": 1000, "tie_word_embeddings": False, "architectures": ["XForCausalLM"]},
            "tie_word_embeddings is false, but the weights hold no output head",
            None,
        ),
        (
            {"vocab_size": 1000, "num_hidden_layers": 1, "dtype": "bfloat16", "tie_word_embeddings": True},
            None,
            None,
        ),
        ({}, None, None),
    ],
)
def test_agreement_with_config(
    model: Path, config: dict[str, Any], error: str | None, warning: str | None
) -> None:
    (model / "config.json").write_text(json.dumps(config))
    report = verify_directory(model, agreement=check_agreement)
    assert [error in str(problem) for problem in report.problems] == ([True] if error else [])
    assert [warning in str(problem) for problem in report.warnings] == ([True] if warning else [])


def test_surplus_layers_and_heads_are_odd(tmp_path: Path) -> None:
    header, at = {}, 0
    for name, shape in {
        "model.embed_tokens.weight": [4, 2],
        "model.layers.0.w.a": [2],
        "model.layers.1.w.a": [2],
        "lm_head.weight": [4, 2],
    }.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw_file(tmp_path / "model.safetensors", header, bytes(at))
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 1, "vocab_size": 4, "tie_word_embeddings": true}'
    )
    report = verify_directory(tmp_path, agreement=check_agreement)
    assert report.ok and [str(problem) for problem in report.warnings] == [
        "config.json: the weights hold 2 layers, but num_hidden_layers is 1; "
        "the layers beyond it are not used",
        "tensor 'lm_head.weight': stands in the weights although tie_word_embeddings is true; "
        "readers may ignore it",
    ]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_interrupt_stops_the_scan_at_once(
    model: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(verify, "CHUNK", 2 * 1024)
    monkeypatch.setattr(digest, "PIECE", 2 * 1024)
    read: list[int] = []

    def progress(count: int) -> None:
        read.append(count)
        if len(read) == 5:
            raise KeyboardInterrupt
        time.sleep(0.002)

    with pytest.raises(KeyboardInterrupt):
        verify_directory(model, threads=threads, on_progress=progress)
    assert len(read) < 5 + 2 * threads and strays() == []


def test_positions_count_from_the_start_of_the_tensor(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "CHUNK", 128 * 1024)
    for element in (33_000, 33_100):
        damage(model, "model.layers.0.up.weight", 4 * element + 3, 0xFF)
        damage(model, "model.layers.0.up.weight", 4 * element + 2, 0xFF)
    assert "2 of 33153 values are NaN or Inf, the first at element 33000" in problems(model, digests={})[0]
