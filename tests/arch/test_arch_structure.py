"""Layers, roles and ties are read from names, shapes and config alone, for models known and unknown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from arch_zoo import CAUSAL, Model, causal, custom, invented

from smelt.arch import Structure, check_agreement, read_structure

Zoo = Callable[[str], Model]
HEADLESS = {
    "gemma",
    "gemma2",
    "gemma3_text",
    "cohere",
    "starcoder2",
    "lfm2",
    "mamba",
    "falcon",
    "gpt2",
    "bloom",
    "opt",
}
PREFIXES = {
    "gpt2": "transformer.h.",
    "bloom": "transformer.h.",
    "falcon": "transformer.h.",
    "gpt_neox": "gpt_neox.layers.",
    "mamba": "backbone.layers.",
    "opt": "model.decoder.layers.",
}
ROUTERS = {"mixtral": 3, "qwen3_moe": 3, "phimoe": 3, "gpt_oss": 6, "deepseek_v3": 4}


def read(model: Model) -> Structure:
    return read_structure(*model)


@pytest.mark.parametrize("kind", CAUSAL)
def test_language_models(zoo: Zoo, kind: str) -> None:
    tensors, config = zoo(kind)
    found = read((tensors, config))
    assert found.main is not None and len(found.stacks) == 1
    assert found.main.prefix == PREFIXES.get(kind, "model.layers.") and found.main.indices == (0, 1, 2)
    assert found.config_depth_keys == (("n_layer",) if kind in ("gpt2", "bloom") else ("num_hidden_layers",))
    assert len(found.with_role("embedding")) == 1 and tensors[found.with_role("embedding")[0]].shape == (
        99,
        32,
    )
    assert found.tied == (kind in HEADLESS) and bool(found.with_role("head")) != found.tied
    assert len(found.with_role("router")) == ROUTERS.get(kind, 0)
    assert ("layer_types" in found.per_layer_lists) == (len(config.get("layer_types") or ()) == 3)
    assert set(found.per_layer_lists) <= {"layer_types"}
    assert found.vocab_keys == ("vocab_size",)
    assert check_agreement(tensors, config) == ([], [])


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_tensor_has_its_place(zoo: Zoo, kind: str) -> None:
    tensors, config = zoo(kind)
    found = read((tensors, config))
    for name in tensors:
        place, side, role = found.layer_of(name), found.side_of(name), found.role_of(name)
        assert (place is None) == (side is not None) == (not name.startswith(found.stacks[0].prefix))
        if place is not None:
            assert role in ("layer", "norm", "router") and place[0] is found.main
            assert found.rename_layer(name, place[1]) == name
            assert found.layer_of(found.rename_layer(name, 41)) == (found.main, 41)
        else:
            assert found.rename_layer(name, 41) == name
            assert side == {"embedding": "pre", "head": "post"}.get(role, side)
    finals = [name for name in tensors if found.role_of(name) == "norm" and found.side_of(name) == "post"]
    assert finals, "the final norm comes after the layers"


STACKS = {
    "t5": {"decoder.block.": (2, ("num_decoder_layers",)), "encoder.block.": (3, ("num_layers",))},
    "bart": {
        "model.decoder.layers.": (2, ("decoder_layers",)),
        "model.encoder.layers.": (2, ("encoder_layers",)),
    },
    "whisper": {
        "model.decoder.layers.": (3, ("decoder_layers",)),
        "model.encoder.layers.": (2, ("encoder_layers",)),
    },
    "llava": {
        "model.language_model.layers.": (2, ("text_config.num_hidden_layers",)),
        "model.vision_tower.encoder.layers.": (2, ("vision_config.num_hidden_layers",)),
    },
    "qwen2_vl": {
        "model.language_model.layers.": (3, ("text_config.num_hidden_layers",)),
        "model.visual.blocks.": (3, ("vision_config.depth",)),
    },
    "bert": {"bert.encoder.layer.": (3, ("num_hidden_layers",))},
    "vit": {"vit.layers.": (3, ("num_hidden_layers",))},
}


@pytest.mark.parametrize("kind", STACKS)
def test_models_with_several_stacks(zoo: Zoo, kind: str) -> None:
    tensors, config = zoo(kind)
    found = read((tensors, config))
    keys = {stack.prefix: (stack.count, stack.depth_keys) for stack in found.stacks}
    expected = STACKS[kind]
    if kind in ("bart", "whisper"):  # these write num_hidden_layers, which is their encoder's, as well
        keys = {
            prefix: (count, tuple(k for k in found if k != "num_hidden_layers"))
            for prefix, (count, found) in keys.items()
        }
    assert keys == expected
    assert found.main is not None and found.main.prefix == next(iter(expected))
    assert check_agreement(tensors, config)[0] == []


def test_vision_language_models_keep_their_parts_apart(zoo: Zoo) -> None:
    tensors, config = zoo("qwen2_vl")
    found = read((tensors, config))
    assert found.with_role("embedding") == ["model.language_model.embed_tokens.weight"]
    assert found.with_role("head") == ["lm_head.weight"] and found.vocab_keys == ("text_config.vocab_size",)
    assert found.per_layer_lists == ("text_config.layer_types",)
    place = found.layer_of("model.visual.blocks.2.attn.qkv.weight")
    assert place is not None and (place[0].prefix, place[1]) == ("model.visual.blocks.", 2)
    assert found.layer_of("model.visual.merger.mlp.2.weight") is None, "a sequence of modules is no stack"
    assert found.side_of("model.visual.merger.mlp.2.weight") == "pre"


def test_masked_language_models_and_classifiers(zoo: Zoo) -> None:
    bert = read(zoo("bert"))
    assert bert.tied and bert.role_of("cls.predictions.bias") == "head"
    assert bert.side_of("bert.embeddings.LayerNorm.weight") == "pre"
    assert bert.role_of("bert.embeddings.position_embeddings.weight") == "other"
    vit = read(zoo("vit"))
    assert vit.with_role("head") == ["classifier.weight", "classifier.bias"] and not vit.tied


# -- models nobody has


@pytest.mark.parametrize("layers", [1, 2, 5, 12])
@pytest.mark.parametrize("tied", [True, False])
def test_an_invented_architecture(layers: int, tied: bool) -> None:
    tensors, config = invented(layers, tied=tied)
    found = read((tensors, config))
    assert [(stack.prefix, stack.count) for stack in found.stacks] == [("soup.rungs.", layers)]
    assert found.config_depth_keys == ("n_layers",) and found.tied == tied
    assert found.with_role("embedding") == ["soup.tokens"] and found.with_role("head") == (
        [] if tied else ["words"]
    )
    assert len(found.with_role("router")) == layers
    assert found.rename_layer("soup.rungs.0.experts.2.body", 9) == "soup.rungs.9.experts.2.body"
    assert found.per_layer_lists == (("schedule",) if layers > 4 else ())


def test_without_any_config() -> None:
    tensors, _ = invented(3)
    found = read_structure(tensors, {})
    assert found.main is not None and found.main.count == 3 and found.config_depth_keys == ()
    assert found.with_role("embedding") == [] and found.tied is False
    named = read_structure(causal("llama")[0], {})
    assert named.with_role("embedding") == ["model.embed_tokens.weight"] and named.with_role("head") == [
        "lm_head.weight"
    ]


def test_square_coincidences_do_not_make_embeddings() -> None:
    """Vocabulary, width and positions of equal size: names decide."""
    shapes = {
        "embed_tokens.weight": (64, 64),
        "wpe.weight": (64, 64),
        "layers.0.a.w": (64, 64),
        "proj.up.weight": (64, 64),
        "lm_head.weight": (64, 64),
    }
    found = read_structure(custom(shapes), {"vocab_size": 64, "num_layers": 1})
    assert found.with_role("embedding") == ["embed_tokens.weight"] and found.with_role("head") == [
        "lm_head.weight"
    ]
    assert found.role_of("wpe.weight") == found.role_of("proj.up.weight") == "other"


def test_padded_vocabularies() -> None:
    shapes = {
        "model.embed_tokens.weight": (128, 8),
        "lm_head.weight": (128, 8),
        "layers.0.a.w": (8, 8),
        "odd.weight": (128, 8),
    }
    found = read_structure(custom(shapes), {"vocab_size": 100})
    assert found.with_role("embedding") == ["model.embed_tokens.weight"] and found.with_role("head") == [
        "lm_head.weight"
    ]
    assert found.role_of("odd.weight") == "other"


def test_layers_of_different_make_and_layers_without_tensors() -> None:
    shapes = {"b.0.attn.w": (4, 4), "b.0.norm.weight": (4,), "b.2.mlp.up": (9, 4), "b.5.mlp.up": (3, 4)}
    found = read_structure(custom(shapes), {"num_blocks": 6})
    assert found.main is not None and found.main.indices == (0, 2, 5) and found.main.count == 6
    assert found.config_depth_keys == ("num_blocks",)


def test_multi_token_prediction_layers_belong_to_the_stack() -> None:
    shapes = {f"model.layers.{n}.mlp.up.weight": (4, 4) for n in range(4)}
    config = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    found = read_structure(custom(shapes), config)
    assert (
        found.main is not None and found.main.count == 4 and found.config_depth_keys == ("num_hidden_layers",)
    )
    assert check_agreement(custom(shapes), config) == ([], [])


def test_a_wrapper_with_a_number_is_looked_through() -> None:
    shapes = {f"0.auto.layer.{n}.attn.w": (4, 4) for n in range(3)} | {
        "0.auto.embed.weight": (9, 4),
        "2.dense.weight": (4, 4),
    }
    found = read_structure(custom(shapes), {"num_hidden_layers": 3, "vocab_size": 9})
    assert found.main is not None and found.main.prefix == "0.auto.layer." and found.main.count == 3
    assert found.with_role("embedding") == ["0.auto.embed.weight"]


def test_numbers_joined_by_an_underscore() -> None:
    shapes = {f"body.block_{n}.attn.w": (4, 4) for n in range(3)}
    found = read_structure(custom(shapes), {"n_layer": 3})
    assert (
        found.main is not None
        and found.main.prefix == "body.block_"
        and found.config_depth_keys == ("n_layer",)
    )
    assert found.rename_layer("body.block_2.attn.w", 7) == "body.block_7.attn.w"


def test_zero_padded_numbers_stay_padded() -> None:
    found = read_structure(custom({f"l.{n:02d}.a.w": (2, 2) for n in range(3)}), {})
    assert (
        found.rename_layer("l.01.a.w", 7) == "l.07.a.w" and found.rename_layer("l.01.a.w", 123) == "l.123.a.w"
    )


def test_short_lists_need_a_telling_name() -> None:
    shapes = {f"layers.{n}.a.w": (2, 2) for n in range(2)}
    config = {
        "num_hidden_layers": 2,
        "layer_types": ["a", "b"],
        "eos_token_id": [1, 2],
        "architectures": ["A", "B"],
        "betas": [0.9, 0.99],
        "mlp_only_layers": [0, 1],
        "num_attention_heads": [4, 2],
        "block_pattern": [1, 0],
    }
    assert read_structure(custom(shapes), config).per_layer_lists == (
        "layer_types",
        "num_attention_heads",
        "block_pattern",
    )


def test_norms_are_told_by_shape_not_by_name() -> None:
    shapes = {
        "x.0.zap.weight": (4,),
        "x.0.zap.bias": (4,),
        "x.0.lin.weight": (4, 4),
        "x.0.lin.bias": (4,),
        "x.0.ssm.D": (4,),
        "x.0.only.bias": (4,),
    }
    found = read_structure(custom(shapes), {})
    assert found.with_role("norm") == ["x.0.zap.weight", "x.0.zap.bias"]


def test_nothing_at_all() -> None:
    found = read_structure({}, {"vocab_size": 3})
    assert found.stacks == () and found.main is None and not found.tied and found.per_layer_lists == ()
    assert check_agreement({}, {}) == ([], [])


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": "big", "num_layers": None, "layer_types": 3},
        {"a": {"b": {"c": {"d": {"num_layers": 2}}}}},
    ],
)
def test_odd_configs_are_survived(config: dict[str, object]) -> None:
    assert read_structure(invented(2)[0], config).main is not None
