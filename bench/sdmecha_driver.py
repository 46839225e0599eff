"""Averages models with sd-mecha; executed by the Python of its own environment, never imported by smelt's.

``python sdmecha_driver.py THREADS OUT.safetensors A B [C ...]`` (paths of safetensors files). The average is
the one merge of the benchmark it does alike: in 1.1.8 karcher does not exist, sums of several task vectors
stop with an AttributeError (a difference whose operand is itself computed), and its slerp, model stock, TIES
and DARE-TIES follow other formulas (under a third of their elements equal, seen on small far models).
"""

from __future__ import annotations

import sys

import sd_mecha
import torch


def main() -> None:
    threads, out, *models = sys.argv[1:]
    torch.set_num_threads(int(threads))
    sd_mecha.merge(
        sd_mecha.n_average(*[sd_mecha.model(path) for path in models]),
        output=out,
        merge_device="cpu",
        merge_dtype=torch.float32,
        output_dtype=torch.bfloat16,
        threads=int(threads),
    )


if __name__ == "__main__":
    main()
