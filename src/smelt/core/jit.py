"""Compiled code from Numba's cache without waking the compiler up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PATCHING = threading.RLock()


@contextmanager
def quick_loading() -> Iterator[None]:
    """Functions that Numba finds in its cache are loaded without first registering everything it can compile,
    which takes a third of a second and is needed only when something must be compiled (and is then done)."""
    from numba.core import caching

    real = getattr(caching.Cache, "load_overload", None)
    if real is None or not hasattr(caching.Cache, "_load_overload"):  # another Numba: its own way
        yield
        return

    def load_overload(self: Any, signature: Any, context: Any) -> Any:
        from numba.core.runtime import rtsys

        rtsys.initialize(context)  # compiled code allocates through it
        with self._guard_against_spurious_io_errors():
            return self._load_overload(signature, context)

    with _PATCHING:
        caching.Cache.load_overload = load_overload  # type: ignore[method-assign]
        try:
            yield
        finally:
            caching.Cache.load_overload = real  # type: ignore[method-assign]
