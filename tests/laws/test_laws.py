"""Every method of the registry obeys every law; nothing here names a method."""

from __future__ import annotations

import pytest
from laws import HASH_SEED, LAWS

from smelt.methods import REGISTRY

CASES = [pytest.param(name, law, id=f"{name}-{law.replace(' ', '_')}") for name in sorted(REGISTRY) for law in LAWS]


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
