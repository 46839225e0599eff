"""What a system costs while it answers: time to the first token, tokens a second, peak memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from smelt.latent.generating import Timing
from smelt.latent.metric_rows import SYSTEM_COST_COLUMNS

MEGA = 1e6


@dataclass(slots=True)
class Meter:
    """Collects the timings of one cell's batches, and the memory around them."""

    timings: list[Timing] = field(default_factory=list)
    tokens: int = 0
    rows: int = 0
    alloc_mb: float | None = None  # GPU, peak of tensors
    reserved_mb: float | None = None  # GPU, peak of torch's own cache
    rss_mb: float = 0.0

    def add(self, timing: Timing, tokens: Sequence[int]) -> None:
        """One batch."""
        self.timings.append(timing)
        self.tokens += sum(tokens)
        self.rows += len(tokens)

    def summary(self) -> dict[str, Any]:
        """Figures of the cell: times are means over batches, the rate is over all of them."""
        count = len(self.timings)
        after = sum(one.total - one.first for one in self.timings)
        later = self.tokens - self.rows
        return {
            "ttft_s": sum(one.first for one in self.timings) / count if count else None,
            "latency_s": sum(one.total for one in self.timings) / count if count else None,
            "decode_tokens": self.tokens,
            "decode_tps": later / after if after > 0 and later > 0 else None,
            "gpu_peak_alloc_mb": self.alloc_mb,
            "gpu_peak_reserved_mb": self.reserved_mb,
            "cpu_rss_mb": self.rss_mb,
        }


@contextmanager
def metered(device: Any) -> Iterator[Meter]:
    """A meter whose memory figures are of this block."""
    meter = Meter()
    gpu = torch.device(device).type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    yield meter
    if gpu:
        meter.alloc_mb = torch.cuda.max_memory_allocated(device) / MEGA
        meter.reserved_mb = torch.cuda.max_memory_reserved(device) / MEGA
    meter.rss_mb = resident_mb()


def resident_mb() -> float:
    """Memory of this process now, in MB; its peak where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MEGA
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGA


def cost_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a sweep under the published headings of system costs.

    The models are named, and both stay loaded through the sweep: memory is of all that was loaded.
    """
    base, donor = row["models"]["base"], row["models"]["donor"]
    known = {
        "mode": row["name"],
        "base_model": base["name"],
        "ft_model": donor["name"],
        "device": base["device"],
        "dtype": base["dtype"],
        "load_in_8bit": False,
        "load_in_4bit": False,
        "max_new_tokens": row["generation"]["max_tokens"],
        **row["costs"],
        "notes": f"{row['n']} prompts, batches of {row['generation']['batch']}; both models resident",
    }
    return {column: known.get(column) for column in SYSTEM_COST_COLUMNS}
