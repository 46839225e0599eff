"""YAML in, frozen checked recipe out. No torch, no files of weights."""

from smelt.recipe.load import load_recipe
from smelt.recipe.model import (
    Entry,
    ModelToken,
    Module,
    Node,
    Recipe,
    Slice,
    Source,
    Tokenizer,
    TokenRule,
    ZeroRow,
)
from smelt.recipe.reference import ModelPath, ModelRef
from smelt.recipe.resolve import Resolved, resolve
from smelt.recipe.setting import Rule, Setting

__all__ = [
    "Entry",
    "ModelPath",
    "ModelRef",
    "ModelToken",
    "Module",
    "Node",
    "Recipe",
    "Resolved",
    "Rule",
    "Setting",
    "Slice",
    "Source",
    "TokenRule",
    "Tokenizer",
    "ZeroRow",
    "load_recipe",
    "resolve",
]
