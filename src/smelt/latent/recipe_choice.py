"""From what a person says (a saved merge, a recipe, or a base with donors and a ratio) to a latent recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from smelt.core.errors import LatentError
from smelt.latent.recipe import LatentRecipe, ModelRef, Settings, Site


def quick_recipe(
    base: str,
    donors: Sequence[str],
    *,
    layer: int | str = "0.75n",
    beta: float = 0.5,
    op: str = "slerp",
    scope: str = "all",
) -> LatentRecipe:
    """One site with the ratio shared out evenly among the donors.

    >>> quick_recipe("b", ["d", "e"], layer=3, beta=0.5).settings.sites[0].weights
    (0.25, 0.25)
    """
    if not donors:
        raise LatentError("no donor", fix="name at least one with --donor")
    count = 1 if op == "proxy" else len(donors)
    site = Site(as_layer(layer) or 0, op, (beta / count,) * count)
    if op == "regmean":
        site = with_ratio(site, beta, len(donors))
    return LatentRecipe(ModelRef(base), tuple(ModelRef(d) for d in donors), Settings((site,), scope))


def pick_recipe(
    model: str | None = None,
    base: str | None = None,
    donors: Sequence[str] = (),
    *,
    layer: int | str | None = None,
    beta: float | None = None,
    op: str | None = None,
    scope: str | None = None,
) -> tuple[LatentRecipe, Path | None]:
    """What the command line means: a saved merge or recipe with changes, or a base with donors."""
    if model is not None and (base or donors):
        raise LatentError("--model is given together with --base or --donor", fix="give one or the other")
    if model is None:
        if base is None:
            raise LatentError("no model", fix="give --model DIR_OR_RECIPE, or --base and --donor")
        given = {"layer": layer, "beta": beta, "op": op, "scope": scope}
        chosen = {name: value for name, value in given.items() if value is not None}
        return quick_recipe(base, donors, **chosen), None  # type: ignore[arg-type]
    recipe, folder = read_source(model)
    settings, count = recipe.settings, len(recipe.donors)
    sites = settings.sites
    if layer is not None or op is not None:
        sites = (moved(sites, as_layer(layer), op, count),)
    if beta is not None:
        sites = tuple(with_ratio(site, beta, count) for site in sites)
    changed = Settings(sites, scope or settings.scope, settings.steer)
    return replace(recipe, settings=changed), folder


def as_layer(text: int | str | None) -> int | str | None:
    """A layer as it was typed.

    >>> as_layer("20"), as_layer("0.75n"), as_layer("last")
    (20, '0.75n', 'last')
    """
    return int(text) if isinstance(text, str) and text.strip().isdigit() else text


def with_ratio(site: Site, beta: float, donors: int) -> Site:
    """A site with another ratio, shared evenly among the donors; for regmean the λ that has this ratio."""
    if site.op != "regmean":
        count = 1 if site.op == "proxy" else donors
        return replace(site, weights=(beta / count,) * count)
    if site.reading == "penalty":
        return replace(site, lam=1 - beta * (donors + 1) / donors)
    if site.reading == "gram" or not 0 < beta <= 1:
        raise LatentError(
            f"regmean ({site.reading}) has no ratio {beta}",
            expected="shrink or penalty, a ratio above 0 up to 1",
        )
    return replace(site, lam=1 / beta - 1)


def moved(sites: Sequence[Site], layer: int | str | None, op: str | None, donors: int) -> Site:
    """The one site of a setting, elsewhere or with another operator."""
    if len(sites) > 1:
        where = ", ".join(str(site.layer) for site in sites)
        raise LatentError(
            f"there are {len(sites)} sites, at layers {where}",
            expected="one site to move",
            fix='say all sites: {"latent": {"sites": [...]}}',
        )
    if not sites and layer is None:
        raise LatentError("there is no site yet", fix="say the layer too")
    old = sites[0] if sites else Site(layer if layer is not None else 0, weights=(0.5 / donors,) * donors)
    changed = replace(old, layer=old.layer if layer is None else layer, op=op or old.op)
    if changed.op == "proxy" and old.op != "proxy":
        return replace(changed, weights=old.weights[:1])
    if old.op == "proxy" and changed.op != "proxy":
        return replace(changed, weights=(old.weights[0] / donors,) * donors)
    return changed


def read_source(source: str | Path) -> tuple[LatentRecipe, Path]:
    """The recipe of a saved directory, a recipe file or a hub name, and the folder its paths start from."""
    path = Path(source)
    if not path.exists():
        from smelt.latent.saving import _download

        path = _download(str(source), None)
    config = path / "config.json" if path.is_dir() else path
    if config.suffix == ".json" and config.is_file():
        _refuse_other_kinds(config)
    return LatentRecipe.read(path), path if path.is_dir() else path.parent


def _refuse_other_kinds(config: Path) -> None:
    try:
        data = json.loads(config.read_text())
    except ValueError:
        return
    kind = data.get("model_type", "latent_merged") if isinstance(data, dict) else ""
    if kind != "latent_merged" and "base" not in data:
        raise LatentError(
            f"a model of type {kind!r}",
            where=str(config),
            expected="a directory saved by smelt (type 'latent_merged') or a latent recipe",
            fix="give two plain models with --base and --donor",
        )


def absolute(recipe: LatentRecipe, folder: Path | None) -> LatentRecipe:
    """The recipe with local paths that hold from anywhere, so that it can be saved elsewhere."""

    def fix(path: str) -> str:
        near = folder / path if folder is not None and not Path(path).is_absolute() else Path(path)
        found = near if near.exists() else Path(path)
        return str(found.resolve()) if found.exists() else path

    def move(ref: ModelRef) -> ModelRef:
        return replace(ref, path=fix(ref.path), adapter=fix(ref.adapter) if ref.adapter else None)

    return replace(recipe, base=move(recipe.base), donors=tuple(move(ref) for ref in recipe.donors))
