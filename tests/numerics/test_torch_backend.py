"""The torch backend gives the numpy reference's bytes on every method, and refuses devices that are not there."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from harness import finish, has_base, make_run, merge, model_count, sample_params, tensor
from smelt.core.errors import PlanError
from smelt.methods import REGISTRY
from smelt.numerics import torch_backend
from smelt.numerics.blocks import GRAIN
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.rounding import encode
from smelt.numerics.torch_backend import TorchBackend, _encode, _tree_sums, resolve_device

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
    if device == "cpu":
        assert results[0].bytes == results[1].bytes
    else:
        assert (
            np.max(np.abs(plain - found))
            <= np.max(np.abs(plain)) * {"BF16": 2**-8, "F16": 2**-10, "F32": 2**-22}[dtype]
        )


@pytest.mark.parametrize("device", DEVICES)
def test_columns_and_rows_agree_with_the_reference(device: str) -> None:
    draw = np.random.default_rng(6)
    for shape in ((7, 5, 3), (40, 700)):
        models = [tensor(draw.normal(size=shape), "F32") for _ in range(2)]
        for row_wise in (False, True):
            options = {"weight": 0.5, "nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
            one, two = (
                finish([make_run(REGISTRY["nuslerp"], models, None, backend=backend, **options)])[0]
                for backend in (NumpyBackend(), TorchBackend(device))
            )
            assert (
                one.bytes == two.bytes if device == "cpu" else np.allclose(one.values, two.values, rtol=1e-6)
            )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_threads_and_blocks_do_not_matter(name: str, device: str) -> None:
    """Every thread has its own stream and buffers; sums run in an order fixed for each segment."""
    spec = REGISTRY[name]
    draw = np.random.default_rng(8)
    base, *models = (tensor(draw.normal(size=(401, 517))) for _ in range(model_count(spec) + 1))
    first, backend = base if has_base(spec) else None, TorchBackend(device)
    made = {
        merge(
            spec,
            models,
            first,
            backend=backend,
            block=block,
            threads=threads,
            **sample_params(spec, len(models)),
        ).bytes
        for block, threads in ((GRAIN, 1), (GRAIN, 4), (3 * GRAIN, 2), (1 << 30, 1))
    }
    assert len(made) == 1


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("wide", [True, False])
def test_one_rounding_only(dtype: str, wide: bool) -> None:
    draw = np.random.default_rng(7)
    edges = [
        0.0,
        -0.0,
        1e-30,
        1 + 2.0**-8 + 2.0**-40,
        1 + 2.0**-11 - 2.0**-40,
        2.0**-133,
        3 * 2.0**-135,
        65519.999,
        65520.0,
    ]
    values = np.concatenate(
        [draw.normal(size=20000), draw.normal(size=2000) * 1e-39, edges, [3.3e38, 3.4e38, -3.396e38]]
    )
    values = values if wide else values.astype(np.float32)
    found = _encode(torch.from_numpy(values), dtype).contiguous().view(torch.uint8).numpy()
    with np.errstate(over="ignore"):
        assert found.tobytes() == encode(values, dtype).tobytes()


def test_not_a_number_stays_one() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1e300])
    for dtype in ("BF16", "F16"):
        found = _encode(torch.from_numpy(values), dtype).float()
        assert found.isnan().tolist() == [True, False, False, False]
        assert found[1:].tolist() == [np.inf, -np.inf, np.inf]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zzz", "known: auto, cpu, cuda, mps, xpu"), ("cdua", "did you mean 'cuda'?"), ("cuda:99", "torch .* sees"),
        ("cuda:x", "expected cuda, or cuda:0"), ("cpu:1", "unknown device 'cpu:1'"), ("mps:0", "unknown device"),
        ("xpu:7", "xpu:7 is not there"),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused(name: str, said: str) -> None:
    with pytest.raises(PlanError, match=f"--device: .*{said}"):
        resolve_device(name)


def test_devices_are_counted_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "_count", lambda kind: {"cuda": 2, "xpu": 1, "mps": 1, "cpu": 1}[kind])
    wanted = {
        "auto": "cuda:0",
        "cuda": "cuda:0",
        "cuda:1": "cuda:1",
        "xpu": "xpu:0",
        "mps": "mps",
        "cpu": "cpu",
    }
    assert {name: resolve_device(name) for name in wanted} == wanted
    with pytest.raises(PlanError, match="sees 2 cuda devices; use cuda:1 or lower"):
        resolve_device("cuda:2")


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "_count", lambda kind: int(kind in ("cpu", "mps")))
    assert resolve_device("auto") == "cpu", "mps has no float64, so it must be asked for"


def test_halving_adds_everything_once() -> None:
    draw = np.random.default_rng(9)
    values = draw.normal(size=(2, 1000))
    cuts = np.array([0, 1, 64, 65, 500, 1000])
    found = _tree_sums(torch.from_numpy(values), cuts)
    wanted = np.array([[row[a:b].sum() for row in values] for a, b in pairwise(cuts)])
    assert np.allclose(found, wanted, rtol=0, atol=1e-12)
    alone = _tree_sums(torch.from_numpy(values[:, 65:500].copy()), np.array([0, 435]))
    assert (alone == found[3]).all(), "the same whatever else is in the block"
