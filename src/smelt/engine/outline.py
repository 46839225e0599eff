"""Which input tensors meet in which output tensor: models, slices and modules brought to one form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smelt.core.errors import Problem
from smelt.engine.members import Member
from smelt.recipe import Recipe


@dataclass(frozen=True)
class Seat:
    """One model at one place of a merge: an entry of ``models`` or a source of a slice (None: the appended base)."""

    member: Member
    node: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, int] | None = None
    is_base: bool = False


@dataclass(frozen=True)
class Row:
    """One output tensor: its name, the name it has in each seat's model, and its place in its run of layers."""

    name: str
    seats: tuple[tuple[Seat, str], ...]
    slice_: Any = None
    module: Any = None
    t: float = 0.0
    layer: str = ""


@dataclass
class Outline:
    """All rows, and for every main-stack output layer the seat-0 model's layer it comes from (slices only)."""

    rows: list[Row] = field(default_factory=list)
    sources: list[tuple[Member, int]] | None = None
    problems: list[Problem] = field(default_factory=list)


class Outliner:
    """Turns a recipe and its opened models into rows."""

    def __init__(self, recipe: Recipe, member: Callable[[Any], Member], base: Any, uses_base: bool) -> None:
        self.recipe, self.member, self.base, self.uses_base = recipe, member, base, uses_base
        self.outline = Outline()
        self._layers: dict[int, dict[int, dict[str, str]]] = {}

    def run(self) -> Outline:
        """All rows of the recipe."""
        if self.recipe.models is not None:
            self._models(self.recipe.models, None, None)
        elif self.recipe.slices is not None:
            self._slices(self.recipe.slices, None, None)
        else:
            self._modules()
        return self.outline

    def _seats(self, entries: Sequence[Any], base: Any) -> list[Seat]:
        first = next((place for place, entry in enumerate(entries) if entry.model == base), -1)
        seats = [
            Seat(
                self.member(entry.model),
                entry.model,
                entry.parameters,
                getattr(entry, "layer_range", None),
                place == first,  # the base listed again (other layers of it, say) is a model like any other
            )
            for place, entry in enumerate(entries)
        ]
        if base is not None and self.uses_base and not any(seat.is_base for seat in seats):
            seats.append(Seat(self.member(base), base, {}, seats[0].layers, True))
        return seats

    def _models(self, entries: Sequence[Any], module: Any, chosen: set[str] | None) -> None:
        seats = self._seats(entries, self.base)
        if self._different_depth(seats):
            return
        first = next((seat for seat in seats if seat.is_base), seats[0])
        for name in self._union(seats, first):
            if chosen is None or name in chosen:
                self.outline.rows.append(
                    self._row(name, [(seat, name) for seat in seats], first, None, module)
                )

    def _union(self, seats: Sequence[Seat], first: Seat) -> Iterator[str]:
        names = dict.fromkeys(first.member.parts)
        for seat in seats:
            names.update(dict.fromkeys(seat.member.parts))
        return iter(names)

    def _different_depth(self, seats: Sequence[Seat]) -> bool:
        depths = {
            seat.member.label: seat.member.structure.main.count
            for seat in seats
            if seat.member.structure.main is not None
        }
        if len(set(depths.values())) <= 1:
            return False
        found = ", ".join(f"{label} has {count}" for label, count in depths.items())
        self.outline.problems.append(
            Problem(f"the models have different depth: {found} layers", "models", "equal depth",
                    "choose layers with slices: and layer_range")
        )  # fmt: skip
        return True

    def _row(self, name: str, seats: list[tuple[Seat, str]], first: Seat, slice_: Any, module: Any) -> Row:
        """A row whose gradient position follows from the layer it stands in."""
        owner = next(
            (seat.member for seat, inner in [(first, name), *seats] if inner in seat.member.parts),
            first.member,
        )
        found = owner.structure.layer_of(name)
        if found is None:
            return Row(name, tuple(seats), slice_, module, 0.0, "outside layers")
        stack, index = found
        t = index / (stack.count - 1) if stack.count > 1 else 1.0
        return Row(name, tuple(seats), slice_, module, t, f"{stack.prefix}{index}")

    def _slices(self, slices: Sequence[Any], module: Any, chosen: set[str] | None) -> None:
        out_layer = 0
        self.outline.sources = []
        for number, slice_ in enumerate(slices):
            base = slice_.base_model if slice_.base_model is not None else self.base
            seats = self._seats(slice_.sources, base)
            if self._out_of_range(seats, f"slices[{number}]"):
                return
            if number == 0:
                self._outside(seats, slice_, module, "pre", chosen)
            for step in range(slice_.length):
                self._layer(seats, slice_, module, step, out_layer, chosen)
                out_layer += 1
            if number == len(slices) - 1:
                self._outside(seats, slice_, module, "post", chosen)

    def _out_of_range(self, seats: Sequence[Seat], where: str) -> bool:
        before = len(self.outline.problems)
        for position, seat in enumerate(seats):
            main = seat.member.structure.main
            count = main.count if main is not None else 0
            assert seat.layers is not None
            if seat.layers[1] > count:
                self.outline.problems.append(
                    Problem(f"layer_range {list(seat.layers)} goes past the end of {seat.member.label}",
                            f"{where}.sources[{position}].layer_range", f"at most {count} (it has {count} layers)")
                )  # fmt: skip
        return len(self.outline.problems) > before

    def _layer(
        self,
        seats: Sequence[Seat],
        slice_: Any,
        module: Any,
        step: int,
        out_layer: int,
        chosen: set[str] | None,
    ) -> None:
        """All tensors of one output layer."""
        per_seat = [self._layer_names(seat, step) for seat in seats]
        main = seats[0].member.structure.main
        assert main is not None and self.outline.sources is not None and seats[0].layers is not None
        self.outline.sources.append((seats[0].member, seats[0].layers[0] + step))
        t = step / (slice_.length - 1) if slice_.length > 1 else 1.0
        for suffix in dict.fromkeys(suffix for names in per_seat for suffix in names):
            name = f"{main.prefix}{out_layer}{suffix}"
            if chosen is not None and not any(names.get(suffix) in chosen for names in per_seat):
                continue
            inner = [
                (seat, names.get(suffix, f"{main.prefix}{(seat.layers or (0, 0))[0] + step}{suffix}"))
                for seat, names in zip(seats, per_seat, strict=True)
            ]
            self.outline.rows.append(Row(name, tuple(inner), slice_, module, t, f"{main.prefix}{out_layer}"))

    def _outside(
        self, seats: Sequence[Seat], slice_: Any, module: Any, side: str, chosen: set[str] | None
    ) -> None:
        """Tensors before or after the layers; other stacks (a vision tower, say) count as before."""
        first = next((seat for seat in seats if seat.is_base), seats[0])
        for name in self._union(seats, first):
            owner = next(seat.member for seat in seats if name in seat.member.parts)
            found = owner.structure.layer_of(name)
            if found is not None and found[0] == owner.structure.main:
                continue
            here = owner.structure.side_of(name) or "pre"
            if here == side and (chosen is None or name in chosen):
                row = self._row(name, [(seat, name) for seat in seats], first, slice_, module)
                self.outline.rows.append(row)

    def _modules(self) -> None:
        assert self.recipe.modules is not None
        taken: dict[str, set[str]] = {}
        nodes = [
            entry.model for module in self.recipe.modules.values() for entry in module_entries(module)
        ] + ([self.base] if self.base is not None and self.uses_base else [])
        names = {name for node in nodes for name in self.member(node).parts}
        for title in self.recipe.modules:
            taken[title] = (
                {name for name in names if title in name.split(".")} if title != "default" else set()
            )
        if "default" in taken:
            taken["default"] = names - set().union(*taken.values())
        for title, module in self.recipe.modules.items():
            if not taken[title]:
                tops = sorted({part for name in names for part in name.split(".")[:2] if not part.isdigit()})
                self.outline.problems.append(
                    Problem("no tensor belongs to this module", f"modules.{title}",
                            "a component of tensor names, or default for all others", f"components: {', '.join(tops[:12])}")
                )  # fmt: skip
            elif module.models is not None:
                self._models(module.models, module, taken[title])
            else:
                self._slices(module.slices or (), module, taken[title])
        left = sorted(names - set().union(*taken.values()))
        if left and not self.outline.problems:
            self.outline.problems.append(
                Problem(f"{len(left)} tensors belong to no module ({', '.join(left[:3])}, ...)", "modules",
                        "every tensor in a module", "add a module named default for the rest")
            )  # fmt: skip

    def _layer_names(self, seat: Seat, step: int) -> dict[str, str]:
        """Suffix -> full name for one layer of a seat's main stack."""
        layers = self._layers.get(id(seat.member))
        if layers is None:
            layers = self._layers[id(seat.member)] = _names_by_layer(seat.member)
        assert seat.layers is not None
        return layers.get(seat.layers[0] + step, {})


def module_entries(module: Any) -> list[Any]:
    """Everything in a module that names a model."""
    return list(module.models or [source for slice_ in module.slices or () for source in slice_.sources])


def _names_by_layer(member: Member) -> dict[int, dict[str, str]]:
    """For every layer of the main stack: what follows the layer number -> the full name."""
    main = member.structure.main
    found: dict[int, dict[str, str]] = {}
    for name in member.parts:
        place = member.structure.layer_of(name)
        if place is not None and place[0] == main:
            suffix = name[len(place[0].prefix) :].lstrip("0123456789")
            found.setdefault(place[1], {})[suffix] = name
    return found
