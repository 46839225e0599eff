"""The same things from Python: nodes nest, are checked, saved, loaded, and tensors in memory can be merged too.

python examples/make_models.py examples/models && python examples/python_api.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import smelt

models = Path(__file__).parent / "models"
experts = [models / "math", models / "letters"]

inner = smelt.ties(experts, base=models / "base", weight=[1.0, 0.8], density=0.5, dtype="bfloat16")
outer = smelt.linear([inner, models / "base"], weight=[0.9, 0.1])
print(outer.to_yaml())

plan = outer.plan()
print(f"{len(plan.jobs)} tensors, {plan.bytes_in} bytes to read")
plan.close()

with TemporaryDirectory() as folder:
    report = outer.save(Path(folder) / "merged")
    print(f"saved and verified {report.tensors} tensors")
    assert smelt.verify(report.path).ok

model = outer.load()
print(f"loaded {type(model).__name__} with {sum(p.numel() for p in model.parameters())} parameters")

one = smelt.merge_tensors("slerp", [torch.ones(8)], base=torch.zeros(8) + 0.5, t=0.25)
print(one)
