"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ("schedule", "operators", "recipe", "plan", "projection", "truncated", "quant", "lora", "ensemble")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name) -> None:
    result = doctest.testmod(importlib.import_module(f"smelt.latent.{name}"))
    assert result.attempted and not result.failed
