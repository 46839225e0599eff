"""What transformers makes of the output: nothing missing, nothing left over, and the function that was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_tools import entry, linear, make, source

import tiny

torch = pytest.importorskip("torch", reason="models are run with torch")
transformers = pytest.importorskip("transformers", reason="models are run with transformers")

IDS = torch.tensor([[1, 5, 9, 3, 30, 7]])


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model and what its loader noticed."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    return model.eval(), {key: sorted(value) for key, value in info.items() if value}


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(IDS).logits


def averaged(first: Any, second: Any, share: float) -> Any:
    """The first model with the weighted mean of both models' parameters."""
    other = dict(second.named_parameters())
    with torch.no_grad():
        for name, value in first.named_parameters():
            value.copy_(share * value.double() + (1 - share) * other[name].double())
    return first


@pytest.mark.parametrize("tied", [False, True])
def test_a_merge_reloads_whole_and_computes_what_the_mean_of_the_weights_computes(
    tmp_path: Path, tied: bool
) -> None:
    models = tiny.family(tmp_path, "a", dtype="F32", tied=tied)
    _, out = make(linear((models["base"], 0.25), (models["a"], 0.75)), tmp_path / "out")
    model, noticed = load(out.path)
    assert noticed == {}
    expected = logits(averaged(load(models["base"].path)[0], load(models["a"].path)[0], 0.25))
    assert torch.allclose(logits(model), expected, atol=1e-6)
    assert not torch.allclose(expected, logits(load(models["a"].path)[0]), atol=1e-3)


def test_a_stack_of_layers_reloads_whole(tmp_path: Path) -> None:
    a, b = (
        tiny.write(tmp_path / "a", layers=3, dtype="F32"),
        tiny.write(tmp_path / "b", layers=3, seed=2, dtype="F32"),
    )
    recipe = {
        "merge_method": "passthrough",
        "slices": [{"sources": [source(a, 0, 2)]}, {"sources": [source(b, 0, 3)]}],
    }
    _, out = make(recipe, tmp_path / "out")
    model, noticed = load(out.path)
    assert noticed == {} and model.config.num_hidden_layers == 5 == len(model.model.layers)
    first, second = load(a.path)[0], load(b.path)[0]
    stacked = torch.nn.ModuleList([*first.model.layers[:2], *second.model.layers])
    for number, layer in enumerate(stacked):
        layer.self_attn.layer_idx = number
    second.model.layers, second.model.embed_tokens = stacked, first.model.embed_tokens
    second.config.num_hidden_layers = 5
    assert torch.equal(logits(model), logits(second))


def test_a_tied_base_and_an_untied_model_reload_with_both_matrices(tmp_path: Path) -> None:
    base = tiny.write(tmp_path / "base", tied=True, dtype="F32")
    a = tiny.write(tmp_path / "a", seed=1, dtype="F32")
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": [entry(a, weight=1.0)]}
    _, out = make(recipe, tmp_path / "out")
    model, noticed = load(out.path)
    assert noticed == {}
    assert torch.allclose(logits(model), logits(load(a.path)[0]), atol=1e-5), "weight 1 is the other model"


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a")
    _, out = make(linear((models["base"], 1), (models["a"], 1)), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out.path)
    assert tokenizer("the a b")["input_ids"] == [29, 3, 4]


def test_loaded_in_memory_it_is_the_same_model(tmp_path: Path) -> None:
    import smelt

    models = tiny.family(tmp_path, "a", dtype="F32")
    node = smelt.ties([models["a"].path], base=models["base"].path, weight=1.0, density=0.5)
    report = node.save(tmp_path / "out")
    assert report.tensors == len(models["a"].values)
    assert torch.equal(logits(node.load()), logits(load(tmp_path / "out")[0]))
