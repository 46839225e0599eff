"""From models to rows: states of base, donor and blend, per prompt, and the published column names."""

from __future__ import annotations

import csv
import io
import math
import statistics

import latent_tiny as tiny
import pytest
import torch

from smelt.core.errors import LatentError
from smelt.latent import LatentMergedForCausalLM, Site
from smelt.latent.metric_rows import (
    CSV_COLUMNS,
    METRICS,
    SUMMARY_COLUMNS,
    compare_prompts,
    layerwise,
    layerwise_cka,
    metric_row,
    summary_row,
)
from smelt.latent.metrics import linear_cka, midness_seq
from smelt.latent.mixers import LayerLatentMixer
from smelt.latent.states import collect_states, encode_all, iterate_states

PROMPTS = ["the first prompt", "a second one, somewhat longer", "third"]
PUBLISHED = (
    "layer,beta,n,midpoint_cos_mean,midpoint_cos_std,arc_mid_deviation_mean,arc_mid_deviation_std,"
    "arc_ratio_mean,arc_ratio_std,cka_base_vs_ft_mean,cka_base_vs_ft_std,cka_base_vs_mixed_mean,"
    "cka_base_vs_mixed_std,cka_ft_vs_mixed_mean,cka_ft_vs_mixed_std"
)


@pytest.fixture(scope="module")
def models():
    return tiny.tiny_causal("llama", 0), tiny.tiny_causal("llama", 1)


@pytest.fixture(scope="module")
def tok():
    return tiny.byte_tokenizer()


def test_the_columns_are_the_published_ones():
    assert ",".join(CSV_COLUMNS) == PUBLISHED
    assert len(SUMMARY_COLUMNS) == 9


def test_a_row_from_real_models(models, tok):
    base, donor = models
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(2, "lerp", (0.25,))])
    b, d, m = (collect_states(model, tok, PROMPTS) for model in (base, donor, merged))
    samples = compare_prompts(b, d, m, beta=0.25)
    row = metric_row(samples, layer=2, beta=0.25)
    assert list(row) == list(CSV_COLUMNS)
    assert row["n"] == 3
    ratios = [midness_seq(x[4], y[4], z[4])["arc_ratio"] for x, y, z in zip(b, d, m, strict=True)]
    assert row["arc_ratio_mean"] == pytest.approx(statistics.fmean(ratios))
    assert row["arc_ratio_std"] == pytest.approx(statistics.stdev(ratios))
    similar = [linear_cka(y[4], z[4]) for y, z in zip(d, m, strict=True)]
    assert row["cka_ft_vs_mixed_mean"] == pytest.approx(statistics.fmean(similar))
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS)
    writer.writeheader()
    writer.writerow(row)
    assert out.getvalue().splitlines()[0] == PUBLISHED


def test_running_iterators_give_what_lists_give(models, tok):
    base, donor = models
    rows = encode_all(tok, PROMPTS)
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(1, "slerp", (0.5,))])
    streams = [iterate_states(model, rows, [4], batch_size=2) for model in (base, donor, merged)]
    lists = [collect_states(model, tok, PROMPTS, [4], batch_size=2) for model in (base, donor, merged)]
    assert compare_prompts(*streams) == compare_prompts(*lists)


def test_an_attached_mixer_is_measured_like_the_merge(models, tok):
    base, donor = models
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(2, "slerp", (0.5,))])
    want = collect_states(merged, tok, PROMPTS)
    with LayerLatentMixer(base, donor, 2, 0.5, last_token_only=False, mix_mode="slerp"):
        found = collect_states(base, tok, PROMPTS)
    for a, b in zip(want, found, strict=True):
        assert all(torch.allclose(a[site], b[site], atol=1e-6) for site in range(5))


def test_a_merge_that_spares_the_prompt_is_measured_with_prompt_lengths(models, tok):
    base, donor = models
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(2, "lerp", (0.5,))], scope="generated")
    rows = encode_all(tok, PROMPTS)
    with pytest.raises(LatentError, match="where the prompt ends"):
        list(iterate_states(merged, rows))
    found = list(iterate_states(merged, rows, prompt_lengths=[4, 9, 2], batch_size=2))
    plain, whole = (collect_states(model, tok, PROMPTS) for model in (base, donor))
    for length, f, b, d in zip((4, 9, 2), found, plain, whole, strict=True):
        assert torch.allclose(f[2][: length - 1], b[2][: length - 1], atol=1e-6)
        assert torch.allclose(f[2][length - 1 :], (b[2] + d[2])[length - 1 :] / 2, atol=1e-5)


def test_where_the_blend_lies_at_its_own_site(models, tok):
    """At the site itself a spherical half blend has midness 1, below it the blend is the base."""
    base, donor = models
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(2, "slerp", (0.5,))])
    rows = layerwise(*(collect_states(model, tok, PROMPTS) for model in (base, donor, merged)), beta=0.5)
    assert [row["site"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[2]["midpoint_cos_mean"] == pytest.approx(1.0, abs=1e-6)
    assert rows[2]["arc_ratio_mean"] == pytest.approx(0.5, abs=1e-5)
    assert rows[2]["beta_arc_deviation_mean"] == pytest.approx(0.0, abs=1e-5)
    assert rows[1]["arc_ratio_mean"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["cka_base_vs_mixed_mean"] == pytest.approx(1.0)
    assert 0.05 < rows[4]["arc_ratio_mean"] < 1


def test_layerwise_cka(models, tok):
    b, d = (collect_states(model, tok, PROMPTS, [1, 3]) for model in models)
    found = layerwise_cka(b, d)
    assert list(found) == [1, 3]
    assert found[3] == pytest.approx(
        statistics.fmean(linear_cka(x[3], y[3]) for x, y in zip(b, d, strict=True))
    )


def test_regmean_rows_extra_columns_and_undefined_values():
    samples = [
        dict.fromkeys(METRICS, 0.5) | {"arc_ratio": value, "tokens": 3} for value in (0.4, math.nan, 0.6)
    ]
    row = metric_row(samples, layer=1, lambda_reg=0.5)
    assert list(row)[:3] == ["layer", "lambda_reg", "n"]
    assert (row["n"], row["arc_ratio_mean"]) == (3, pytest.approx(0.5))
    assert metric_row(samples, layer=1, beta=0.5, extra=True)["tokens_mean"] == 3
    assert metric_row(samples[:1], layer=1, beta=0.5)["arc_ratio_std"] == 0.0
    assert math.isnan(metric_row(samples[1:2], layer=1, beta=0.5)["arc_ratio_mean"])


def test_a_summary_is_the_grand_mean_of_its_rows():
    rows = [dict.fromkeys((f"{name}_mean" for name in METRICS), value) for value in (0.2, 0.4)]
    found = summary_row(rows, method="LERP")
    assert list(found) == list(SUMMARY_COLUMNS)
    assert found["Method"] == "LERP"
    assert found["Arc Ratio (≈0.5, ↑center)"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: metric_row([], layer=1, beta=0.5), "no samples"),
        (lambda: metric_row([{}], layer=1), "exactly one"),
        (lambda: metric_row([{}], layer=1, beta=0.5, lambda_reg=0.5), "exactly one"),
        (lambda: summary_row([], method="LERP"), "no rows"),
        (lambda: compare_prompts(*[[{site: torch.eye(2)}] for site in (1, 1, 2)]), "no state at site 1"),
        (lambda: compare_prompts(*[[{1: torch.eye(3)[: 2 + k]}] for k in (0, 0, 1)]), "prompt 0, site 1"),
    ],
)  # fmt: skip
def test_rows_without_an_answer_are_refused(call, said):
    with pytest.raises(LatentError, match=said):
        call()


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox", "gemma2", "mixtral", "qwen2"])
def test_states_of_other_architectures_do_not_depend_on_the_batch(arch, tok):
    model = tiny.tiny_causal(arch, 0)
    together = collect_states(model, tok, PROMPTS, batch_size=3)
    alone = [collect_states(model, tok, [prompt])[0] for prompt in PROMPTS]
    for a, b in zip(together, alone, strict=True):
        assert all(torch.allclose(a[site], b[site], atol=1e-4) for site in range(5))
        assert a[0].shape == (len(tok(PROMPTS[0])["input_ids"]), 32) or a is not together[0]
