"""Each operator against its formula in float64, at the edges of its angles, and in low precision."""

from __future__ import annotations

import math

import pytest
import torch
from latent_tiny import prompt, tiny_causal

from smelt.core.errors import LatentError
from smelt.latent import Gate, LatentMergedForCausalLM, Schedule, Site
from smelt.latent.operators import angle, frechet, gram_mix, gram_solve, linear, slerp, unit, wide


def states(count: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, 16, generator=generator).to(dtype) * (i + 1) for i in range(count)]


def slerp64(a: torch.Tensor, b: torch.Tensor, beta: float) -> torch.Tensor:
    """The definition, with arccos, in float64."""
    a, b = a.double(), b.double()
    la, lb = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    theta = torch.arccos(((a / la) * (b / lb)).sum(-1, keepdim=True))
    mixed = (torch.sin((1 - beta) * theta) * a / la + torch.sin(beta * theta) * b / lb) / torch.sin(theta)
    return ((1 - beta) * la + beta * lb) * mixed / mixed.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.75, 1.3, -0.2])
def test_slerp_is_its_definition(beta) -> None:
    a, b = states()
    torch.testing.assert_close(slerp(a, b, beta).double(), slerp64(a, b, beta), atol=2e-5, rtol=1e-5)
    tensor = slerp(a, b, torch.full((2, 5, 1), beta))
    torch.testing.assert_close(tensor, slerp(a, b, beta))


@pytest.mark.parametrize(
    "theta", [1e-6, 1e-4, 9e-4, 1.1e-3, 0.01, 0.25, 1.5, math.pi - 0.01, math.pi - 1e-4, math.pi]
)
@pytest.mark.parametrize("size", [1e-18, 1.0, 1e15])
def test_slerp_at_every_angle_and_size_is_finite_and_between(theta, size) -> None:
    a = torch.tensor([[1.0, 0.0, 0.0]]) * size
    b = torch.tensor([[math.cos(theta), math.sin(theta), 0.0]]) * size
    mixed = slerp(a, b, 0.25)
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(mixed.norm() / size, torch.tensor(1.0), atol=1e-4, rtol=0)
    if theta < math.pi - 1e-3:
        expected = torch.tensor([math.cos(theta / 4), math.sin(theta / 4), 0.0])
        torch.testing.assert_close(mixed[0] / size, expected, atol=1e-5, rtol=0)
    else:  # opposite directions have no single great circle: the base's direction is kept
        torch.testing.assert_close(mixed, a)


def test_small_angles_in_low_precision_are_not_lost() -> None:
    a = torch.tensor([[1.0, 0.0]])
    for theta in (0.001, 0.01):
        b = torch.tensor([[math.cos(theta), math.sin(theta)]])
        assert angle(unit(a)[0], unit(b)[0]).item() == pytest.approx(theta, rel=1e-3)
    assert torch.arccos((a.bfloat16() * b.bfloat16()).sum()).item() == 0.0  # what the arccos form sees


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_states_in_every_dtype(dtype) -> None:
    zero, other = torch.zeros(1, 8, dtype=dtype), torch.ones(1, 8, dtype=dtype)
    for a, b in ((zero, other), (other, zero), (zero, zero)):
        mixed = slerp(wide(a), wide(b), 0.5).to(dtype)
        assert torch.isfinite(mixed).all()
        torch.testing.assert_close(mixed, (a + b) / 2)


def test_ends_are_exact() -> None:
    a, b, c = states(3)
    for beta, end in ((0.0, a), (1.0, b)):
        tensor = torch.full((2, 5, 1), beta)
        assert torch.equal(linear(a, [b], [tensor]), end) and torch.equal(slerp(a, b, tensor), end)
    assert torch.equal(linear(a, [b], [1.0]), b) and torch.equal(slerp(a, b, 1.0), b)
    assert torch.equal(frechet(a, [b, c], [0.0, 1.0]), c) and torch.equal(frechet(a, [b, c], [0.0, 0.0]), a)


def test_linear_of_several_donors() -> None:
    a, b, c = states(3)
    torch.testing.assert_close(linear(a, [b, c], [0.5, -0.2]), 0.7 * a + 0.5 * b - 0.2 * c)


def test_frechet_with_one_weight_zero_is_slerp_and_is_a_minimum() -> None:
    a, b, c = states(3)
    torch.testing.assert_close(frechet(a, [b, c], [0.3, 0.0]), slerp(a, b, 0.3), atol=1e-4, rtol=1e-4)
    mean = unit(frechet(a, [b, c], [0.3, 0.3]))[0]

    def cost(point: torch.Tensor) -> torch.Tensor:
        pairs = zip((0.4, 0.3, 0.3), (a, b, c), strict=True)
        return sum(w * angle(point, unit(x)[0]) ** 2 for w, x in pairs)

    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    assert (cost(mean) < cost(unit(mean + 0.05 * noise)[0])).all()


def test_gram_maps_solve_regmean() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(200, 6, generator=generator),
        torch.randn(200, 6, generator=generator) * torch.arange(1, 7),
    )
    grams = [a.T @ a, b.T @ b]
    maps = gram_solve(grams, 0.0, 1.0)
    x, y = torch.randn(3, 6, generator=generator), torch.randn(3, 6, generator=generator)
    expected = torch.linalg.solve(grams[0] + grams[1], (grams[0] @ x.T + grams[1] @ y.T)).T
    torch.testing.assert_close(gram_mix(x, [y], maps), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gram_mix(x, [x], gram_solve(grams, 0.3, 0.5)), x, atol=1e-4, rtol=1e-4)
    diagonal = gram_solve(grams, 0.0, 0.0)[1]
    share = grams[1].diagonal() / (grams[0].diagonal() + grams[1].diagonal())
    torch.testing.assert_close(diagonal, torch.diag(share), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def three() -> LatentMergedForCausalLM:
    return LatentMergedForCausalLM.from_models(
        tiny_causal("llama", 1), [tiny_causal("llama", 2), tiny_causal("llama", 3)]
    )


@torch.no_grad()
def test_operators_inside_a_model_are_their_formulas(three) -> None:
    cases = {
        "lerp": (Site(2, "lerp", [0.5, -0.2]), lambda b, d, e: 0.7 * b + 0.5 * d - 0.2 * e),
        "shrink": (Site(2, "regmean", lam=0.25), lambda b, d, e: 0.2 * b + 0.8 * (d + e) / 2),
        "penalty": (
            Site(2, "regmean", reading="penalty", lam=0.25),
            lambda b, d, e: (b + d + e) / 3 - 0.25 * ((b + d + e) / 3 - b),
        ),
        "task": (Site(2, "task_vector", [0.5, 0.1]), lambda b, d, e: b + 0.5 * (d - b) + 0.1 * (e - b)),
        "proxy": (Site(2, "proxy", [0.7]), lambda b, d, e: b + 0.7 * (d - e)),
    }
    for name, (site, formula) in cases.items():
        with three.using([site]), three.recording() as tape:
            three(prompt(6))
        seen = tape[2]
        torch.testing.assert_close(
            seen["mixed"], formula(seen["base"], *seen["donors"]), msg=lambda m, n=name: f"{n}: {m}"
        )


@torch.no_grad()
@pytest.mark.parametrize("source", ["prompt", "calibrated"])
def test_gram_regmean_cached_equals_uncached(source) -> None:
    from transformers import DynamicCache

    merged = LatentMergedForCausalLM.from_models(tiny_causal("llama", 1), tiny_causal("llama", 2))
    site = Site(2, "regmean", [0.5], reading="gram", lam=0.05, gram=source)
    ids = prompt(14)
    with merged.using([site], scope="generated"):
        if source == "calibrated":
            with pytest.raises(LatentError, match="calibrate_gram"):
                merged(ids, mix_start=6)
            merged.calibrate_gram([prompt(40, seed=9)])
        whole = merged(ids, mix_start=6, use_cache=False).logits
        cache = DynamicCache(config=merged.config)
        steps = [ids[:, :4], ids[:, 4:7], ids[:, 7:8], ids[:, 8:]]
        parts = [merged(step, mix_start=6, past_key_values=cache).logits for step in steps]
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=5e-4, rtol=0)
        assert (whole - merged.base(ids).logits)[:, 6:].abs().max() > 0.05
        assert torch.equal(whole[:, :6], merged.base(ids, use_cache=False).logits[:, :6])
        padded = torch.cat([torch.full((1, 3), 258), ids[:, :7]], 1)
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        out = merged.generate(padded, attention_mask=(padded != 258).long(), **options)
        assert torch.equal(out[:, 3:], merged.generate(ids[:, :7], **options))
    if source == "prompt":
        with pytest.raises(LatentError, match="look ahead"), merged.using([site], scope="all"):
            merged(ids)


@torch.no_grad()
def test_a_schedule_is_a_function_of_the_token(three) -> None:
    ramp = Site(2, "lerp", [1.0, 0.0], schedule=Schedule("linear", 0.0, 1.0, 4))
    with three.using([ramp], scope="generated"), three.recording() as tape:
        three(prompt(9), mix_start=3)
    seen = tape[2]
    for column in range(9):
        beta = min(max(column - 3, 0) / 4, 1.0)
        expected = (1 - beta) * seen["base"][0, column] + beta * seen["donors"][0][0, column]
        torch.testing.assert_close(seen["mixed"][0, column], expected)
    with three.using([ramp], scope="all"), three.recording() as tape:
        three(prompt(9), mix_start=3)
    torch.testing.assert_close(tape[2]["mixed"][0, :4], tape[2]["base"][0, :4])
    assert Schedule("step", 0.2, 0.9, 3).at(2) == pytest.approx(0.2)
    assert Schedule("step", 0.2, 0.9, 3).at(3) == pytest.approx(0.9)
    assert Schedule("cosine", 0.0, 1.0, 4).at(2) == pytest.approx(0.5)


@torch.no_grad()
def test_a_gate_mixes_where_models_agree(three) -> None:
    gated = Site(2, "lerp", [0.8, 0.0], gate=Gate(-0.2, 0.6))
    with three.using([gated]), three.recording() as tape:
        three(prompt(9))
    seen = tape[2]
    cosine = torch.cosine_similarity(seen["base"], seen["donors"][0], dim=-1)
    beta = (0.8 * ((cosine + 0.2) / 0.8).clamp(0, 1)).unsqueeze(-1)
    torch.testing.assert_close(seen["mixed"], (1 - beta) * seen["base"] + beta * seen["donors"][0])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_models_stay_close_to_float32(dtype) -> None:
    def build(kind: torch.dtype) -> LatentMergedForCausalLM:
        base, donor = tiny_causal("llama", 1).to(kind), tiny_causal("llama", 2).to(kind)
        return LatentMergedForCausalLM.from_models(base, donor, [Site(2, "slerp", [0.5])])

    low, full = build(dtype)(prompt(9)).logits, build(torch.float32)(prompt(9)).logits
    assert low.dtype == dtype
    assert (low.float() - full).abs().max() < 0.1 * full.std()
