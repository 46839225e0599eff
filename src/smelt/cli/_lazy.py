"""Commands that live in other rooms: listed by name and help line, imported only when they are run."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A command of a Typer application in another module: ``smelt.room.module:APP``.

    ``command`` names it there; empty when the whole application is mounted as a group.
    """

    name: str
    help: str
    target: str
    command: str = ""

    def exists(self) -> bool:
        """Whether the module is there, without importing the room it is in."""
        parts = self.target.partition(":")[0].split(".")[1:]
        return Path(__file__).parents[1].joinpath(*parts).with_suffix(".py").is_file()

    def load(self) -> Any:
        """The command itself."""
        module, _, attribute = self.target.partition(":")
        app = getattr(importlib.import_module(module), attribute)
        found = typer.main.get_group(app)
        return found.commands[self.command] if self.command else found


class LazyCommand(TyperCommand):
    """Stands for a command until somebody runs it, asks for its help, or completes its options."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        super().__init__(name=elsewhere.name, help=elsewhere.help, add_help_option=False)
        self._elsewhere = elsewhere

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command: from here on the placeholder plays no part."""
        return self._elsewhere.load().make_context(info_name, args, parent=parent, **extra)


class LazyGroup(TyperGroup):
    """A group with commands from elsewhere after its own. Subclasses name them."""

    elsewhere: ClassVar[tuple[Elsewhere, ...]] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for one in self.elsewhere:
            if one.exists():
                self.commands.setdefault(one.name, LazyCommand(one))
