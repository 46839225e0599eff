"""The guide's and the README's examples, word for word but for the package they import from."""

from __future__ import annotations

import pickle

import latent_tiny as tiny
import pytest
import torch

from smelt.latent.model_cache import clear_model_cache

BASIC = """
from smelt.latent import get_model, get_tokenizer, latent_mix_generate

# Load models
tok = get_tokenizer("Qwen/Qwen2.5-7B-Instruct")
base = get_model("Qwen/Qwen2.5-7B-Instruct")
ft = get_model("open-thoughts/OpenThinker3-7B")

# Prepare message
messages = [{"role": "user", "content": "Explain gradient descent simply."}]

# Generate with SLERP mixing at layer 20
text = latent_mix_generate(
    base, ft, tok,
    messages=messages,
    mix_layer=20,
    beta=0.5,
    mode="slerp",
    max_new_tokens=512
)
print(text)
"""

BATCH = """
responses = []

for item in dataset:
    msg = [{"role": "user", "content": item["question"]}]
    resp = latent_mix_generate(base, ft, tok, messages=msg, mix_layer=25, beta=0.75)
    responses.append(resp)

# Save for later evaluation
import pickle
with open("latent_slerp_responses.pkl", "wb") as f:
    pickle.dump(responses, f)
"""

HOOKS = """
# 1. Create mixer/steerer
mixer = LayerLatentMixer(base, ft, layer_idx=20, beta=0.5, mix_mode="slerp")

# 2. Generate (hooks are active)
output = base.generate(**inputs, max_new_tokens=8)

# 3. Clean up
mixer.remove()
"""

CLEANUP = """
mixer = LayerLatentMixer(base, ft, 20)
try:
    output = generate(base)
finally:
    mixer.remove()  # CRITICAL
"""

DEVICE = """
# Good
delta = to_device_dtype(delta, model)
"""

LAYERS = """
# Always sanitize
valid_layers, n_layers = sanitize_layers(model, requested_layers)
"""

README = """
from smelt.latent import latent_regmean_generate, delta_generate, ActivationSteerer

# RegMean merging
text = latent_regmean_generate(
    base_model, ft_model, tokenizer,
    messages=messages,
    mix_layers=[20, 21, 22, 23],
    alpha=0.5
)

# Task Vector (delta steering)
deltas = {20: delta_vector_layer20, 21: delta_vector_layer21}
steerer = ActivationSteerer(base_model, deltas, alpha=0.1)
# Generate with active steering
output = base_model.generate(**inputs, max_new_tokens=8)
steerer.remove()  # Always clean up hooks
"""


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Tiny models with the real layer count in directories called like the real ones, and the names.

    Half of all ids end a text, so that max_new_tokens=512 does not take long.
    """
    root = tmp_path_factory.mktemp("hub")
    for name, seed in (("Qwen/Qwen2.5-7B-Instruct", 0), ("open-thoughts/OpenThinker3-7B", 1)):
        model = tiny.tiny_causal("qwen2", seed, num_hidden_layers=28, max_window_layers=28, hidden_size=16)
        model.generation_config.eos_token_id = list(range(0, tiny.VOCAB, 2))
        model.save_pretrained(root / name)
        tiny.byte_tokenizer().save_pretrained(root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        found: dict = {}
        exec(BASIC, found)
        yield found
    clear_model_cache()


def test_the_basic_example_prints_a_text(names):
    assert isinstance(names["text"], str)


def test_mix_mode_gives_the_same_as_mode(names):
    shared = {"messages": names["messages"], "mix_layer": 20, "max_new_tokens": 16, "seed": 0}
    by_mode, by_mix_mode = (
        names["latent_mix_generate"](names["base"], names["ft"], names["tok"], **shared, **{word: "lerp"})
        for word in ("mode", "mix_mode")
    )
    assert by_mode == by_mix_mode


def test_the_batch_example_writes_a_pickle_of_texts(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names["dataset"] = [{"question": "one"}, {"question": "two"}]
    exec(BATCH, names)
    saved = pickle.loads((tmp_path / "latent_slerp_responses.pkl").read_bytes())
    assert saved == names["responses"]
    assert all(isinstance(text, str) for text in saved)


def test_the_hook_pattern(names):
    exec(
        "from smelt.latent import LayerLatentMixer, apply_chat_template, sanitize_layers, to_device_dtype",
        names,
    )
    names["inputs"] = names["apply_chat_template"](names["tok"], names["messages"])
    plain = names["base"].generate(**names["inputs"], max_new_tokens=8, eos_token_id=None)
    exec(HOOKS, names)
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    names["generate"] = lambda model: 1 / 0
    with pytest.raises(ZeroDivisionError):
        exec(CLEANUP, names)
    after = names["base"].generate(**names["inputs"], max_new_tokens=8, eos_token_id=None)
    assert torch.equal(plain, after)


def test_the_small_patterns(names):
    exec(
        "from smelt.latent import LayerLatentMixer, apply_chat_template, sanitize_layers, to_device_dtype",
        names,
    )
    names |= {"model": names["base"], "delta": torch.randn(4096), "requested_layers": [25, 0, 5]}
    exec(DEVICE, names)
    exec(LAYERS, names)
    assert names["delta"].dtype == names["model"].dtype
    assert (names["valid_layers"], names["n_layers"]) == ([0, 5, 25], 28)


def test_the_readme_example(names):
    exec("from smelt.latent import apply_chat_template", names)
    names |= {"base_model": names["base"], "ft_model": names["ft"], "tokenizer": names["tok"]}
    names["inputs"] = names["apply_chat_template"](names["tok"], names["messages"])
    names |= {"delta_vector_layer20": torch.randn(16), "delta_vector_layer21": torch.randn(16)}
    exec(README, names)
    assert isinstance(names["text"], str)


def test_everything_promised_is_importable_from_the_package():
    import smelt.latent
    from smelt.latent._exports_reference import EXPORTS

    promised = {
        *("get_model", "get_tokenizer", "apply_chat_template", "get_decoder_layers", "sanitize_layers"),
        *("to_device_dtype", "top_p_sample", "LayerLatentMixer", "ActivationSteerer", "latent_mix_generate"),
        *("latent_regmean_generate", "delta_generate", "ensemble_generate", "linear_cka", "midness_seq"),
    }
    assert promised <= set(EXPORTS)
    for name in EXPORTS:
        assert callable(getattr(smelt.latent, name)), name
