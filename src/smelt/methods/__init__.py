"""One file is one merge method; discovered, never listed by hand. ``REGISTRY`` holds them all."""

from __future__ import annotations

from smelt.core.method import Registry, discover

REGISTRY: Registry = discover(__name__)

__all__ = ["REGISTRY"]
