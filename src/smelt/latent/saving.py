"""A latent merge on disk: config with the recipe, tokenizer, generation config; weights only when asked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from smelt.core.errors import LatentError
from smelt.latent.building import build_from_recipe, check_paths
from smelt.latent.projection import Projection
from smelt.latent.recipe import LatentRecipe, ModelRef, Settings
from smelt.latent.schedule import Schedule

TENSORS = "latent.safetensors"
REMOTE = "smelt_latent.py"
REMOTE_CODE = '''"""Lets transformers open this directory with trust_remote_code=True; smelt must be
installed."""

from smelt.latent import EnsembleConfig, EnsembleForCausalLM, LatentMergedConfig, LatentMergedForCausalLM

__all__ = ["EnsembleConfig", "EnsembleForCausalLM", "LatentMergedConfig", "LatentMergedForCausalLM"]
'''


def recipe_of(model: Any) -> LatentRecipe:
    """The recipe with the sites as they are now."""
    models = {key: value for key, value in model.config.recipe.items() if key in ("base", "donors", "engine")}
    return replace(LatentRecipe.from_dict({**models, "sites": []}), settings=model._settings)


def save(model: Any, folder: Path, *args: Any, embed_weights: bool = False, **kwargs: Any) -> None:
    """Write ``folder``. References stay references (relative when inside it) unless ``embed_weights``."""
    recipe = recipe_of(model)
    if not embed_weights:
        check_paths(recipe)
    if folder.is_file():
        raise LatentError(f"{folder} is a file", expected="a directory")
    folder.mkdir(parents=True, exist_ok=True)
    if embed_weights:
        recipe = _embed(model, recipe, folder)
    recipe = replace(
        recipe,
        base=_relative(recipe.base, folder),
        donors=tuple(_relative(donor, folder) for donor in recipe.donors),
    )
    tensors, steer = collect_tensors(model, recipe.settings)
    if tensors:
        from safetensors.torch import save_file

        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        recipe = replace(recipe, tensors=TENSORS, settings=replace(recipe.settings, steer=steer))
    _write_config(model, recipe.to_dict(), folder)
    _write_beside(model, folder)


def _write_beside(model: Any, folder: Path) -> None:
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    (folder / REMOTE).write_text(REMOTE_CODE)


def _write_config(model: Any, recipe: dict[str, Any], folder: Path) -> None:
    before, mapped = model.config.recipe, getattr(model.config, "auto_map", None)
    module = REMOTE.removesuffix(".py")
    try:
        model.config.recipe = recipe
        model.config.auto_map = {
            "AutoConfig": f"{module}.{type(model.config).__name__}",
            "AutoModelForCausalLM": f"{module}.{type(model).__name__}",
        }
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
    finally:
        model.config.recipe = before
        model.config.auto_map = mapped


def _embed(model: Any, recipe: LatentRecipe, folder: Path) -> LatentRecipe:
    """Put the weights beside the recipe: base in ``base/``, donors (as deep as loaded) in ``donors/i/``."""
    model.base.save_pretrained(folder / "base")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder / "base")
    donors = []
    for index, (donor, ref) in enumerate(zip(model.donors, recipe.donors, strict=True)):
        if hasattr(donor, "smelt_adapter"):
            donor.smelt_adapter.save_pretrained(folder / "donors" / str(index))
            donors.append(replace(ref, path="", adapter=f"donors/{index}", revision=None))
            continue
        if ref.quant:
            raise LatentError(
                "a quantised donor cannot be embedded",
                where=f"donor {index}",
                fix="load it without quant=, or save by reference",
            )
        donor.save_pretrained(folder / "donors" / str(index))
        donors.append(replace(ref, path=f"donors/{index}", revision=None))
    return replace(recipe, base=replace(recipe.base, path="base", revision=None), donors=tuple(donors))


def _relative(ref: ModelRef, folder: Path) -> ModelRef:
    """Paths inside the saved directory become relative; other local paths absolute; hub names stay."""

    def fix(path: str) -> str:
        if not path:
            return path
        if (folder / path).exists() and not Path(path).is_absolute():
            return path
        if not Path(path).exists():
            return path
        full = Path(path).resolve()
        return os.path.relpath(full, folder.resolve()) if full.is_relative_to(folder.resolve()) else str(full)

    return replace(ref, path=fix(ref.path), adapter=fix(ref.adapter) if ref.adapter else None)


def collect_tensors(model: Any, settings: Settings) -> tuple[dict[str, torch.Tensor], tuple[Any, ...]]:
    """Everything the recipe needs that is not a model: steering vectors, Gram matrices, projections."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.tensors.items()}
    for index, tower in enumerate(model._towers):
        for layer, projection in tower.projections.items():
            tensors[f"projection.{index}.{layer}.weight"] = projection.weight.cpu().contiguous()
            tensors[f"projection.{index}.{layer}.bias"] = projection.bias.cpu().contiguous()
    steer = []
    for number, item in enumerate(settings.steer):
        key = f"steer.{number}"
        assert item.delta is not None  # set_sites has read it
        tensors[key] = item.delta.detach().cpu().contiguous()
        steer.append(replace(item, file=TENSORS, key=key))
    return tensors, tuple(steer)


def read_projections(path: Path) -> dict[int, dict[int, Projection]]:
    """The projections in a tensor file: {donor: {layer: projection}}."""
    from safetensors.torch import load_file

    found: dict[int, dict[int, Projection]] = {}
    tensors = load_file(path) if path.is_file() else {}
    for name, weight in tensors.items():
        parts = name.split(".")
        if parts[0] == "projection" and parts[3] == "weight":
            bias = tensors[name.removesuffix("weight") + "bias"]
            found.setdefault(int(parts[1]), {})[int(parts[2])] = Projection(weight, bias)
    return found


def load_tensors(model: Any, path: Path) -> None:
    """Gram matrices back into the model."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise LatentError(f"the recipe names {path.name}, which is not there", where=str(path.parent))
    model.tensors.update({name: value for name, value in load_file(path).items() if name.startswith("gram.")})


def load_directory(cls: Any, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
    """What ``from_pretrained`` does: read the recipe, load the models it names."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(str(name), kwargs.get("revision"))
    options = {key: kwargs[key] for key in ("dtype", "attn_implementation", "device_map") if kwargs.get(key)}
    if kwargs.get("torch_dtype") and "dtype" not in options:
        options["dtype"] = kwargs["torch_dtype"]
    recipe = LatentRecipe.read(folder)
    projections = read_projections(folder / recipe.tensors) if recipe.tensors else None
    model = build_from_recipe(cls, recipe, folder=folder, projections=projections, **options)
    model.config._name_or_path = str(name)
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)
    return (
        (model, {"missing_keys": [], "unexpected_keys": []}) if kwargs.get("output_loading_info") else model
    )


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision))
    except Exception as error:
        raise LatentError(
            f"no latent merge at {name!r}: {error}", expected="a saved directory or hub name"
        ) from error


def save_ensemble(model: Any, folder: Path, *, embed_weights: bool = False, **kwargs: Any) -> None:
    """Write an ensemble's recipe directory."""
    folder.mkdir(parents=True, exist_ok=True)
    refs = [ModelRef.of(item) for item in model.config.recipe["models"]]
    for index, (item, ref) in enumerate(zip(model.models, refs, strict=True)):
        if embed_weights:
            item.save_pretrained(folder / "models" / str(index))
            refs[index] = replace(ref, path=f"models/{index}", revision=None)
        elif not ref.path:
            raise LatentError(
                "this model was never saved or loaded, so a recipe cannot name it",
                where=f"model {index}",
                fix="save_pretrained(dir, embed_weights=True)",
            )
    models = [_relative(ref, folder).to_dict() for ref in refs]
    _write_config(model, {"models": models, **model.mix.to_dict()}, folder)
    _write_beside(model, folder)


def load_ensemble(cls: Any, name: Any, **kwargs: Any) -> Any:
    """Read an ensemble's recipe directory."""
    import json

    folder = Path(name) if Path(name).is_dir() else _download(str(name), kwargs.get("revision"))
    recipe = json.loads((folder / "config.json").read_text())["recipe"]
    schedule = Schedule(**recipe["schedule"]) if recipe.get("schedule") else None
    options = {key: kwargs[key] for key in ("dtype", "attn_implementation", "device_map") if kwargs.get(key)}
    return cls.from_models(recipe["models"], recipe["op"], recipe["weights"], tau=recipe.get("tau", 0.1),
                           schedule=schedule, folder=folder, **options)  # fmt: skip
