"""The recorded reference, reproduced: its loop over an attached mixer, ``generate``, the text functions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from smelt.latent.mixers import LayerLatentMixer, LayerLatentRegMeanMixer
from smelt.latent.reference import latent_mix_generate, latent_regmean_generate

CASES = json.loads((Path(__file__).parents[2] / "data" / "latent_reference" / "cases.json").read_text())


@pytest.fixture(scope="module")
def pair(golden):
    return tuple(AutoModelForCausalLM.from_pretrained(golden / name).eval() for name in ("base", "donor"))


@pytest.fixture(scope="module")
def expected(golden):
    return load_file(golden / "expected.safetensors")


@pytest.fixture(scope="module")
def numbers() -> PreTrainedTokenizerFast:
    """Token i is written "i": texts and ids are the same thing."""
    core = Tokenizer(models.WordLevel({str(i): i for i in range(120)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def mixer_for(case, base, donor):
    if case["op"] == "regmean":
        return LayerLatentRegMeanMixer(
            base, [donor], case["layer"], case["lambda_reg"], last_token_only=case["last_token_only"]
        )
    return LayerLatentMixer(base, donor, case["layer"], case["beta"], case["last_token_only"], case["op"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
def test_the_published_loop_gives_the_recorded_logits(case, pair, expected):
    """Call the base with a growing cache, take the best token: nobody runs the donor by hand."""
    want = expected[f"logits_{case['case']}"]
    seen = []
    with mixer_for(case, *pair):
        out = pair[0](input_ids=expected["prompt"], use_cache=True)
        for _ in range(case["steps"]):
            seen.append(out.logits[0, -1])
            best = out.logits[:, -1].argmax(-1, keepdim=True)
            out = pair[0](input_ids=best, use_cache=True, past_key_values=out.past_key_values)
    assert torch.stack(seen).sub(want).abs().max() < 1e-4


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: str(case["case"]))
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_generate_gives_the_recorded_logits_with_and_without_a_cache(case, pair, expected, use_cache):
    """Trap 2: in the reference an uncached run was another model."""
    with mixer_for(case, *pair):
        out = pair[0].generate(
            expected["prompt"],
            attention_mask=torch.ones_like(expected["prompt"]),
            max_new_tokens=case["steps"],
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert torch.cat(out.logits).sub(expected[f"logits_{case['case']}"]).abs().max() < 1e-4


@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: str(case["case"]))
def test_the_text_functions_choose_the_recorded_tokens(case, pair, expected, numbers):
    prompt = " ".join(str(token) for token in expected["prompt"][0].tolist())
    shared = {"max_new_tokens": case["steps"], "temperature": 0.0, "eos_token_id": []}
    shared["last_token_only"] = case["last_token_only"]
    if case["op"] == "regmean":
        text = latent_regmean_generate(
            pair[0], [pair[1]], numbers, prompt, case["layer"], case["lambda_reg"], **shared
        )
    else:
        text = latent_mix_generate(
            *pair, numbers, prompt, mix_layer=case["layer"], beta=case["beta"], mode=case["op"], **shared
        )
    best = expected[f"logits_{case['case']}"].argmax(-1).tolist()
    assert [int(word) for word in text.split()] == best
