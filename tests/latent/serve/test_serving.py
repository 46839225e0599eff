"""What is loaded once and answers: which models, which layers, and what it says when something cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import latent_tiny as tiny
import pytest
import torch
from safetensors.torch import save_file

from smelt.core.errors import LatentError
from smelt.latent import LatentMergedForCausalLM, Site
from smelt.latent.generating import Sampling, Task, run
from smelt.latent.recipe import LatentRecipe, ModelRef
from smelt.latent.recipe_choice import pick_recipe, quick_recipe, read_source, with_ratio
from smelt.latent.serving import Blend, Served, load, load_alone, quiet_loading


def answer(served: Served, name: str, prompt: str, blend: Blend | None = None) -> str:
    voice = served.voice(name)
    task = served.task(voice, prompt, blend, max_tokens=10, sampling=Sampling(temperature=0.0))
    return run(voice, task).answers[0].text


def quiet_load(*args: Any, **options: Any) -> Served:
    with quiet_loading():
        return load(*args, **options)


@pytest.fixture(scope="module")
def tiny_dirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small models with random weights, the third equal to the first below layer 2."""
    folder = tmp_path_factory.mktemp("tiny")
    models = {name: tiny.tiny_causal("qwen2", seed) for seed, name in enumerate("abc")}
    models["c"].model.embed_tokens.load_state_dict(models["a"].model.embed_tokens.state_dict())
    for layer in range(2):
        models["c"].model.layers[layer].load_state_dict(models["a"].model.layers[layer].state_dict())
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny.byte_tokenizer().save_pretrained(folder / name)
    return folder


def test_a_lean_donor_runs_only_where_it_reaches(tiny_dirs: Path) -> None:
    recipe = quick_recipe(str(tiny_dirs / "a"), [str(tiny_dirs / "b")], layer=2)
    lean, full = quiet_load(recipe, full_donors=False), quiet_load(recipe)
    assert list(lean.voices) == ["blend", "base"] and "--full-donor" in lean.missing["donor"]
    assert lean.layers == (0, 1, 2) and full.layers == (0, 1, 2, 3, 4)
    assert list(full.voices) == ["blend", "base", "donor"] and not full.missing
    assert len(lean.wrapper.tower(0).layers) == 2
    assert answer(lean, "blend", "abc") == answer(full, "blend", "abc")
    with pytest.raises(LatentError, match="holds 2 layers"):
        lean.options(lean.blend, Blend(layer=3))
    with pytest.raises(LatentError, match="cannot answer: it is loaded only as deep"):
        lean.voice("donor")


def test_the_donor_answers_as_it_does_alone(tiny_dirs: Path) -> None:
    served = quiet_load(quick_recipe(str(tiny_dirs / "a"), [str(tiny_dirs / "b")], layer=2))
    alone = tiny.tiny_causal("qwen2", 1)
    ids = torch.tensor([tiny.byte_tokenizer()("hello")["input_ids"]])
    out = alone.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    text = tiny.byte_tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer(served, "donor", "hello") == text


def test_one_model_alone_is_the_same_and_loads_nothing_else(tiny_dirs: Path) -> None:
    recipe = quick_recipe(str(tiny_dirs / "a"), [str(tiny_dirs / "b")], layer=2)
    together = quiet_load(recipe)
    for kind in ("base", "donor"):
        with quiet_loading():
            alone = load_alone(recipe, kind=kind)
        assert list(alone.voices) == [kind] and alone.wrapper is None
        assert answer(alone, kind, "hello") == answer(together, kind, "hello")
        mine, theirs = alone.voice(kind), together.voice(kind)
        assert alone.fingerprint(mine, Blend()) == together.fingerprint(theirs, Blend())


def test_a_part_of_a_model_does_not_answer_alone(tiny_dirs: Path, tmp_path: Path) -> None:
    model = LatentMergedForCausalLM.from_models(str(tiny_dirs / "a"), str(tiny_dirs / "b"), sites=[Site(2)])
    model.save_pretrained(tmp_path / "m", embed_weights=True)
    with quiet_loading(), pytest.raises(LatentError, match="without its upper layers or head"):
        load_alone(*read_source(tmp_path / "m"), kind="donor")


def test_layers_that_are_equal_are_named_and_kept_once(tiny_dirs: Path) -> None:
    served = quiet_load(quick_recipe(str(tiny_dirs / "a"), [str(tiny_dirs / "c")], layer=3))
    assert served.idle_layers == (0, 1, 2) and served.layers == (0, 1, 2, 3, 4)
    mine, theirs = served.wrapper.tower(-1).layers[1], served.wrapper.tower(0).layers[1]
    assert mine.mlp.up_proj.weight.data_ptr() == theirs.mlp.up_proj.weight.data_ptr()


def test_a_donor_stored_without_its_upper_part_says_so(tiny_dirs: Path, tmp_path: Path) -> None:
    model = LatentMergedForCausalLM.from_models(
        str(tiny_dirs / "a"), str(tiny_dirs / "b"), sites=[Site(3, "lerp", (0.4,))]
    )
    model.save_pretrained(tmp_path / "m", embed_weights=True)
    recipe, folder = read_source(tmp_path / "m")
    served = quiet_load(recipe, folder)
    assert "only 3 of its 4 layers are stored" in served.missing["donor"]
    assert served.layers == (0, 1, 2, 3)


def test_a_donor_stored_without_a_head_says_so(tiny_dirs: Path, tmp_path: Path) -> None:
    """A head that is not in the checkpoint must never be invented."""
    from transformers import AutoModel

    with quiet_loading():
        AutoModel.from_pretrained(tiny_dirs / "b").save_pretrained(tmp_path / "trunk")
    tiny.byte_tokenizer().save_pretrained(tmp_path / "trunk")
    served = quiet_load(quick_recipe(str(tiny_dirs / "a"), [str(tmp_path / "trunk")], layer=2))
    assert "head is not stored" in served.missing["donor"] and list(served.voices) == ["blend", "base"]
    whole = quiet_load(quick_recipe(str(tiny_dirs / "a"), [str(tiny_dirs / "b")], layer=2))
    assert answer(served, "blend", "xyz") == answer(whole, "blend", "xyz")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_a_lora_donor_answers_too(tiny_dirs: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny.tiny_causal("qwen2", 0), config).save_pretrained(tmp_path / "adapter")
    recipe = LatentRecipe.from_dict(
        {
            "base": str(tiny_dirs / "a"),
            "donors": [{"path": str(tiny_dirs / "a"), "adapter": str(tmp_path / "adapter")}],
            "sites": [{"layer": 3, "op": "lerp", "weights": [0.5]}],
        }
    )
    served = quiet_load(recipe)
    assert answer(served, "donor", "abc") != answer(served, "base", "abc")


def test_two_donors_have_numbers(tiny_dirs: Path) -> None:
    served = quiet_load(
        quick_recipe(str(tiny_dirs / "a"), [str(tiny_dirs / n) for n in "bc"], layer=3, beta=0.6)
    )
    assert list(served.voices) == ["blend", "base", "donor-1", "donor-2"]
    assert served.wrapper.settings.sites[0].weights == (0.3, 0.3)
    assert "proxy" in served.describe()["operators"]
    assert answer(served, "blend", "abc", Blend(beta=(0.0, 0.0))) == answer(served, "base", "abc")
    with pytest.raises(LatentError, match="1 weights for 2 donors"):
        served.options(served.blend, Blend(beta=0.5))
    proxied = served.settings_for(Blend(op="proxy")).sites[0]
    assert proxied.op == "proxy" and len(proxied.weights) == 1


def test_a_saved_directory_is_served_as_it_was_saved(served: Served, merged_dir: Path) -> None:
    recipe, folder = read_source(merged_dir)
    again = quiet_load(recipe, folder)
    for prompt in ("r:abcd>", "s:habe>"):
        assert answer(again, "blend", prompt) == answer(served, "blend", prompt)
    assert again.fingerprint(again.blend, Blend()) == served.fingerprint(served.blend, Blend())


def test_steering_vectors_of_a_recipe_act(tiny_dirs: Path, tmp_path: Path) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    save_file({"v": vector}, tmp_path / "v.safetensors")
    recipe = {
        "base": str(tiny_dirs / "a"),
        "donors": [str(tiny_dirs / "b")],
        "sites": [{"layer": 2, "op": "lerp", "weights": [0.0]}],
        "steer": [{"layer": 2, "file": "v.safetensors", "key": "v", "alpha": 3.0}],
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    served = quiet_load(*read_source(tmp_path / "recipe.json"))
    assert answer(served, "blend", "abc") != answer(served, "base", "abc")
    assert answer(served, "blend", "abc", Blend(enabled=False)) == answer(served, "base", "abc")


def test_equal_requests_have_equal_fingerprints(served: Served) -> None:
    blend, base = served.blend, served.voice("base")
    marks = [
        served.fingerprint(blend, b) for b in (Blend(), Blend(beta=0.4), Blend(layer=3), Blend(op="lerp"))
    ]
    assert len(set(marks)) == 4 and marks[0] == served.fingerprint(blend, Blend())
    assert served.fingerprint(base, Blend()) not in marks


def test_the_ratio_that_is_served(tiny_dirs: Path) -> None:
    for op, beta, lam in [("lerp", 0.3, None), ("regmean", 0.8, 0.25)]:
        served = quiet_load(quick_recipe(str(tiny_dirs / "a"), [str(tiny_dirs / "b")], op=op, beta=beta))
        assert served.describe()["ratio"] == pytest.approx(beta)
        assert lam is None or served.wrapper.settings.sites[0].lam == pytest.approx(lam)


def test_recipes_from_the_command_line(merged_dir: Path) -> None:
    recipe, folder = pick_recipe(str(merged_dir), layer=3, beta=0.25, op="lerp", scope="generated")
    assert folder == merged_dir and recipe.settings.scope == "generated"
    assert recipe.settings.sites[0].to_dict() == {"layer": 3, "op": "lerp", "weights": [0.25]}
    recipe, folder = pick_recipe(None, "b", ["d"], op="regmean", beta=0.8)
    assert recipe.settings.sites[0].lam == pytest.approx(0.25) and folder is None
    assert recipe.base == ModelRef("b")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no model"),
        ({"model": "x", "base": "y"}, "together with"),
        ({"base": "b"}, "no donor"),
        ({"base": "b", "donors": ["d"], "op": "slurp"}, "did you mean 'slerp'"),
        ({"base": "b", "donors": ["d"], "op": "regmean", "beta": 0.0}, "no ratio"),
        ({"base": "b", "donors": ["d"], "scope": "some"}, "unknown scope"),
    ],
)
def test_unclear_command_lines_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(LatentError, match=said):
        pick_recipe(**given)


def test_a_plain_model_is_no_blend(tiny_dirs: Path) -> None:
    with pytest.raises(LatentError, match=r"type 'qwen2'.*--base and --donor"):
        read_source(tiny_dirs / "a")


def test_what_cannot_be_loaded_is_said_before_any_work(tiny_dirs: Path, tmp_path: Path) -> None:
    with pytest.raises(LatentError, match="cannot be called 'donor"):
        load(quick_recipe(str(tiny_dirs / "a"), [str(tiny_dirs / "b")]), name="donor-x")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((tiny_dirs / "a" / "config.json").read_text())
    with pytest.raises(LatentError, match="no tokenizer beside the base"):
        load(quick_recipe(str(tmp_path / "bare"), [str(tiny_dirs / "b")]))


def test_a_ratio_for_regmean_becomes_the_lambda_with_that_ratio(served: Served) -> None:
    for reading in ("shrink", "penalty"):
        site = with_ratio(Site(4, "regmean", (1.0,), reading=reading), 0.3, 1)
        task = Task(
            (served.encode(served.blend, "s:habe>"),), 8, sampling=Sampling(temperature=0.0), logprobs=0
        )
        ours = run(served.blend, Task(**{**_fields(task), "options": {"sites": (site,)}})).answers[0]
        lerp = run(
            served.blend, Task(**{**_fields(task), "options": {"sites": (Site(4, "lerp", (0.3,)),)}})
        ).answers[0]
        assert [c.logprob for c in ours.choices] == pytest.approx([c.logprob for c in lerp.choices], abs=1e-5)


def _fields(task: Task) -> dict[str, Any]:
    return {name: getattr(task, name) for name in task.__dataclass_fields__}
