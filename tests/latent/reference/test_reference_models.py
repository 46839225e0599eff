"""Loading once, finding layers, chat templates: the small functions of the reference."""

from __future__ import annotations

import gc
import time
import warnings

import latent_tiny as tiny
import pytest
import torch
from torch import nn

from smelt.core.errors import LatentError
from smelt.latent.hooks import get_decoder_layers, sanitize_layers, to_device_dtype
from smelt.latent.mixers import ActivationSteerer, LayerLatentMixer
from smelt.latent.model_cache import clear_model_cache, get_model, get_tokenizer
from smelt.latent.prompts import apply_chat_template


@pytest.fixture
def folder(tmp_path):
    """Two saved models with their tokenizers."""
    for name, seed in (("base", 0), ("ft", 1)):
        tiny.tiny_causal("llama", seed).save_pretrained(tmp_path / name)
        tiny.byte_tokenizer().save_pretrained(tmp_path / name)
    yield tmp_path
    clear_model_cache()


# ---------------------------------------------------------------- loading


def test_a_model_is_loaded_once_for_each_way_to_load_it(folder, monkeypatch):
    model = get_model(folder / "base")
    monkeypatch.chdir(folder)
    assert get_model("base") is get_model(str(folder / "base")) is model
    assert get_model("base", device="cpu", dtype=torch.float32) is model
    assert model.dtype == torch.float32
    half = get_model("base", dtype="bfloat16")
    assert half is not model
    assert half.dtype == torch.bfloat16
    assert get_model("ft") is not model
    assert not model.training
    assert get_tokenizer("base") is get_tokenizer(folder / "base") is not get_tokenizer("ft")


def test_a_directory_that_changed_is_loaded_again(folder):
    before = get_model(folder / "base")
    time.sleep(0.01)
    tiny.tiny_causal("llama", 5).save_pretrained(folder / "base")
    after = get_model(folder / "base")
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


def test_clearing_forgets_models_tokenizers_and_whatever_is_attached(folder):
    base, ft = get_model(folder / "base"), get_model(folder / "ft")
    mixer = LayerLatentMixer(base, ft, 2)
    tokenizer = get_tokenizer(folder / "base")
    clear_model_cache()
    assert not mixer.active
    assert get_model(folder / "base") is not base
    assert get_tokenizer(folder / "base") is not tokenizer


def test_a_mixer_left_behind_does_not_poison_the_cache(folder):
    """Trap 4: after an exception the reference handed out the model with the hooks still on it."""
    ids = tiny.prompt(5)
    base, ft = get_model(folder / "base"), get_model(folder / "ft")
    with torch.no_grad():
        plain = base(ids).logits
    left = [
        LayerLatentMixer(base, ft, 2, last_token_only=False),
        ActivationSteerer(base, {1: torch.ones(32)}),
    ]
    with pytest.warns(UserWarning, match="still had LayerLatentMixer, ActivationSteerer attached"):
        again = get_model(folder / "base")
    assert again is base
    assert not any(item.active for item in left)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, plain)


def test_a_mixer_in_a_with_block_is_meant_and_stays(folder):
    base, ft = get_model(folder / "base"), get_model(folder / "ft")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with LayerLatentMixer(base, ft, 2) as mixer:
            assert get_model(folder / "base") is base
            assert mixer.active
        assert not mixer.active


def test_clearing_frees_the_models(folder):
    import weakref

    model = weakref.ref(get_model(folder / "base"))
    LayerLatentMixer(model(), get_model(folder / "ft"), 2).remove()
    clear_model_cache()
    gc.collect()
    assert model() is None


@pytest.mark.parametrize("get", [get_model, get_tokenizer])
def test_a_missing_directory_is_explained(tmp_path, get):
    with pytest.raises(LatentError, match=r"cannot load a (model|tokenizer) from .*none"):
        get(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "flot16"}, "did you mean 'float16'"),
        ({"dtype": torch.int8}, "torch.int8"),
        ({"device": "cudda"}, "device 'cudda' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"attn_implementation": "zip"}, "cannot load a model"),
    ],
)
def test_options_that_mean_nothing_are_refused(folder, options, said):
    with pytest.raises(LatentError, match=said):
        get_model(folder / "base", **options)


def test_quantised_loading_says_what_is_missing(folder):
    with pytest.raises(LatentError, match="one of them"):
        get_model(folder / "base", load_in_8bit=True, load_in_4bit=True)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        for flag in ("load_in_8bit", "load_in_4bit"):
            with pytest.raises(LatentError, match="pip install bitsandbytes"):
                get_model(folder / "base", **{flag: True})
    else:
        assert get_model(folder / "base", load_in_4bit=True) is not get_model(folder / "base")


# ---------------------------------------------------------------- layers


def test_layers_are_found_by_structure_in_many_families():
    for arch in ("llama", "gpt2", "gpt_neox", "opt", "bloom", "mixtral"):
        layers = get_decoder_layers(tiny.tiny_causal(arch))
        assert isinstance(layers, list)
        assert len(layers) == 4
    with pytest.raises(LatentError, match="has no config"):
        get_decoder_layers(nn.Linear(2, 2))


def test_sanitize_layers_sorts_and_names_what_is_wrong():
    model = tiny.tiny_causal("llama")
    assert sanitize_layers(model, [3, 0, 3]) == ([0, 3], 4)
    assert sanitize_layers(model, torch.tensor([2, 1])) == ([1, 2], 4)
    assert sanitize_layers(model, []) == ([], 4)
    with pytest.raises(
        LatentError, match=r"no such layer: -3, 4, 99; expected 0\.\.3 of a model with 4 layers"
    ):
        sanitize_layers(model, [99, 1, -3, 4])
    assert sanitize_layers(model, [99, 1, -3], strict=False) == ([1], 4)
    assert sanitize_layers(model, [4], final=True) == ([4], 4)
    with pytest.raises(LatentError, match="whole number"):
        sanitize_layers(model, [1.0])


def test_to_device_dtype_follows_the_model():
    x = torch.ones(3, dtype=torch.float64)
    assert to_device_dtype(x, nn.Linear(2, 2).to(torch.bfloat16)).dtype == torch.bfloat16
    assert to_device_dtype(x, nn.Linear(2, 2).to("meta")).device.type == "meta"
    with pytest.raises(LatentError, match="no floating-point parameter"):
        to_device_dtype(x, nn.ReLU())


# ---------------------------------------------------------------- chat templates


def test_a_conversation_is_templated_once():
    """No second set of special tokens on top of the template's own."""
    tok = tiny.byte_tokenizer()
    tok.chat_template = "<s>" + tiny.CHAT
    tok.add_bos_token = True
    chat = [{"role": "user", "content": "hi"}]
    found = apply_chat_template(tok, chat)
    assert found["input_ids"].shape == found["attention_mask"].shape
    assert found["input_ids"][0].tolist().count(256) == 1
    assert tok.decode(found["input_ids"][0]) == "<s><|user|>hi\n<|assistant|>"
    assert (
        tok.decode(apply_chat_template(tok, chat, add_generation_prompt=False)["input_ids"][0])
        == "<s><|user|>hi\n"
    )


def test_several_conversations_are_padded_on_the_left_and_masked():
    tok = tiny.byte_tokenizer()
    chats = [[{"role": "user", "content": text}] for text in ("hi", "longer")]
    found = apply_chat_template(tok, chats, device="cpu")
    alone = apply_chat_template(tok, chats[0])["input_ids"]
    assert found["attention_mask"].tolist()[0] == [0] * 4 + [1] * alone.shape[1]
    assert torch.equal(found["input_ids"][0, 4:], alone[0])
    assert apply_chat_template(tok, chats, return_tensors=None)["input_ids"] == found["input_ids"].tolist()
    assert (
        apply_chat_template(tok, chats, return_tensors="np")["input_ids"] == found["input_ids"].numpy()
    ).all()
    with pytest.raises(LatentError, match="return_tensors='tf'"):
        apply_chat_template(tok, chats, return_tensors="tf")


def test_the_result_unpacks_into_a_model():
    tok, model = tiny.byte_tokenizer(), tiny.tiny_causal("llama")
    inputs = apply_chat_template(tok, [{"role": "user", "content": "hi"}], device=model.device)
    assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


def test_a_tokenizer_without_template_is_explained():
    tok = tiny.byte_tokenizer()
    tok.chat_template = None
    with pytest.raises(LatentError, match="no chat template"):
        apply_chat_template(tok, [{"role": "user", "content": "hi"}])
    assert apply_chat_template(tok, "plain")["input_ids"].shape == (1, 5)
    found = apply_chat_template(tok, [{"role": "user", "content": "hi"}], chat_template=tiny.CHAT)
    assert found["input_ids"].shape[1] > 5
