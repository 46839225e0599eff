"""Runs one merge with sd-mecha; executed by the Python of its own environment, never imported by smelt's.

``python sdmecha_driver.py METHOD THREADS OUT.safetensors BASE A [B C]`` (paths of safetensors files). Of the
benchmark's methods, karcher does not exist there, and sums of several task vectors stop with an
AttributeError in 1.1.8 (a difference whose operand is itself computed). Its TIES is reached through the
wrapper that also does DARE, with a drop probability of zero.
"""

from __future__ import annotations

import sys

import sd_mecha
import torch


def recipe(method: str, base: str, models: list[str]) -> sd_mecha.RecipeNode:
    """The recipe that computes the benchmark's merge of that name."""
    root = sd_mecha.model(base)
    nodes = [sd_mecha.model(path) for path in models]
    if method == "linear":
        return sd_mecha.n_average(*nodes)
    if method == "slerp":
        return sd_mecha.slerp(nodes[0], nodes[1], alpha=0.4)
    if method == "model_stock":
        return sd_mecha.n_model_stock(root, *nodes)
    if method == "ties":
        return sd_mecha.add_ties_with_dare(root, *nodes, probability=0.0, rescale=False, k=0.5, alpha=1.0)
    if method == "dare_ties":
        return sd_mecha.add_ties_with_dare(root, *nodes, probability=0.5, seed=0, alpha=1.0)
    raise SystemExit(f"sd-mecha has no {method}")


def main() -> None:
    method, threads, out, base, *models = sys.argv[1:]
    torch.set_num_threads(int(threads))
    sd_mecha.merge(
        recipe(method, base, models),
        output=out,
        merge_device="cpu",
        merge_dtype=torch.float32,
        output_dtype=torch.bfloat16,
        threads=int(threads),
    )


if __name__ == "__main__":
    main()
