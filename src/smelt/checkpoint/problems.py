"""All that is wrong with one checkpoint, gathered and raised as one error."""

from __future__ import annotations

from pathlib import Path

from smelt.core.errors import CheckpointError, Problem

_SHOWN = 20


class Problems:
    """Gathers problems of one checkpoint; ``raise_any`` turns them into one CheckpointError."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(
        self, what: str, file: Path | str, tensor: str | None = None, *, expected: str = "", fix: str = ""
    ) -> None:
        """Note one problem of a file, or of one tensor in it."""
        where = f"{file}, tensor {shorten(tensor)}" if tensor is not None else str(file)
        self.found.append(Problem(what, where, expected, fix))

    def raise_any(self) -> None:
        """Raise what was found, if anything: the first twenty, and how many more."""
        if not self.found:
            return
        shown = self.found[:_SHOWN]
        if len(self.found) > _SHOWN:
            shown.append(Problem(f"and {len(self.found) - _SHOWN} more problems like these"))
        raise CheckpointError(shown)


def shorten(name: str, limit: int = 120) -> str:
    """A name as it may be printed: quoted, control characters escaped, never absurdly long.

    >>> shorten("a.weight"), shorten("x" * 300, limit=9)
    ("'a.weight'", "'xxxxxxxxx'...")
    """
    return repr(name) if len(name) <= limit else repr(name[:limit]) + "..."


def listing(names: list[str], limit: int = 3) -> str:
    """The first few names and how many more.

    >>> listing(["a", "b", "c", "d", "e"])
    "'a', 'b', 'c' and 2 more"
    """
    text = ", ".join(shorten(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
