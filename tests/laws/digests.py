"""Run as a script: one line a method with the hash of everything it made of the samples."""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from harness import merge, variants  # noqa: E402
from laws import sample  # noqa: E402
from smelt.core.method import Registry  # noqa: E402
from smelt.methods import REGISTRY  # noqa: E402


def digests(registry: Registry) -> list[str]:
    """Name and hash of every method."""
    lines = []
    for name in sorted(registry):
        base, models, _ = sample(registry[name], (70, 33))
        found = sha256()
        for chosen in variants(registry[name], len(models)):
            found.update(merge(registry[name], models, base, **chosen).bytes)
        lines.append(f"{name} {found.hexdigest()}")
    return lines


if __name__ == "__main__":
    print("\n".join(digests(REGISTRY)))
