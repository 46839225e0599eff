"""Everything that cannot fit is refused before work starts, with what was found and what to do."""

from __future__ import annotations

import pytest
import torch
from latent_tiny import byte_tokenizer, prompt, tiny_causal
from transformers import AutoModel

from smelt.core.errors import LatentError
from smelt.latent import (
    Gate,
    LatentMergedForCausalLM,
    LatentRecipe,
    LogitMix,
    ModelRef,
    Schedule,
    Site,
    Steer,
)
from smelt.latent.plan import resolve_layer


@pytest.fixture(scope="module")
def merged() -> LatentMergedForCausalLM:
    return LatentMergedForCausalLM.from_models(tiny_causal("llama", 1), tiny_causal("llama", 2))


BAD_SITES = {
    "beyond": ([Site(5)], "beyond the last"),
    "negative": ([Site(-1)], "negative.*'last'"),
    "negative text": ([Site("-2")], "negative"),
    "fraction": ([Site("1.5n")], "beyond|share"),
    "word": ([Site("middle")], "0..4"),
    "boolean": ([Site(True)], "layer True"),
    "twice": ([Site(2), Site("0.5n", "lerp")], "two sites at layer 2"),
    "weights": ([Site(2, "lerp", [0.5, 0.5])], "2 weights for 1 donors"),
    "proxy": ([Site(2, "proxy", [0.5])], "expert, anti-expert"),
    "donor layers": ([Site(2, donor_layers=(1,))], "tower engine"),
    "zero mean": ([Site(2, "regmean", [0.0])], "sum to 0"),
    "gram shares": ([Site(2, "regmean", [1.5], reading="gram")], "sum to at most 1"),
}


@pytest.mark.parametrize("case", BAD_SITES)
def test_bad_sites(merged, case) -> None:
    sites, message = BAD_SITES[case]
    with pytest.raises(LatentError, match=message):
        merged.set_sites(sites)
    assert merged.settings.sites == ()


BAD_PARTS = {
    "operator": (lambda: Site(2, "slurp"), "did you mean 'slerp'"),
    "reading": (lambda: Site(2, "regmean", reading="grm"), "did you mean 'gram'"),
    "weight": (lambda: Site(2, weights=[float("nan")]), "finite"),
    "weight text": (lambda: Site(2, weights=["0.5"]), "finite"),
    "lambda": (lambda: Site(2, "regmean", lam=-1.0), "at least 0"),
    "schedule": (lambda: Schedule("linaer"), "did you mean 'linear'"),
    "steps": (lambda: Schedule("linear", 0, 1, 0), "at least 1"),
    "gate": (lambda: Gate(0.5, 0.5), "low < high"),
    "steer": (lambda: Steer(2), "no vector"),
    "steer nan": (lambda: Steer(2, torch.tensor([float("nan")])), "NaN"),
    "scope": (lambda: Steer(2, torch.ones(4), scope="frist"), "did you mean 'first'"),
    "site key": (lambda: Site.from_dict({"layer": 2, "wieghts": [1]}), "did you mean 'weights'"),
    "quant": (lambda: ModelRef("x", quant="int4"), "did you mean 'int8'"),
    "recipe key": (
        lambda: LatentRecipe.from_dict({"base": "a", "donors": "b", "sites": [], "scoep": 1}),
        "'scope'",
    ),
    "recipe part": (lambda: LatentRecipe.from_dict({"base": "a", "sites": []}), "no 'donors'"),
    "engine": (
        lambda: LatentRecipe.from_dict({"base": "a", "donors": "b", "sites": [], "engine": "towr"}),
        "'tower'",
    ),
    "recipe file": (lambda: LatentRecipe.read("/nowhere/x.yml"), "no recipe at"),
    "logit op": (lambda: LogitMix("logit"), "did you mean 'logits'"),
    "tau": (lambda: LogitMix("contrastive", tau=0.0), "tau"),
    "models": (lambda: LogitMix("proxy").resolved(2), "3 models and 1 weights"),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_bad_parts(case) -> None:
    make, message = BAD_PARTS[case]
    with pytest.raises(LatentError, match=message):
        make()


def test_layers_may_be_numbers_shares_or_last() -> None:
    assert [resolve_layer(x, 28) for x in (0, "7", "0.25n", "1n", "last", "0n")] == [0, 7, 7, 28, 28, 0]


def test_models_that_do_not_fit() -> None:
    base = tiny_causal("llama", 1)
    with pytest.raises(LatentError, match=r"hidden size 16.*projection"):
        LatentMergedForCausalLM.from_models(base, tiny_causal("llama", 2, hidden_size=16))
    with pytest.raises(LatentError, match="dtype"):
        LatentMergedForCausalLM.from_models(base, tiny_causal("llama", 2).bfloat16())
    with pytest.raises(LatentError, match=r"rope_parameters differs.*tower"):
        rope = {"rope_type": "default", "rope_theta": 500.0}
        LatentMergedForCausalLM.from_models(
            base, tiny_causal("llama", 2, rope_parameters=rope), engine="lockstep"
        )
    with pytest.raises(LatentError, match="num_key_value_heads differs"):
        LatentMergedForCausalLM.from_models(
            base, tiny_causal("llama", 2, num_key_value_heads=4), engine="lockstep"
        )
    with pytest.raises(LatentError, match="layer classes differ"):
        LatentMergedForCausalLM.from_models(base, tiny_causal("qwen3", 2), engine="lockstep")
    with pytest.raises(LatentError, match="attention implementation"):
        donor = tiny_causal("llama", 2)
        donor.set_attn_implementation("eager")
        LatentMergedForCausalLM.from_models(base, donor)
    with pytest.raises(LatentError, match="no language model head"):
        LatentMergedForCausalLM.from_models(AutoModel.from_config(base.config), base)
    with pytest.raises(LatentError, match="names no model"):
        LatentMergedForCausalLM.from_models(base, [3])
    with pytest.raises(LatentError, match="cannot read a model config"):
        LatentMergedForCausalLM.from_models(base, "/nowhere/at/all")
    with pytest.raises(LatentError, match="feedback needs the lockstep"):
        LatentMergedForCausalLM.from_models(
            base, tiny_causal("llama", 2), [Site(2, feedback=True)], engine="tower"
        )
    with pytest.raises(LatentError, match="width 5"):
        LatentMergedForCausalLM.from_models(base, [], steer=[Steer(1, torch.ones(5))])
    with pytest.raises(LatentError, match="rows"):
        LatentMergedForCausalLM.from_models(base, tiny_causal("llama", 2, vocab_size=262))


def test_a_donor_cut_too_short_is_named() -> None:
    donor = tiny_causal("llama", 2, num_hidden_layers=2)
    merged = LatentMergedForCausalLM.from_models(tiny_causal("llama", 1), donor, [Site(2)])
    with pytest.raises(LatentError, match=r"donor 0 holds 2 layers.*at least 3"):
        merged.set_sites([Site(3)])


def test_tokenizers_must_agree() -> None:
    base, donor = tiny_causal("llama", 1), tiny_causal("llama", 2)
    mine, theirs = byte_tokenizer(), byte_tokenizer()

    def build() -> LatentMergedForCausalLM:
        return LatentMergedForCausalLM.from_models(
            base, donor, [Site(2)], tokenizer=mine, donor_tokenizers=[theirs]
        )

    assert build().tokenizer is mine
    theirs.chat_template = "{{ messages }}"
    with pytest.warns(UserWarning, match="another chat template"):
        build()
    theirs.chat_template = mine.chat_template
    theirs.eos_token = "<pad>"
    with pytest.raises(LatentError, match=r"eos_token_id is 258.*257"):
        build()
    theirs = byte_tokenizer()
    theirs.add_tokens(["<extra>"])
    build()
    mine.add_tokens(["<other>"])
    with pytest.raises(LatentError, match="mean something else, the first is 259"):
        build()


def test_a_site_in_the_shared_prefix_is_a_no_op_and_says_so() -> None:
    base, donor = tiny_causal("llama", 1), tiny_causal("llama", 2)
    donor.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    for layer in range(2):
        donor.model.layers[layer].load_state_dict(base.model.layers[layer].state_dict())
    merged = LatentMergedForCausalLM.from_models(base, donor)
    with (
        pytest.warns(UserWarning, match=r"changes nothing.*first 2 layers"),
        merged.using([Site(2)]),
        torch.no_grad(),
    ):
        assert torch.equal(merged(prompt(5)).logits, base(prompt(5)).logits)
