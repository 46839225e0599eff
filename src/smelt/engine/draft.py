"""From a recipe to jobs: opens models, resolves every parameter of every tensor, finds every problem at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smelt.arch import read_structure
from smelt.core.errors import Problem, SmeltError
from smelt.core.method import REQUIRED, MethodSpec, Registry
from smelt.core.types import DTYPE_NAMES, FLOATS, TensorSpec
from smelt.engine.configure import build_config
from smelt.engine.filters import idle_filters
from smelt.engine.jobs import Draft, Job, Part, as_metas
from smelt.engine.members import Member, Members
from smelt.engine.outline import Outliner, Row, Seat
from smelt.engine.run import start_measuring
from smelt.numerics.expr import Sym
from smelt.numerics.stats import TensorInfo
from smelt.recipe import Recipe, resolve

#: problems of one kind that are listed in full
SHOWN = 6
#: last but one component of the names heads go by
_HEADS = (["lm_head"], ["embed_out"], ["output"], ["head"])


@dataclass
class Drafter:
    """Plans one recipe and, through itself, the recipes nested in it."""

    members: Members
    methods: Registry
    missing: str = "error"
    seed: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    depth: int = 0

    def draft(self, recipe: Recipe, path: str = "") -> tuple[Draft, Member | None]:
        """The jobs of a recipe, and the recipe's result seen as a model."""
        spec = self.methods.find(recipe.merge_method)
        opened = {
            id(node): self._member(node, f"{path}{number}/") for number, node in enumerate(_nodes(recipe))
        }
        if any(member is None for member in opened.values()):
            return Draft(), None
        uses_base = recipe.base_model is not None and spec.base != "ignored"
        outliner = Outliner(recipe, lambda node: opened[id(node)], recipe.base_model, uses_base)  # type: ignore[arg-type,return-value]
        strangers = _strangers(recipe, opened)
        if strangers:
            self.problems.append(strangers)
            return Draft(), None
        outline = outliner.run()
        self.problems += outline.problems
        if outline.problems:
            return Draft(), None
        maker = JobMaker(self, recipe, spec, path)
        jobs = {row.name: job for row in outline.rows if (job := maker.make(row)) is not None}
        self.problems += maker.problems()
        nested = f"in the nested {recipe.merge_method} recipe, " if path else ""
        self.notes += [f"{nested}{idle}" for idle in idle_filters(recipe, _names_seen(outline.rows))]
        if maker.partial:
            shown = ", ".join(maker.partial[:3]) + (", ..." if len(maker.partial) > 3 else "")
            self.notes.append(
                f"{len(maker.partial)} tensors are merged over the models that have them ({shown})"
            )
        donor = _donor(recipe, opened)
        config = build_config(recipe, donor, jobs, outline.sources, self.problems, self.notes)
        return Draft(jobs, config), _as_member(f"nested {recipe.merge_method}", jobs, config, donor)

    def _member(self, node: Any, path: str) -> Member | None:
        if isinstance(node, Recipe):
            inner = Drafter(
                self.members, self.methods, self.missing, self.seed, self.problems, self.notes, self.depth + 1
            )
            return inner.draft(node, path)[1]
        return self.members.open(node)


def _names_seen(rows: Sequence[Row]) -> set[str]:
    """Every name that a filter is held against: outputs, and what they are called in each model."""
    return {name for row in rows for name in (row.name, *(inner for _, inner in row.seats))}


def _nodes(recipe: Recipe) -> list[Any]:
    """Every object in the recipe that stands for a model (equal ones may appear more than once)."""
    nodes: list[Any] = [recipe.base_model] if recipe.base_model is not None else []
    groups: list[Any] = [recipe, *(recipe.modules or {}).values()]
    for group in groups:
        nodes += [entry.model for entry in group.models or ()]
        for slice_ in group.slices or ():
            nodes += [slice_.base_model] if slice_.base_model is not None else []
            nodes += [source.model for source in slice_.sources]
    return nodes


def _strangers(recipe: Recipe, opened: dict[int, Any]) -> Problem | None:
    """Two models that share hardly a name are not one architecture, or spell it differently."""
    members = [opened[id(node)] for node in _nodes(recipe)]
    first = members[0]
    for other in members[1:] if recipe.slices is None and recipe.modules is None else ():
        shared = len(first.parts.keys() & other.parts.keys())
        if 2 * shared < min(len(first.parts), len(other.parts)):
            return Problem(
                f"only {shared} of {len(first.parts)} tensor names of {first.label} are in {other.label}", "models",
                "models of one architecture, saved alike", _prefix_advice(first, other),
            )  # fmt: skip
    return None


def _prefix_advice(first: Member, other: Member) -> str:
    """Whether a prefix explains the difference."""
    for one, two in ((first, other), (other, first)):
        for prefix in {name.split(".")[0] + "." for name in one.parts}:
            bare = {name.removeprefix(prefix) for name in one.parts}
            if 2 * len(bare & two.parts.keys()) >= min(len(bare), len(two.parts)):
                return f"{one.label} writes {prefix!r} before the names of {two.label}: save both with the same class"
    return "check that both are full checkpoints of the same kind of model"


def _donor(recipe: Recipe, opened: dict[int, Member | None]) -> Member:
    """Whose config and side files the output gets: the base, else the first model."""
    member = opened[id(_nodes(recipe)[0])]
    assert member is not None
    return member


def _as_member(label: str, jobs: dict[str, Job], config: dict[str, Any], donor: Member) -> Member:
    return Member(label, jobs, config, read_structure(as_metas(jobs), config), donor.folder, None)


class JobMaker:
    """Makes the job of each row; collects problems by kind so that a wrong pair of models gives a short report."""

    def __init__(self, drafter: Drafter, recipe: Recipe, spec: MethodSpec, path: str) -> None:
        self.drafter, self.recipe, self.spec, self.path = drafter, recipe, spec, path
        self._found: dict[str, list[Problem]] = {}
        self._checked: set[Any] = set()
        self.partial: list[str] = []

    def problems(self) -> list[Problem]:
        """What was found, long lists cut."""
        shown: list[Problem] = []
        for kind, items in self._found.items():
            shown += items[:SHOWN]
            if len(items) > SHOWN:
                shown.append(Problem(f"and {len(items) - SHOWN} more tensors {kind}"))
        return shown

    def _problem(self, kind: str, problem: Problem) -> None:
        self._found.setdefault(kind, []).append(problem)

    def make(self, row: Row) -> Job | None:
        """The job of one output tensor, or None after its problems were noted."""
        seats = [(seat, inner, _find(seat, inner)) for seat, inner in row.seats]
        if _is_spare_head(row):
            self.drafter.notes.append(
                f"{row.name} is tied to the embedding in every model: only some store it, the output does not"
            )
            return None
        if not self._all_present(row, seats):
            return None
        present = [(seat, inner, part) for seat, inner, part in seats if part is not None]
        if not self._same_kind(row, present):
            return None
        head = next((item for item in present if item[0].is_base), present[0])
        if head[2].spec.dtype not in FLOATS:
            return self._copy(
                row, head, f"{head[2].spec.dtype} numbers are not merged: copied from {head[0].member.label}"
            )
        return self._merge(row, present)

    def _all_present(self, row: Row, seats: Sequence[tuple[Seat, str, Part | None]]) -> bool:
        lacking = [seat.member.label for seat, _, part in seats if part is None]
        if lacking and self.drafter.missing == "merge":
            self.partial.append(row.name)
        if not lacking or self.drafter.missing == "merge":
            return len(lacking) < len(seats)
        has = [seat.member.label for seat, _, part in seats if part is not None]
        self._problem(
            "missing",
            Problem(f"is in {', '.join(has)} but not in {', '.join(lacking)}", f"tensor {row.name!r}",
                    "the same tensors in every model",
                    "pass --missing merge to merge each tensor over the models that have it"),
        )  # fmt: skip
        return False

    def _same_kind(self, row: Row, present: Sequence[tuple[Seat, str, Part]]) -> bool:
        first = present[0][2]
        for _, _, part in present[1:]:
            if part.spec.shape != first.spec.shape:
                self._problem(
                    "with different shapes",
                    Problem(
                        f"has shape {list(first.spec.shape)} in {first.where} but {list(part.spec.shape)} in {part.where}",
                        f"tensor {row.name!r}", "equal shapes", _shape_advice(row.name, first, part)),
                )  # fmt: skip
                return False
            if (part.spec.dtype in FLOATS) != (first.spec.dtype in FLOATS):
                self._problem(
                    "of different kinds",
                    Problem(f"holds {first.spec.dtype} in {first.where} but {part.spec.dtype} in {part.where}",
                            f"tensor {row.name!r}", "floating point numbers everywhere, or nowhere"),
                )  # fmt: skip
                return False
        return True

    def _copy(self, row: Row, item: tuple[Seat, str, Part], note: str) -> Job:
        seat, _, part = item
        dtype = self._dtype(part) if part.spec.dtype in FLOATS else part.spec.dtype
        spec = TensorSpec(row.name, dtype, part.spec.shape)
        if dtype != part.spec.dtype or (isinstance(part, Job) and part.kind == "merge"):
            scale = {"scale": [1.0]}  # bytes cannot be copied: the numbers pass through
            return Job(
                spec, "passthrough", None, (part,), (seat.member.label,), scale, {}, "merge", row.layer, row.t, note=note,
                fixed_dtype=(self.recipe.out_dtype or self.recipe.dtype) is not None,
            )  # fmt: skip
        return Job(
            spec, "copy", None, (part,), (seat.member.label,), {}, {}, "copy", row.layer, row.t, note=note
        )

    def _merge(self, row: Row, present: Sequence[tuple[Seat, str, Part]]) -> Job | None:
        spec = self.spec
        base, models = self._split(present)
        if (base is None and spec.base in ("required", "member")) or (not models and spec.base != "member"):
            if base is None and len(models) > 1:
                self._problem(
                    "missing from the base",
                    Problem(f"is not in the base, but in {', '.join(seat.member.label for seat, _, _ in models)}",
                            f"tensor {row.name!r}", f"a base tensor: {spec.name} merges differences to it"),
                )  # fmt: skip
                return None
            return self._copy(row, present[0], f"only in {present[0][0].member.label}: copied")
        params, levels = self._params(row, base, models)
        if params is None:
            return None
        kept = [position for position, item in enumerate(models) if not levels["dropped"][position]]
        models = [models[position] for position in kept]
        params = {
            name: [value[position] for position in kept] if isinstance(value, list) else value
            for name, value in params.items()
        }
        if not self._counts(row, len(models), base) or not self._traces(row, base, models, params):
            return None
        labels = ([base[0].member.label] if base else []) + [seat.member.label for seat, _, _ in models]
        head = base or models[0]
        dtype = self._dtype(head[2])
        return Job(
            TensorSpec(row.name, dtype, head[2].spec.shape), spec.name, base[2] if base else None,
            tuple(part for _, _, part in models), tuple(labels), params, levels, "merge", row.layer, row.t,
            self.recipe.seed if self.recipe.seed is not None else self.drafter.seed, f"{self.path}{_stream(row)}",
            fixed_dtype=(self.recipe.out_dtype or self.recipe.dtype) is not None,
        )  # fmt: skip

    def _split(
        self, present: Sequence[tuple[Seat, str, Part]]
    ) -> tuple[tuple[Seat, str, Part] | None, list[Any]]:
        if self.spec.base == "ignored":
            return None, list(present)
        base = next((item for item in present if item[0].is_base), None)
        return base, [item for item in present if not item[0].is_base]

    def _params(
        self, row: Row, base: Any, models: Sequence[tuple[Seat, str, Part]]
    ) -> tuple[Any, dict[str, Any]]:
        """Every parameter for this tensor, per-model ones as lists, and the level that set it."""
        values: dict[str, Any] = {}
        levels: dict[str, Any] = {"dropped": [False] * len(models)}
        for param in self.spec.params:
            key = f"{param.name}_" if param.name in ("lambda",) else param.name
            around = {
                "slice_": row.slice_,
                "module": row.module,
                "top": self.recipe.parameters,
                "output_name": row.name,
                "t": row.t,
            }
            if not param.per_model:
                found = resolve(param, **around)
                if found.value is REQUIRED:
                    self._missing_param(param.name, row, "")
                    return None, levels
                values[key], levels[param.name] = found.value, found.level
                continue
            each = [
                resolve(param, entry=seat.parameters, input_name=inner, is_base=seat.is_base, **around)
                for seat, inner, _ in models
            ]
            for position, found in enumerate(each):
                if found.value is REQUIRED:
                    self._missing_param(param.name, row, models[position][0].member.label)
                    return None, levels
                levels["dropped"][position] |= found.value is None
            values[key], levels[param.name] = [found.value for found in each], [found.level for found in each]
        return values, levels

    def _missing_param(self, name: str, row: Row, model: str) -> None:
        of = f" for {model}" if model else ""
        self._problem(
            f"without {name}",
            Problem(f"parameter {name!r} is not set{of}", f"tensor {row.name!r}", "a value at some level",
                    f"set {name} under parameters, or add an entry without a filter"),
        )  # fmt: skip

    def _counts(self, row: Row, count: int, base: Any) -> bool:
        spec = self.spec
        total = count + (1 if base is not None and spec.base == "member" else 0)
        least = 1 if self.drafter.missing == "merge" else spec.min_models
        if total < least or (spec.max_models is not None and total > spec.max_models):
            self._problem(
                "with a wrong number of models",
                Problem(f"{spec.name} got {total} models", f"tensor {row.name!r}",
                        f"{spec.min_models} to {spec.max_models or 'any number'}"),
            )  # fmt: skip
            return False
        return True

    def _traces(self, row: Row, base: Any, models: Sequence[Any], params: dict[str, Any]) -> bool:
        """Trace the formula, or the first request for statistics, once per set of parameters, to meet the method's
        own refusals now."""
        key = (len(models), repr(params))
        if key in self._checked:
            return True
        self._checked.add(key)
        symbols = [Sym.input(position) for position in range(len(models) + 1)]
        try:
            with np.errstate(all="ignore"):
                inputs = symbols[0] if base else None, symbols[1:]
                info = TensorInfo(row.name, (base or models[0])[2].spec.shape)
                measuring = start_measuring(self.spec, *inputs, info, params)
                if measuring is not None:
                    next(measuring, None)
                else:
                    self.spec.combine(*inputs, None, **params)
        except SmeltError as error:
            for problem in error.problems:
                self._problem(
                    "refused by the method",
                    Problem(problem.what, f"tensor {row.name!r}", problem.expected, problem.fix),
                )
            return False
        return True

    def _dtype(self, part: Part) -> str:
        chosen = self.recipe.out_dtype or self.recipe.dtype
        if chosen is None:
            return part.spec.dtype
        return DTYPE_NAMES.get(chosen, chosen)


def _ties(member: Member) -> bool:
    """Whether the config says that head and embedding are one."""
    text = member.config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    return member.config.get("tie_word_embeddings", inner) is True


def _is_tied_head(row: Row) -> bool:
    """Whether the row is a head that every model's config ties to its embedding."""
    return row.name.split(".")[-2:-1] in _HEADS and all(_ties(seat.member) for seat, _ in row.seats)


def _is_spare_head(row: Row) -> bool:
    """Whether the row is such a head, and not every model stores it."""
    return _is_tied_head(row) and any(inner not in seat.member.parts for seat, inner in row.seats)


def _stream(row: Row) -> str:
    """What names the row's random stream: a stored copy of the embedding shares the embedding's."""
    if not _is_tied_head(row):
        return row.name
    embeddings = row.seats[0][0].member.structure.with_role("embedding")
    return embeddings[0] if embeddings else row.name


def _find(seat: Seat, name: str) -> Part | None:
    """The tensor in the seat's model; a tied model's embedding stands in for its head."""
    found = seat.member.parts.get(name)
    if found is not None or not seat.member.structure.tied:
        return found
    if name.split(".")[-2:-1] not in _HEADS:
        return None
    embeddings = seat.member.structure.with_role("embedding")
    return seat.member.parts[embeddings[0]] if embeddings else None


def _shape_advice(name: str, first: Part, second: Part) -> str:
    if first.spec.shape[1:] == second.spec.shape[1:] and len(first.spec.shape) == 2:
        return "their vocabularies may differ; nothing is cut silently"
    return "models of different size cannot be merged weight by weight"
