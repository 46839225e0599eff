"""The output's config.json: the donor's, made to agree with the tensors that are written."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from smelt.arch import read_structure
from smelt.core.errors import Problem
from smelt.core.types import DTYPE_NAMES
from smelt.engine.jobs import Job, as_metas
from smelt.engine.members import Member
from smelt.recipe import Recipe

_LONG_NAMES = {short: long for long, short in DTYPE_NAMES.items()}


def build_config(
    recipe: Recipe, donor: Member, jobs: Mapping[str, Job], sources: Sequence[tuple[Member, int]] | None,
    problems: list[Problem], notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    """A copy of the donor's config with dtype, depth, per-layer lists and ties corrected."""
    config = copy.deepcopy(dict(donor.config))
    if not config:
        notes.append(
            f"{donor.label} has no config.json: the output has none, and depth and ties are not checked"
        )
        return config
    _set_dtype(config, jobs, donor)
    if sources is not None and donor.structure.main is not None:
        _set_depth(config, donor, sources, problems)
    _set_ties(config, donor, jobs, notes)
    return config


def _set_dtype(config: dict[str, Any], jobs: Mapping[str, Job], donor: Member) -> None:
    """The dtype most bytes are written in, under the key the donor uses."""
    sizes: dict[str, int] = {}
    for job in jobs.values():
        sizes[job.spec.dtype] = sizes.get(job.spec.dtype, 0) + job.spec.nbytes
    if not sizes:
        return
    name = _LONG_NAMES.get(max(sizes, key=lambda dtype: sizes[dtype]))
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    for key in keys:
        if name is not None:
            config[key] = name
    for value in config.values():  # nested text and vision configs carry their own
        if isinstance(value, dict):
            for key in ("dtype", "torch_dtype"):
                if isinstance(value.get(key), str) and name is not None:
                    value[key] = name


def _set_depth(
    config: dict[str, Any], donor: Member, sources: Sequence[tuple[Member, int]], problems: list[Problem]
) -> None:
    structure = donor.structure
    for key in structure.config_depth_keys:
        _assign(config, key, len(sources))
    if not structure.config_depth_keys:
        problems.append(
            Problem("config.json has no key that holds the number of layers", donor.label, "num_hidden_layers or the like",
                    "slices need a config whose depth can be rewritten")
        )  # fmt: skip
    for key in structure.per_layer_lists:
        lists = [(member, _look_up(member.config, key)) for member, _ in sources]
        if any(not isinstance(values, list) for _, values in lists):
            problems.append(Problem(f"config key {key} is missing in one of the sliced models", donor.label))
            continue
        _assign(config, key, [values[index] for (_, values), (_, index) in zip(lists, sources, strict=True)])


def _set_ties(config: dict[str, Any], donor: Member, jobs: Mapping[str, Job], notes: list[str]) -> None:
    """A head that is written must be read: untie the config when the donor was tied and the output is not."""
    if (
        donor.structure.tied
        and not read_structure(as_metas(jobs), config).tied
        and config.get("tie_word_embeddings") is not False
    ):
        config["tie_word_embeddings"] = False
        notes.append(f"{donor.label} ties its head to the embedding; the output has a head of its own")


def _look_up(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _assign(config: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place[key]
    place[last] = value
