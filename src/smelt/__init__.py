"""smelt: compose language models without training.

>>> import smelt
>>> merged = smelt.linear(["./math", "./code"], weight=[0.7, 0.3], dtype="bfloat16")
>>> merged.recipe.merge_method
'linear'

Every merge method is a function here that builds a recipe node; nodes nest. ``.plan()`` checks, ``.save(dir)``
writes a verified checkpoint, ``.load()`` gives a transformers model in memory.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smelt._version import __version__

if TYPE_CHECKING:
    from smelt.api import Merge, load, merge_state_dicts, merge_tensors, model, recipe, verify
    from smelt.core.errors import SmeltError

_API = {"Merge", "load", "merge_state_dicts", "merge_tensors", "model", "recipe", "verify"}
_METHODS = {
    info.name for info in pkgutil.iter_modules([str(Path(__file__).parent / "methods")]) if not info.name.startswith("_")
}  # fmt: skip

__all__ = [
    "Merge", "SmeltError", "__version__", "load", "merge_state_dicts", "merge_tensors", "model", "recipe", "verify",
    *sorted(_METHODS),
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for."""
    if name in _API:
        from smelt import api

        return getattr(api, name)
    if name == "SmeltError":
        from smelt.core.errors import SmeltError

        return SmeltError
    if name in _METHODS:
        from smelt.api import method_function

        return method_function(name)
    raise AttributeError(f"module 'smelt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
