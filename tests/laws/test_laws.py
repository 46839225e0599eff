"""Every method of the registry obeys every law; nothing here names a method."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from digests import digests

from laws import HASH_SEED, LAWS
from smelt.methods import REGISTRY

CASES = [
    pytest.param(name, law, id=f"{name}-{law.replace(' ', '_')}") for name in sorted(REGISTRY) for law in LAWS
]


@pytest.mark.parametrize(("name", "law"), CASES)
def test_law(name: str, law: str) -> None:
    spec = REGISTRY[name]
    if law in spec.exempt:
        with pytest.raises(AssertionError):  # an exemption that is not needed is a false claim
            LAWS[law](spec)
    else:
        LAWS[law](spec)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_exemptions_name_laws_and_say_why(name: str) -> None:
    for law, reason in REGISTRY[name].exempt.items():
        assert law in (*LAWS, HASH_SEED)
        assert len(reason.split()) > 3


@pytest.mark.parametrize("seed", ["1", "4242", "random"])
def test_hash_seeds_do_not_matter(seed: str) -> None:
    script = Path(__file__).with_name("digests.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == digests(REGISTRY)
