"""From models, paths or recipes to a wrapper: loads what is not loaded yet, checks, wraps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from smelt.core.errors import LatentError
from smelt.latent.config import LatentMergedConfig, config_for
from smelt.latent.loading import load_base, load_donor, load_tokenizer, reference_depth
from smelt.latent.plan import resolve_layer
from smelt.latent.recipe import LatentRecipe, ModelRef, Settings
from smelt.latent.sharing import alias
from smelt.latent.tokens import check_tokenizers, check_vocab_rows


def build(
    cls: Any,
    base: Any,
    donors: Any,
    settings: Settings,
    engine: str = "auto",
    *,
    depth: int | str | None = None,
    dtype: Any = None,
    device: Any = None,
    donor_quant: str | None = None,
    share: bool = True,
    tokenizer: Any = None,
    donor_tokenizers: Sequence[Any] | None = None,
    projections: Any = None,
    calibration: Any = None,
    folder: Path | None = None,
    **load: Any,
) -> Any:
    """Wrap ``base`` and ``donors`` (loaded models, paths, ``ModelRef`` or recipe dicts).

    ``depth``: donor layers to load (a number or "all"), when later sites may go deeper than the first ones.
    ``share``: let donors loaded here use the base's tensors where they are bit-equal. ``calibration``:
    token batches to fit a projection for donors of another width. The tokenizers, given or found beside the
    weights, are compared.
    """
    items = list(donors) if isinstance(donors, list | tuple | nn.ModuleList) else [donors]
    refs = [
        None if isinstance(item, nn.Module) else ModelRef.of(item, f"donors[{i}]")
        for i, item in enumerate(items)
    ]
    base_ref = None if isinstance(base, nn.Module) else ModelRef.of(base, "base")
    if base_ref is not None:
        base = load_base(base_ref, dtype=dtype, device=device, folder=folder, **load)
    tokenizer = tokenizer or load_tokenizer(base_ref or _self_ref(base), folder)
    models, depths = [], []
    for index, (item, ref) in enumerate(zip(items, refs, strict=True)):
        given = donor_tokenizers[index] if donor_tokenizers else None
        options = {"depth": depth, "quant": donor_quant, **load}
        model, full = _donor(item, ref, base, settings, folder, index, (tokenizer, given), options)
        models.append(model)
        depths.append(full)
    if calibration is not None and not projections:
        from smelt.latent.calibrate import fit_projections

        projections = fit_projections(base, models, settings, calibration, depths)
    recipe = LatentRecipe(
        base_ref or _self_ref(base),
        tuple(ref or _self_ref(item) for ref, item in zip(refs, items, strict=True)),
        settings,
        engine,
    )
    config = config_for(LatentMergedConfig, cls, base, recipe.to_dict())
    model = cls(config, base, models, engine, depths, projections)
    if share:
        _share(model, refs)
    model.tokenizer = tokenizer
    model.set_sites(
        settings.sites, scope=settings.scope, steer=tuple(s.loaded(folder) for s in settings.steer)
    )
    return model


def _donor(
    item: Any,
    ref: ModelRef | None,
    base: Any,
    settings: Settings,
    folder: Path | None,
    index: int,
    tokenizers: tuple[Any, Any],
    options: dict[str, Any],
) -> tuple[Any, int | None]:
    """One donor, loaded as deep as it is needed and with its vocabulary checked, and its full depth."""
    mine, given = tokenizers
    source = _self_ref(item) if ref is None else ModelRef(ref.adapter) if ref.adapter else ref
    check_tokenizers(mine, given or load_tokenizer(source, folder), index)
    full, model, depth = None, item, options.pop("depth")
    if ref is not None:
        full = _base_depth(base) if ref.adapter else reference_depth(ref, folder)
        wanted = _donor_depth(settings, base, full, depth)
        model = load_donor(ref, base, depth=wanted, folder=folder, **options)
    check_vocab_rows(base, model, mine, index)
    return model, full


def build_from_recipe(cls: Any, source: Any, **options: Any) -> Any:
    """Load everything a recipe names; relative paths are read from the recipe's own directory."""
    recipe = source if isinstance(source, LatentRecipe) else LatentRecipe.read(source)
    folder = options.pop("folder", None)
    if folder is None and isinstance(source, str | Path):
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
    model = build(
        cls, recipe.base, list(recipe.donors), recipe.settings, recipe.engine, folder=folder, **options
    )
    if recipe.tensors:
        from smelt.latent.saving import load_tensors

        load_tensors(model, Path(folder or ".") / recipe.tensors)
    return model


def _share(model: Any, refs: Sequence[ModelRef | None]) -> None:
    """Alias bit-equal prefix tensors of donors that this build loaded itself."""
    for ref, tower in zip(refs, model._towers, strict=True):
        if ref is not None and tower.shared >= 0:
            alias(model.tower(-1), tower.decoder)


def _donor_depth(settings: Settings, base: Any, full: int | None, depth: int | str | None) -> int | None:
    """Donor layers that the sites need; all of them when nothing says so."""
    if depth is not None:
        return None if depth == "all" else int(depth)
    count = _base_depth(base)
    if not settings.sites or full is None or full != count or any(s.donor_layers for s in settings.sites):
        return None
    return max(1, *(resolve_layer(site.layer, count) for site in settings.sites))


def _base_depth(base: Any) -> int:
    return int(base.config.get_text_config(decoder=True).num_hidden_layers)


def _self_ref(model: Any) -> ModelRef:
    """Where a loaded model says it came from."""
    name = (
        getattr(model, "name_or_path", "")
        or getattr(getattr(model, "config", None), "_name_or_path", "")
        or ""
    )
    if name.startswith("/") or not name:
        return ModelRef(name)
    return ModelRef(str(Path(name).resolve()) if Path(name).exists() else name)


def check_paths(recipe: LatentRecipe) -> None:
    """A recipe on disk must name every model."""
    for role, ref in [("base", recipe.base), *((f"donor {i}", ref) for i, ref in enumerate(recipe.donors))]:
        if not ref.path and not ref.adapter:
            raise LatentError(
                "this model was never saved or loaded, so a recipe cannot name it",
                where=role,
                fix="save_pretrained(dir, embed_weights=True) stores the weights too",
            )


__all__ = ["build", "build_from_recipe", "check_paths"]
