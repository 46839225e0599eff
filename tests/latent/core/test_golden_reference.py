"""The logits recorded from the reference implementation, at batch 1, in both scopes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from smelt.latent import LatentMergedForCausalLM, Site

GOLDEN = Path(__file__).parents[2] / "data" / "latent_reference"
CASES = json.loads((GOLDEN / "cases.json").read_text())


@pytest.fixture(scope="module")
def merged() -> LatentMergedForCausalLM:
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
    return LatentMergedForCausalLM.from_models(base, AutoModelForCausalLM.from_pretrained(GOLDEN / "donor"))


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['case']}-{case['op']}-L{case['layer']}")
def test_logits_of_the_reference(merged, recorded, case) -> None:
    site = (
        Site(case["layer"], case["op"], [case["beta"]])
        if "beta" in case
        else Site(case["layer"], "regmean", lam=case["lambda_reg"])
    )
    out = merged.generate(
        recorded["prompt"], sites=[site], scope="generated" if case["last_token_only"] else "all",
        attention_mask=torch.ones_like(recorded["prompt"]), pad_token_id=0, do_sample=False,
        max_new_tokens=case["steps"], min_new_tokens=case["steps"], output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    expected = recorded[f"logits_{case['case']}"]
    torch.testing.assert_close(torch.cat(out.logits), expected, atol=1e-4, rtol=0)
