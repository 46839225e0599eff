"""Killed, interrupted or crashed: the target is complete or absent, and the next run cleans up."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from ckpt_tools import is_complete, left_over, make

from smelt.checkpoint import open_checkpoint

_CHILD = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from ckpt_tools import make
print("ready", flush=True)
for seed in range(1, 1000):
    make(Path({target!r}), seed=seed, overwrite=True)
    print(seed, flush=True)
"""


def test_killed_at_any_moment_the_target_is_complete_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "out"
    rng = random.Random(5)
    seen = set()
    for round_ in range(12):
        code = _CHILD.format(here=str(Path(__file__).parent), target=str(target))
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        if round_ >= 6:  # half of them while something stands there already
            assert child.stdout.readline() == "1\n"
        time.sleep(rng.uniform(0.0, 0.12))
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        child.wait()
        if not target.exists():
            assert "complete" not in seen, "what was there is replaced in one step"
            seen.add("absent")
            continue
        with open_checkpoint(target) as checkpoint:
            seed = int(checkpoint.config["seed"])
        assert is_complete(target, seed), f"round {round_} left a broken output of seed {seed}"
        seen.add("complete")
    assert "complete" in seen
    make(target, seed=77, overwrite=True)
    assert is_complete(target, 77) and left_over(tmp_path) == ["out"]


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from ckpt_tools import CheckpointWriter, example_layout, write_all
with CheckpointWriter(Path({str(tmp_path / "out")!r}), example_layout()) as writer:
    write_all(writer)
    print("ready", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    assert left_over(tmp_path) == [".out.smelt-work"]
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors and left_over(tmp_path) == []
