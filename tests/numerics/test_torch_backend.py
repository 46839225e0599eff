"""The torch backend gives the numpy reference's bytes on every method, and refuses devices that are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from harness import finish, make_run, tensor
from smelt.core.errors import PlanError
from smelt.methods import REGISTRY
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.torch_backend import TorchBackend, resolve_device

DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else [])]
GIVEN = {"weight": 0.6, "density": 0.5, "t": 0.3}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_method_gives_the_reference_bytes(name: str, dtype: str, device: str) -> None:
    spec = REGISTRY[name]
    draw = np.random.default_rng(5)
    start = draw.normal(size=(300, 500))
    base = tensor(start, dtype)
    count = min(spec.max_models or 3, 1 if spec.base == "member" else 3)
    models = [tensor(start + 0.01 * draw.normal(size=start.shape), dtype) for _ in range(count)]
    options = {key: value for key, value in GIVEN.items() if spec.param(key)}
    if spec.param("filter_wise"):
        options["filter_wise"] = True
    results = []
    for backend in (NumpyBackend(), TorchBackend(device)):
        first = base if spec.base in ("required", "member", "optional") else None
        results.append(finish([make_run(spec, models, first, backend=backend, **options)])[0])
    plain, found = (result.values for result in results)
    assert np.isfinite(found).all()
    if device == "cpu" and dtype != "F32":
        assert results[0].bytes == results[1].bytes
    else:
        assert (
            np.max(np.abs(plain - found))
            <= np.max(np.abs(plain)) * {"BF16": 2**-8, "F16": 2**-10, "F32": 2**-22}[dtype]
        )


def test_columns_and_rows_agree_with_the_reference() -> None:
    draw = np.random.default_rng(6)
    models = [tensor(draw.normal(size=(7, 5, 3)), "F32") for _ in range(2)]
    for row_wise in (False, True):
        options = {"weight": 0.5, "nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
        one, two = (
            finish([make_run(REGISTRY["nuslerp"], models, None, backend=backend, **options)])[0].values
            for backend in (NumpyBackend(), TorchBackend("cpu"))
        )
        assert np.allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cdua"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match="--device"):
        resolve_device(name)


def test_auto_is_always_something() -> None:
    assert resolve_device("auto") in ("cpu", "cuda:0", "xpu:0")
