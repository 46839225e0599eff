"""Models without weights, built once a session."""

from __future__ import annotations

from functools import cache

import pytest
from arch_zoo import OTHER, Model, causal, other


@pytest.fixture(scope="session")
def zoo() -> object:
    """A function from a model type to its tensors and config."""

    @cache
    def get(kind: str) -> Model:
        return other(kind) if kind in OTHER else causal(kind)

    return get
