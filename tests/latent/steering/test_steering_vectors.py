"""Steering vectors: arithmetic, files, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from smelt.core.errors import CheckpointError, LatentError
from smelt.latent.recipe import Steer
from smelt.latent.steering import SteeringVector


def vector(seed=0, layers=(1, 2, 4), size=6, **facts):
    generator = torch.Generator().manual_seed(seed)
    facts = {"n_layers": 4, "model": "m", "model_type": "llama", "made": {"how": "test"}} | facts
    return SteeringVector({layer: torch.randn(size, generator=generator) for layer in layers}, **facts)


def test_arithmetic_is_that_of_the_vectors():
    a, b = vector(0), vector(1)
    assert a + b == SteeringVector({k: a.vectors[k] + b.vectors[k] for k in a.vectors}, 4)
    assert a - b == a + (-b)
    assert a * 2 == 2 * a == a + a
    assert a / 4 == a * 0.25
    assert (a - a).norms() == {1: 0.0, 2: 0.0, 4: 0.0}
    assert (a + b) - b != vector(2)


def test_layers_of_only_one_side_are_kept_with_their_sign():
    a, b = vector(0, layers=(1,)), vector(1, layers=(3,))
    difference = a - b
    assert difference.layers == [1, 3]
    assert torch.equal(difference.vectors[3], -b.vectors[3])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (vector(1, size=5), "hidden size 6 and 5"),
        (vector(1, n_layers=5), "n layers 4 and 5"),
        (vector(1, model_type="gpt2"), "model type llama and gpt2"),
    ],
)
def test_vectors_for_different_models_do_not_add(other, said):
    with pytest.raises(LatentError, match=said):
        vector() + other


def test_meaningless_arithmetic_is_refused():
    for wrong in (lambda v: v + 1, lambda v: v * v, lambda v: v * True, lambda v: v / "2"):
        with pytest.raises(TypeError):
            wrong(vector())
    with pytest.raises(LatentError, match="divided by 0"):
        vector() / 0
    with pytest.raises(LatentError, match="times nan"):
        vector() * float("nan")


@pytest.mark.parametrize(
    ("vectors", "n_layers", "said"),
    [
        ({}, 4, "without layers"),
        ({1: torch.zeros(3), 2: torch.zeros(4)}, 4, r"sizes \[3, 4\]"),
        ({5: torch.zeros(3)}, 4, r"layers \[5\]; expected 0..4"),
        ({-1: torch.zeros(3)}, None, r"layers \[-1\]"),
        ({1: torch.zeros(1, 2, 3)}, 4, r"shape \(1, 2, 3\)"),
        ({1: torch.full((3,), float("inf"))}, 4, "NaN or Inf"),
        ({1: [1.0, 2.0]}, 4, "list"),
        ({True: torch.zeros(3)}, 4, "whole number"),
    ],
)
def test_what_is_no_vector_is_refused(vectors, n_layers, said):
    with pytest.raises(LatentError, match=said):
        SteeringVector(vectors, n_layers)


def test_a_file_keeps_everything(tmp_path):
    path = vector().save(tmp_path / "deep" / "v.safetensors")
    again = SteeringVector.load(path)
    assert again == vector()
    assert (again.model, again.model_type, again.n_layers, again.made) == ("m", "llama", 4, {"how": "test"})
    with safe_open(path, framework="pt") as stream:
        assert stream.metadata()["hidden_size"] == "6"
        assert sorted(stream.keys()) == ["1", "2", "4"]
    assert list(path.parent.iterdir()) == [path]


def test_a_recipe_reads_the_file_by_layer(tmp_path):
    path = vector().save(tmp_path / "v.safetensors")
    assert torch.equal(Steer(2, file=str(path)).loaded().delta, vector().vectors[2])


def test_token_wise_vectors_survive_files_and_sums(tmp_path):
    wide = SteeringVector({2: torch.arange(12.0).reshape(3, 4)}, 4)
    assert SteeringVector.load(wide.save(tmp_path / "v.safetensors")) + wide == wide * 2
    with pytest.raises(LatentError, match="equal shapes"):
        wide + SteeringVector({2: torch.zeros(4)}, 4)


@pytest.mark.parametrize(("at", "layer"), [("input", 20), ("output", 21)])
@pytest.mark.parametrize("name", ["20", "layer.20", "model.layers.20"])
def test_plain_layer_dicts_are_imported(tmp_path, name, at, layer):
    """steering-vectors and repeng count outputs of layers."""
    save_file({name: torch.ones(4)}, tmp_path / "v.safetensors")
    found = SteeringVector.load(tmp_path / "v.safetensors", at=at, n_layers=28)
    assert found.layers == [layer]
    assert found.n_layers == 28


def test_files_that_are_no_vectors_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no steering vector at"):
        SteeringVector.load(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="neither safetensors nor GGUF"):
        SteeringVector.load(tmp_path / "junk")
    save_file({"weight": torch.ones(4)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="'weight'"):
        SteeringVector.load(tmp_path / "w.safetensors")
    save_file({"a.1": torch.ones(4), "b.1": torch.ones(4)}, tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match="two tensors for layer 1"):
        SteeringVector.load(tmp_path / "d.safetensors")
    with pytest.raises(LatentError, match="at='middle'"):
        SteeringVector.load(tmp_path / "w.safetensors", at="middle")


def test_select_and_normalise():
    v = vector()
    assert v.select([4, 1]).layers == [1, 4]
    assert list(v.normalised().norms().values()) == pytest.approx([1.0] * 3)
    assert (v - v).normalised() == v - v
    with pytest.raises(LatentError, match=r"no vector for layers \[3\]"):
        v.select([3])


def test_it_knows_which_model_it_fits():
    import latent_tiny as tiny

    model = tiny.tiny_causal("llama")
    SteeringVector({4: torch.ones(32)}, 4, model_type="llama").check_fits(model)
    SteeringVector({4: torch.ones(32)}).check_fits(model)
    for wrong, said in (
        (SteeringVector({1: torch.ones(32)}, 5), "layers 5"),
        (SteeringVector({1: torch.ones(31)}, 4), "hidden size 31"),
        (SteeringVector({1: torch.ones(32)}, 4, model_type="gpt2"), "model type gpt2"),
        (SteeringVector({9: torch.ones(32)}), r"layers \[9\]"),
    ):
        with pytest.raises(LatentError, match=said):
            wrong.check_fits(model)
