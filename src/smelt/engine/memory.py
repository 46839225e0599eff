"""Merges whose inputs or outputs live in memory: tensors, state dicts, a transformers model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smelt.core.errors import PlanError, Problem, did_you_mean
from smelt.core.method import MethodSpec, Param
from smelt.core.types import DTYPE_NAMES, FLOATS, TensorMeta, TensorSpec
from smelt.engine.execute import Executor, choose_backend
from smelt.engine.jobs import Job
from smelt.engine.members import FilePart
from smelt.engine.plan import BLOCK, Plan

_MEMORY = Path("memory")
_NUMPY = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class MemorySource:
    """Arrays that look like a checkpoint to the engine."""

    def __init__(self, values: Mapping[str, Any], label: str) -> None:
        self.label = label
        self.config: dict[str, Any] = {}
        self.raw: dict[str, np.ndarray] = {}
        self.tensors: dict[str, TensorMeta] = {}
        for name, value in values.items():
            raw, dtype = _as_raw(value, f"{label}, tensor {name!r}")
            self.raw[name] = raw
            self.tensors[name] = TensorMeta(name, dtype, tuple(value.shape), _MEMORY / label, 0)

    def read_into(self, meta: TensorMeta, start: int, out: memoryview) -> None:
        """Bytes of a tensor."""
        size = len(out)
        np.frombuffer(out, np.uint8)[:] = self.raw[meta.name][start : start + size]

    def place(self, meta: TensorMeta) -> None:
        """Not in a file."""


def _as_raw(value: Any, where: str) -> tuple[np.ndarray, str]:
    """The bytes of a numpy or torch tensor, and its dtype."""
    if isinstance(value, np.ndarray):
        dtype = _NUMPY.get(value.dtype.name, "")
        array = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
    elif type(value).__module__.startswith("torch"):
        import torch

        dtype = (
            "BF16"
            if value.dtype == torch.bfloat16
            else _NUMPY.get(str(value.dtype).removeprefix("torch."), "")
        )
        if value.is_sparse or value.is_meta:
            raise PlanError("is sparse or has no data", where=where, expected="a dense tensor")
        value = value.detach().cpu().contiguous()
        array = (value.view(torch.int16) if dtype == "BF16" else value).numpy() if dtype else np.empty(0)
    else:
        raise PlanError(f"is a {type(value).__name__}", where=where, expected="a torch or numpy tensor")
    if not dtype:
        raise PlanError(f"has dtype {value.dtype}", where=where, expected="a float, integer or bool tensor")
    return array.reshape(-1).view(np.uint8), dtype


def merge_dicts(
    method: str,
    states: Sequence[Mapping[str, Any]],
    base: Mapping[str, Any] | None,
    seed: int,
    parameters: Mapping[str, Any],
    dtype: str | None = None,
) -> dict[str, Any]:
    """Merge state dicts; the result holds tensors of the kind that came in."""
    from smelt.methods import REGISTRY

    spec = REGISTRY.find(method)
    _check_states(spec, states, base)
    params = check_parameters(spec, parameters, len(states))
    sources = [MemorySource(state, f"states[{number}]") for number, state in enumerate(states)]
    base_source = MemorySource(base, "base") if base is not None else None
    like = next(iter((states[0] if states else base or {}).values()), None)
    chosen = _short_name(dtype)
    if chosen == "BF16" and isinstance(like, np.ndarray):
        raise PlanError("numpy has no bfloat16", where="dtype", fix="pass torch tensors, or dtype='float32'")
    jobs = _jobs(spec, sources, base_source, params, seed, chosen)
    made = run_in_memory(jobs)
    return {name: _as_kind(made[name], job.spec, like) for name, job in jobs.items()}


def _short_name(dtype: Any) -> str | None:
    """A dtype as headers spell it, from the name a recipe or torch gives it."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    short = DTYPE_NAMES.get(name, name)
    if short not in FLOATS:
        raise PlanError(
            f"dtype is {name!r}",
            expected="float32, float16, bfloat16 or float64",
            fix=did_you_mean(name, list(DTYPE_NAMES)),
        )
    return short


def _check_states(spec: MethodSpec, states: Sequence[Mapping[str, Any]], base: Any) -> None:
    """State dicts must be dicts, and as many as the method takes."""
    for place, state in [*enumerate(states), *([("base", base)] if base is not None else [])]:
        if not isinstance(state, Mapping):
            raise PlanError(
                f"is a {type(state).__name__}", where=f"states[{place}]", expected="a dict of tensors",
                fix="pass model.state_dict()",
            )  # fmt: skip
    count = len(states) + (1 if spec.base == "member" and base is not None else 0)
    if count < spec.min_models or (spec.max_models is not None and count > spec.max_models):
        besides = {"required": " besides the base", "member": ", the base being one of them"}.get(
            spec.base, ""
        )
        raise PlanError(
            f"{spec.name} got {count} models{besides}",
            expected=f"{spec.min_models} to {spec.max_models}"
            if spec.max_models
            else f"at least {spec.min_models}",
        )


def check_parameters(spec: MethodSpec, given: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Keyword parameters of a method as its combine function takes them, checked."""
    known = {param.name: param for param in spec.params}
    problems = [
        Problem(f"{spec.name} has no parameter {name!r}", fix=did_you_mean(name, list(known)))
        for name in given
        if name.rstrip("_") not in known
    ]
    chosen: dict[str, Any] = {}
    for param in spec.params:
        value = given.get(param.name, given.get(f"{param.name}_", param.default))
        values = (
            list(value) if isinstance(value, list | tuple) else [value] * (count if param.per_model else 1)
        )
        problems += _problems_with(param, values, count)
        key = "lambda_" if param.name == "lambda" else param.name
        chosen[key] = values if param.per_model else values[0]
    if problems:
        raise PlanError(problems)
    return chosen


def _problems_with(param: Param, values: list[Any], count: int) -> list[Problem]:
    if param.per_model and len(values) != count:
        return [Problem(f"{param.name} has {len(values)} values", expected=f"one for each of {count} models")]
    bad = [value for value in values if not param.accepts(value)]
    if param.required and any(value is param.default for value in values):
        return [Problem(f"parameter {param.name!r} is not set", expected=param.expected())]
    return [Problem(f"{param.name} is {bad[0]!r}", expected=param.expected())] if bad else []


def _jobs(
    spec: MethodSpec,
    sources: Sequence[MemorySource],
    base: MemorySource | None,
    params: dict[str, Any],
    seed: int,
    dtype: str | None,
) -> dict[str, Job]:
    everyone = [*([base] if base is not None else []), *sources]
    if base is None and spec.base in ("required", "member"):
        raise PlanError(f"{spec.name} needs a base", fix="pass base=")
    if not everyone:
        raise PlanError("nothing to merge", expected="at least one tensor or state dict")
    problems: list[Problem] = []
    jobs: dict[str, Job] = {}
    for name in dict.fromkeys(name for source in everyone for name in source.tensors):
        lacking = [source.label for source in everyone if name not in source.tensors]
        metas = [source.tensors[name] for source in everyone if name in source.tensors]
        if lacking:
            problems.append(
                Problem(f"is not in {', '.join(lacking)}", f"tensor {name!r}", "the same names everywhere")
            )
        elif len({meta.shape for meta in metas}) > 1:
            shapes = " and ".join(str(list(shape)) for shape in dict.fromkeys(meta.shape for meta in metas))
            problems.append(Problem(f"has shapes {shapes}", f"tensor {name!r}", "equal shapes"))
        else:
            jobs[name] = _job(spec, name, metas[0], sources, base, params, seed, dtype)
    if problems:
        raise PlanError(problems)
    return jobs


def _job(
    spec: MethodSpec, name: str, head: TensorMeta, sources: Sequence[MemorySource], base: MemorySource | None,
    params: dict[str, Any], seed: int, dtype: str | None,
) -> Job:  # fmt: skip
    parts = tuple(FilePart(source, source.tensors[name]) for source in sources)  # type: ignore[arg-type]
    base_part = FilePart(base, base.tensors[name]) if base is not None and spec.base != "ignored" else None  # type: ignore[arg-type]
    out = TensorSpec(name, dtype if dtype and head.dtype in FLOATS else head.dtype, head.shape)
    labels = tuple(source.label for source in sources)
    if head.dtype not in FLOATS:
        return Job(out, "copy", None, (base_part or parts[0],), labels[:1], {}, {}, "copy")
    return Job(out, spec.name, base_part, parts, labels, params, {}, seed=seed, stream=name)


def run_in_memory(
    jobs: Mapping[str, Job],
    *,
    threads: int = 1,
    block: int = BLOCK,
    device: str = "cpu",
    allow_nonfinite: bool = True,
) -> dict[str, np.ndarray]:
    """Carry jobs out into byte arrays."""
    made = {name: np.empty(job.spec.nbytes, np.uint8) for name, job in jobs.items()}

    def sink(name: str, start: int, data: Any) -> None:
        raw = np.asarray(data).view(np.uint8)
        made[name][start : start + raw.size] = raw

    backend = choose_backend(jobs, device)
    Executor(jobs, sink, threads=threads, block=block, backend=backend, allow_nonfinite=allow_nonfinite).run()
    return made


def _as_kind(raw: np.ndarray, spec: TensorSpec, like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return raw.view({short: long for long, short in _NUMPY.items()}[spec.dtype]).reshape(spec.shape)
    return as_torch(raw, spec)


def as_torch(raw: np.ndarray, spec: TensorSpec) -> Any:
    """Bytes as a torch tensor, sharing memory."""
    import torch

    names = {"BF16": torch.bfloat16} | {short: getattr(torch, long) for long, short in _NUMPY.items()}
    if not raw.size:
        return torch.empty(spec.shape, dtype=names[spec.dtype])
    return torch.from_numpy(raw).view(names[spec.dtype]).reshape(spec.shape)


def merge_to_memory(plan: Plan) -> dict[str, Any]:
    """The outputs of a plan as torch tensors."""
    settings = plan.settings
    made = run_in_memory(
        plan.jobs,
        threads=settings.threads,
        block=settings.block,
        device=settings.device,
        allow_nonfinite=settings.allow_nonfinite,
    )
    return {name: as_torch(made.pop(name), job.spec) for name, job in plan.jobs.items()}


def load_model(plan: Plan, torch_dtype: Any = None) -> Any:
    """A transformers model from a plan, without a file."""
    import json
    import tempfile

    from smelt.core.errors import MissingExtraError

    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "hf") from None
    architecture = (plan.config.get("architectures") or ["AutoModelForCausalLM"])[0]
    cls: Any = getattr(transformers, architecture, transformers.AutoModelForCausalLM)
    with tempfile.TemporaryDirectory() as folder:  # configs are read from files only
        (Path(folder) / "config.json").write_text(json.dumps(plan.config))
        config = transformers.AutoConfig.from_pretrained(folder)
    state = merge_to_memory(plan)
    dtype = torch_dtype or next(iter(state.values())).dtype
    return cls.from_pretrained(None, config=config, state_dict=state, dtype=dtype).eval()
