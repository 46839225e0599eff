"""Runs one method on tensors in memory, through any backend, block size and number of threads; no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smelt.core.method import MethodSpec, Param
from smelt.core.types import TensorMeta
from smelt.engine.crew import Crew
from smelt.engine.feeds import FileFeed
from smelt.engine.measure import measure_all
from smelt.engine.run import TensorRun
from smelt.numerics.blocks import GRAIN, Backend
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.rounding import STORAGE, accumulation, decode, encode
from smelt.numerics.stats import TensorInfo


@dataclass(frozen=True)
class Tensor:
    """Stored elements with their dtype and shape."""

    raw: np.ndarray
    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> np.ndarray:
        """As float64, shaped."""
        return decode(self.raw, self.dtype, np.dtype(np.float64)).reshape(self.shape)

    @property
    def bytes(self) -> bytes:
        return self.raw.tobytes()


def tensor(values: Any, dtype: str = "BF16") -> Tensor:
    """Numbers rounded to a dtype."""
    array = np.asarray(values, np.float64)
    return Tensor(np.ascontiguousarray(encode(array.reshape(-1), dtype)), dtype, array.shape)


class Memory:
    """A tensor that looks like a checkpoint to the engine."""

    def __init__(self, held: Tensor, label: str) -> None:
        self.held, self.config = held, {}
        self.meta = TensorMeta("w", held.dtype, held.shape, Path(label), 0)
        self.tensors = {"w": self.meta}

    def place(self, meta: TensorMeta) -> None:
        """Not in a file."""

    def read_into(self, meta: TensorMeta, start: int, out: memoryview) -> None:
        np.frombuffer(out, np.uint8)[:] = self.held.raw.view(np.uint8)[start : start + len(out)]


def defaults(spec: MethodSpec, count: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as the method's function takes them."""
    found: dict[str, Any] = {}
    for param in spec.params:
        value = given.get(param.name, param.default)
        if param.per_model and not isinstance(value, list):
            value = [value] * count
        found["lambda_" if param.name == "lambda" else param.name] = value
    return found


def make_run(
    spec: MethodSpec, models: Sequence[Tensor], base: Tensor | None = None, *, backend: Backend | None = None,
    seed: int = 0, out: str | None = None, name: str = "w", layer: Any = None, acc: Any = None, **params: Any,
) -> TensorRun:  # fmt: skip
    """The run of a method on one tensor of every model."""
    everyone = [*([base] if base is not None else []), *models]
    feeds = [
        FileFeed(source, source.meta) for source in (Memory(held, str(i)) for i, held in enumerate(everyone))
    ]
    dtype = out or everyone[0].dtype
    acc = acc or accumulation({held.dtype for held in everyone} | {dtype})
    first = feeds.pop(0) if base is not None else None
    return TensorRun(
        spec, TensorInfo(name, everyone[0].shape, seed), first, feeds, defaults(spec, len(models), params),
        dtype=dtype, acc=np.dtype(acc), backend=backend or NumpyBackend(), layer=layer,
    )  # fmt: skip


def finish(runs: Sequence[TensorRun], block: int = 4 * GRAIN, threads: int = 1) -> list[Tensor]:
    """Measure runs together and combine each."""
    if threads == 1:
        return _finish(runs, Crew(block))
    with ThreadPoolExecutor(threads) as pool:
        return _finish(runs, Crew(block, pool, threads))


def _finish(runs: Sequence[TensorRun], crew: Crew) -> list[Tensor]:
    measure_all(runs, crew)
    found = []
    for run in runs:
        out = np.zeros(run.info.numel, STORAGE[run.dtype])

        def work(start: int, size: int, scratch: Any, run: TensorRun = run, out: np.ndarray = out) -> None:
            if size:
                out[start : start + size] = run.combine(start, size, scratch, "out")

        crew.each_block(run.info.numel, work)
        found.append(Tensor(out, run.dtype, run.info.shape))
    return found


def merge(
    spec: MethodSpec, models: Sequence[Tensor], base: Tensor | None = None, *, block: int = 4 * GRAIN,
    threads: int = 1, **options: Any,
) -> Tensor:  # fmt: skip
    """One tensor merged."""
    return finish([make_run(spec, models, base, **options)], block, threads)[0]


def has_base(spec: MethodSpec) -> bool:
    """Whether a sample merge of this method gets a base."""
    return spec.base in ("required", "member")


def model_count(spec: MethodSpec, wanted: int = 3) -> int:
    """As many models besides the base as the method takes, at most ``wanted``."""
    most = spec.max_models if spec.max_models is not None else wanted
    return max(min(wanted, most) - (1 if spec.base == "member" else 0), 1)


def sample_params(spec: MethodSpec, count: int) -> dict[str, Any]:
    """Values for what a recipe must set; per-model ones differ from model to model."""
    shares = (0.5, 0.3, 0.2, 0.7, 0.4)
    found: dict[str, Any] = {}
    for param in spec.params:
        if param.required:
            found[param.name] = [shares[i % 5] for i in range(count)] if param.per_model else _middle(param)
    return found


def _middle(param: Param) -> Any:
    """A value inside the bounds."""
    if param.kind == "choice":
        return param.choices[0]
    if param.kind == "bool":
        return True
    low = param.lo if param.lo is not None else 0.0
    high = param.hi if param.hi is not None else low + 1.0
    return round(low + 0.4 * (high - low)) if param.kind == "int" else low + 0.4 * (high - low)


def variants(spec: MethodSpec, count: int) -> list[dict[str, Any]]:
    """The required parameters alone, and with each other parameter changed from its default in turn."""
    plain = sample_params(spec, count)
    found = [plain]
    for param in spec.params:
        if not param.required:
            found += [{**plain, param.name: value} for value in _others(param, count)]
    return found


def _others(param: Param, count: int) -> list[Any]:
    if param.kind == "bool":
        values: list[Any] = [not param.default]
    elif param.kind == "choice":
        values = [choice for choice in param.choices if choice != param.default]
    else:
        values = [_middle(param)]
    if not param.per_model:
        return values
    return [[value if i % 2 == 0 else param.default for i in range(count)] for value in values]
