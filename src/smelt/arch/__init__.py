"""Tensor names and config -> layers, roles, ties. Reads headers only."""

from smelt.arch.agreement import check_agreement
from smelt.arch.stacks import StackInfo
from smelt.arch.structure import Structure, read_structure

__all__ = ["StackInfo", "Structure", "check_agreement", "read_structure"]
