"""Tensor names and config -> layers, roles, ties. Reads headers only."""

from smelt.arch.stacks import StackInfo
from smelt.arch.structure import Structure, read_structure

__all__ = ["StackInfo", "Structure", "read_structure"]
