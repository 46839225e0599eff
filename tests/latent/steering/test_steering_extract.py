"""Extraction: values against plain forwards and float64 numpy, signs, positions, and what the vectors do."""

from __future__ import annotations

import latent_tiny as tiny
import numpy as np
import pytest
import torch

from smelt.core.errors import LatentError
from smelt.latent.mixers import ActivationSteerer
from smelt.latent.states import collect_states
from smelt.latent.steering_extract import (
    _oriented,
    extract_activation_addition,
    extract_contrast,
    extract_difference,
    pick,
)

PROMPTS = ["alpha", "a much longer prompt than that", "xy", [{"role": "user", "content": "hello"}]]


@pytest.fixture(scope="module")
def base():
    return tiny.tiny_causal("llama", 0)


@pytest.fixture(scope="module")
def donor():
    return tiny.tiny_causal("llama", 1)


@pytest.fixture(scope="module")
def tok():
    return tiny.byte_tokenizer()


def states(model, tok, prompts, position):
    """(prompts, H) float64 numpy per layer, straight from output_hidden_states, one prompt at a time."""
    found = {layer: [] for layer in range(1, 4)}
    for prompt in prompts:
        with torch.no_grad():
            hidden = model(torch.tensor([tok(prompt)["input_ids"]]), output_hidden_states=True).hidden_states
        for layer in found:
            row = hidden[layer][0].double().numpy()
            found[layer].append(row.mean(0) if position == "all" else row[position])
    return {layer: np.stack(rows) for layer, rows in found.items()}


def test_difference_is_the_mean_over_all_tokens(base, donor, tok):
    found = extract_difference(base, donor, tok, PROMPTS, batch_size=2)
    mine, theirs = (collect_states(model, tok, PROMPTS, batch_size=1) for model in (base, donor))
    assert found.layers == [1, 2, 3, 4]
    for layer in found.layers:
        gaps = torch.cat([b[layer] - a[layer] for a, b in zip(mine, theirs, strict=True)])
        assert torch.allclose(found.vectors[layer], gaps.double().mean(0).float(), atol=1e-6)
    assert found.made["tokens"] == len(gaps)
    assert (found.model_type, found.n_layers) == ("llama", 4)


def test_states_are_those_of_each_prompt_alone(base, tok):
    texts = PROMPTS[:3]
    batched = collect_states(base, tok, texts, batch_size=3)
    for text, found in zip(texts, batched, strict=True):
        with torch.no_grad():
            hidden = base(torch.tensor([tok(text)["input_ids"]]), output_hidden_states=True).hidden_states
        for site in range(4):
            assert torch.allclose(found[site], hidden[site][0], atol=1e-5)
        assert torch.allclose(base.model.norm(found[4]), hidden[4][0], atol=1e-5)


@pytest.mark.parametrize("position", ["last", "first", -2, 1])
def test_difference_at_one_position(base, donor, tok, position):
    texts = ["alpha", "a longer prompt"]
    found = extract_difference(base, donor, tok, texts, position=position, layers=[2])
    index = {"last": -1, "first": 0}.get(position, position)
    want = (states(donor, tok, texts, index)[2] - states(base, tok, texts, index)[2]).mean(0)
    assert np.allclose(found.vectors[2].numpy(), want, atol=1e-6)


def test_mean_contrast_needs_no_pairs(base, tok):
    plus, minus = ["good one", "fine thing", "happy day"], ["bad one", "sad day"]
    found = extract_contrast(base, tok, plus, minus, position="all", layers=[1, 2, 3])
    for layer in (1, 2, 3):
        want = states(base, tok, plus, "all")[layer].mean(0) - states(base, tok, minus, "all")[layer].mean(0)
        assert np.allclose(found.vectors[layer].numpy(), want, atol=1e-6)


@pytest.mark.parametrize("method", ["pca_diff", "pca_center"])
def test_principal_directions_are_those_of_numpy_with_the_majority_sign(base, tok, method):
    plus = [f"I am {word} and glad" for word in ("very", "so", "quite", "rather", "really")]
    minus = [text.replace("glad", "sad") for text in plus]
    found = extract_contrast(base, tok, plus, minus, method=method, layers=[1, 2, 3])
    above, below = states(base, tok, plus, -1), states(base, tok, minus, -1)
    for layer in (1, 2, 3):
        gaps = above[layer] - below[layer]
        rows = gaps if method == "pca_diff" else np.concatenate([gaps / 2, -gaps / 2])
        centred = rows - rows.mean(0)
        values, axes = np.linalg.eigh(centred.T @ centred)
        axis = axes[:, -1] * (1 if np.sum(gaps @ axes[:, -1] > 0) > 2.5 else -1)
        assert np.allclose(found.vectors[layer].numpy(), axis, atol=1e-5)
        assert found.made["explained"][str(layer)] == pytest.approx(values[-1] / values.sum(), abs=1e-5)
    assert list(found.norms().values()) == pytest.approx([1.0] * 3)


def test_an_axis_points_to_the_majority_whichever_way_it_came():
    gaps = torch.tensor([[1.0, 0.0], [2.0, 1.0], [-9.0, 0.0]], dtype=torch.float64)
    axis = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert torch.equal(_oriented(axis, gaps), axis)
    assert torch.equal(_oriented(-axis, gaps), axis)
    tied = gaps[1:]
    assert torch.equal(_oriented(axis, tied), -axis)


@pytest.mark.parametrize("method", ["mean", "pca_center"])
def test_swapping_the_sides_turns_the_vector_round(base, tok, method):
    plus, minus = ["glad day", "glad night", "glad end"], ["sad day", "sad night", "sad end"]
    one = extract_contrast(base, tok, plus, minus, method=method, layers=[2])
    other = extract_contrast(base, tok, minus, plus, method=method, layers=[2])
    assert torch.allclose(one.vectors[2], -other.vectors[2], atol=1e-6)


@pytest.mark.parametrize("norm", ["unit", "hidden"])
def test_lengths(base, tok, norm):
    plus, minus = ["glad", "good"], ["sad", "bad"]
    found = extract_contrast(base, tok, plus, minus, layers=[2], norm=norm)
    raw = extract_contrast(base, tok, plus, minus, layers=[2])
    points = np.concatenate([states(base, tok, plus, -1)[2], states(base, tok, minus, -1)[2]])
    want = 1.0 if norm == "unit" else np.linalg.norm(points, axis=1).mean()
    assert found.norms()[2] == pytest.approx(want, rel=1e-5)
    assert torch.allclose(found.normalised().vectors[2], raw.normalised().vectors[2], atol=1e-6)


def shorter():
    return tiny.tiny_causal("llama", num_hidden_layers=3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, t: extract_contrast(m, t, ["a"], ["b", "c"], method="pca_diff"), "1 positive and 2"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["b"], method="pca_diff"), "do not vary"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["a"], method="pca_center"), "states are equal"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["a"], norm="unit"), "there is no direction"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["b"], method="pac_diff"), "did you mean 'pca_diff'"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["b"], norm="one"), "unknown norm 'one'"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["b"], layers=[5]), "site 5"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["b"], layers=[]), "at least one site"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["b"], layers=[1, 1]), "each once"),
        (lambda m, t: extract_contrast(m, t, "abc", ["b"]), "must be a list"),
        (lambda m, t: extract_contrast(m, t, [], ["b"]), "must be a list"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["b"], position=3), "no token 3 in a prompt of 1"),
        (lambda m, t: extract_contrast(m, t, ["a"], ["b"], position="lats"), "did you mean 'last'"),
        (lambda m, t: extract_difference(m, shorter(), t, ["a"]), "num_hidden_layers 3"),
        (lambda m, t: extract_difference(m, m, t, [torch.tensor([5, 900])]), "token id 900"),
    ],
)  # fmt: skip
def test_requests_without_an_answer_are_refused(base, tok, call, said):
    with pytest.raises(LatentError, match=said):
        call(base, tok)


def test_pick_counts_from_both_ends():
    rows = torch.arange(8.0).reshape(4, 2)
    assert pick(rows, "all") is rows
    assert pick(rows, -4).tolist() == [[0.0, 1.0]] == pick(rows, "first").tolist()


def test_activation_addition_is_token_by_token(base, tok):
    found = extract_activation_addition(base, tok, "Love!", "Hate", 2)
    plus, minus = (collect_states(base, tok, [text], [2])[0][2] for text in ("Love!", "Hate"))
    want = plus.clone()
    want[:4] -= minus
    assert torch.allclose(found.vectors[2], want, atol=1e-6)


def test_a_contrast_direction_separates_prompts_it_has_not_seen(skilled):
    """In a trained model the direction tells the two tasks apart on held-out questions."""
    generator = torch.Generator().manual_seed(3)
    tok, model = tiny.byte_tokenizer(), skilled[0]
    reverse = [tiny.skill_text("r", generator)[0] for _ in range(48)]
    shift = ["s" + text[1:] for text in reverse]
    for method in ("mean", "pca_center"):
        found = extract_contrast(model, tok, reverse[:24], shift[:24], method=method, layers=[1])
        sides = [
            [float(states[1][-1] @ found.vectors[1]) for states in collect_states(model, tok, held, [1])]
            for held in (reverse[24:], shift[24:])
        ]
        assert min(sides[0]) > max(sides[1]), method


def test_adding_what_the_donor_adds_moves_the_base_towards_the_donor(skilled):
    """KL to the donor's next token falls with the vector and rises against it, on held-out questions."""
    generator = torch.Generator().manual_seed(5)
    tok = tiny.byte_tokenizer()
    known, held = ([tiny.skill_text("s", generator)[0] for _ in range(40)] for _ in range(2))
    base, donor = skilled
    vector = extract_difference(base, donor, tok, known, layers=[4])
    ids = torch.tensor([tok(text)["input_ids"] for text in held])

    def log_probs(model):
        with torch.no_grad():
            return model(ids, use_cache=False).logits[:, -1].log_softmax(-1)

    want = log_probs(donor)

    def distance(alpha):
        with ActivationSteerer(base, vector, alpha):
            return float((want.exp() * (want - log_probs(base))).sum(-1).mean())

    away, plain, towards = (distance(alpha) for alpha in (-1.0, 0.0, 1.0))
    assert towards < 0.95 * plain < plain < away
