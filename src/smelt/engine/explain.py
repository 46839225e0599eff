"""What a recipe really does to one tensor: every parameter, who set it, and the coefficients that follow."""

from __future__ import annotations

from typing import Any

import numpy as np

from smelt.engine.crew import Crew
from smelt.engine.execute import Executor, widest_scope
from smelt.engine.jobs import Job
from smelt.engine.measure import measure_all
from smelt.engine.plan import Plan
from smelt.engine.run import TensorRun
from smelt.numerics.blocks import Block, Grid
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.rounding import encode

#: operations whose presence makes a formula more than a sum of scaled inputs
_BENDING = {"where", "abs", "sign", "uniform", "index", "sqrt"}


def explain(plan: Plan, name: str) -> dict[str, Any]:
    """Parameters, their levels, and effective coefficients of one output tensor.

    Where coefficients depend on the weights themselves (angles, order statistics) this tensor is read.
    """
    job = plan.job(name)
    found: dict[str, Any] = {
        "tensor": name, "method": job.method, "dtype": job.spec.dtype, "shape": list(job.spec.shape),
        "inputs": list(job.labels), "layer": job.layer, "t": job.t, "note": job.note,
        "parameters": _parameters(job),
    }  # fmt: skip
    if job.kind == "merge" and job.spec.numel:
        found.update(_coefficients(plan, job))
    return found


def _parameters(job: Job) -> dict[str, Any]:
    named = {key.rstrip("_"): value for key, value in job.params.items()}
    return {key: {"value": value, "set by": job.levels.get(key)} for key, value in named.items()}


def _coefficients(plan: Plan, job: Job) -> dict[str, Any]:
    from smelt.methods import REGISTRY

    executor = Executor(
        {job.spec.name: job}, lambda *_: None, threads=1, block=plan.settings.block, backend=NumpyBackend()
    )
    run = executor.build(job)
    scope = widest_scope(job)
    if REGISTRY[job.method].measure is not None:
        if scope != "tensor":
            return {"coefficients": f"chosen over the whole {scope}, not from this tensor alone"}
        measure_all([run], Crew(executor.block))
    if not _is_sum(run):
        return {"kept": _kept(run)}
    values = _on_units(run)
    return {"coefficients": dict(zip(_labels(job), values, strict=True))}


def _labels(job: Job) -> list[str]:
    return [
        f"{label} (base)" if at == 0 and job.base is not None else label
        for at, label in enumerate(job.labels)
    ]


def _is_sum(run: TensorRun) -> bool:
    return not any(op in _BENDING for op, *_ in run.program.code)


def _on_units(run: TensorRun) -> list[float]:
    """The formula evaluated on each input alone being one: its coefficients (of the first row, where they differ)."""
    one, zero = (encode(np.array([value]), "F64") for value in (1.0, 0.0))
    values = []
    for position in range(len(run.feeds)):
        raws = [one if other == position else zero for other in range(len(run.feeds))]
        out = np.empty(1)
        block = Block(raws, ("F64",) * len(raws), 1, Grid(0))
        NumpyBackend().combine(run.program, block, np.dtype(np.float64), out, "F64")
        values.append(float(out[0]))
    return values


def _kept(run: TensorRun) -> list[dict[str, Any]]:
    """Per model: what of its task vector survives."""
    stats, kept = run.stats, []
    for position in range(len(run.models)):
        entry: dict[str, Any] = {"density": getattr(stats, "density", (1.0,) * len(run.models))[position]}
        cuts, factors = getattr(stats, "cuts", ()), getattr(stats, "scales", None)
        if cuts:
            entry["smallest kept"] = max(cuts[position].value, 0.0)
        if factors is not None:
            entry["scaled by"] = factors[position]
        kept.append(entry)
    return kept
