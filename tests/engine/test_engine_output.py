"""The output: the same bytes whatever the schedule, side files, config, record, and never half of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import entry, left_behind, linear, make, planned

import tiny
from smelt.checkpoint import tensor_digest
from smelt.core.errors import OutputError, PlanError
from smelt.engine import execute
from smelt.engine import merge as merging
from smelt.engine.express import WRITTEN
from smelt.engine.merge import merge, rerun
from smelt.engine.plan import BLOCK, Settings
from smelt.numerics.blocks import GRAIN


def ties(models: dict[str, tiny.Model], **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": "ties", "base_model": str(models["base"]),
        "models": [entry(models[name], weight=0.5) for name in models if name != "base"],
        "parameters": {"density": 0.3, **parameters},
    }  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiny.Model]:
    """Models whose larger tensors span several blocks and never end with one."""
    return tiny.family(tmp_path_factory.mktemp("wide"), "a", "b", hidden=96, inner=1400, vocab=1500, layers=2)


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "numba"])
def test_the_same_bytes_whatever_the_schedule(
    wide: dict[str, tiny.Model], tmp_path: Path, scope: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three block sizes, three shard sizes, one to eight threads, large tensors shared between threads or not."""
    monkeypatch.setattr(execute, "SMALL_MERGE", 0 if compiled else 1 << 60)
    recipe, made, records = ties(wide, scope=scope, rescale=True), set(), set()
    schedules = [
        (1, GRAIN, 5 * 10**9, 1 << 25),
        (2, 2 * GRAIN, 400_000, 1 << 16),
        (8, GRAIN, 100_000, 1 << 16),
        (3, BLOCK, 400_000, 1 << 25),
    ]
    for number, (threads, block, shard, shared) in enumerate(schedules):
        monkeypatch.setattr(execute, "SHARED", shared)
        report, out = make(recipe, tmp_path / str(number), threads=threads, block=block, shard_size=shard)
        made.add(json.dumps({name: tensor_digest(raw) for name, raw in tiny.tensor_bytes(out.path).items()}))
        record = json.loads((out.path / "smelt.json").read_text())
        del record["settings"]["shard_size"]
        records.add(json.dumps(record, sort_keys=True))
        assert report.files == (1 if shard > 10**9 else len(list(out.path.glob("model-*.safetensors"))) or 1)
    assert len(made) == 1
    assert len(records) == 1, "the record depends on recipe and inputs alone"


def test_shards_have_an_index_that_fits(wide: dict[str, tiny.Model], tmp_path: Path) -> None:
    _, out = make(ties(wide), tmp_path / "out", shard_size=300_000)
    index = json.loads((out.path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(out.values)
    assert index["metadata"]["total_size"] == sum(len(raw) for raw in tiny.tensor_bytes(out.path).values())
    for file in set(index["weight_map"].values()):
        data = (out.path / file).read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert set(header) - {"__metadata__"} == {
            name for name, where in index["weight_map"].items() if where == file
        }


def test_sharded_inputs_are_read_like_single_ones(tmp_path: Path) -> None:
    one, many = tiny.write(tmp_path / "one", seed=3), tiny.write(tmp_path / "many", seed=3, shards=4)
    other = tiny.write(tmp_path / "other", seed=4)
    first, second = (
        make(linear((model, 1), (other, 2)), tmp_path / f"from {model.path.name}")[1] for model in (one, many)
    )
    assert tiny.tensor_bytes(first.path) == tiny.tensor_bytes(second.path)


def test_side_files_come_from_the_donor_and_nothing_else_does(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a")
    base = models["base"].path
    texts = ("chat_template.jinja", "merges.txt", "spiece.model", "vocab.json", "preprocessor_config.json")
    others = ("modeling_x.py", "training.log", "optimizer.pt", ".hidden.json", "README.md", "smelt.json")
    keep, leave = dict.fromkeys(texts, "{}"), dict.fromkeys(others, "{}")
    for name, text in {**keep, **leave}.items():
        (base / name).write_text(text)
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling": true}')
    report, out = make(ties(models), tmp_path / "out")
    for name in [
        *keep,
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "1_Pooling/config.json",
    ]:
        assert (out.path / name).read_bytes() == (base / name).read_bytes()
    expected = {"config.json", "smelt.json", "model.safetensors"}
    assert {path.name for path in out.path.iterdir()} <= {*keep, *expected, "tokenizer.json", "tokenizer_config.json",
                                                          "generation_config.json", "1_Pooling", "README.md"}  # fmt: skip
    assert not {path.name for path in out.path.iterdir()} & {
        "modeling_x.py",
        "training.log",
        "optimizer.pt",
        ".hidden.json",
    }
    assert any("modeling_x.py" in note for note in report.notes)
    assert json.loads((out.path / "smelt.json").read_text())["recipe"]["merge_method"] == "ties"


def test_without_a_base_the_first_model_donates(tmp_path: Path) -> None:
    a = tiny.write(tmp_path / "a", config={"note": "from a"})
    b = tiny.write(tmp_path / "b", seed=2, config={"note": "from b"})
    assert make(linear((a, 1), (b, 1)), tmp_path / "ab")[1].config["note"] == "from a"
    assert make(linear((b, 1), (a, 1)), tmp_path / "ba")[1].config["note"] == "from b"


def test_the_record_says_what_was_read_and_written(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a", "b")
    recipe = ties(models) | {"seed": 77}
    report, out = make(recipe, tmp_path / "out", threads=1)
    record = json.loads((out.path / "smelt.json").read_text())
    for model in models.values():
        wanted = {name: tensor_digest(raw) for name, raw in tiny.tensor_bytes(model.path).items()}
        assert record["inputs"][str(model)] == wanted
    assert (
        record["outputs"]
        == {name: tensor_digest(raw) for name, raw in tiny.tensor_bytes(out.path).items()}
        == dict(report.outputs)
    )
    assert record["settings"]["seed"] == 77
    assert record["recipe"]["models"][0]["parameters"] == {"weight": 0.5}
    assert report.tensors == len(out.values) and report.parameters == sum(
        value.size for value in out.values.values()
    )
    assert report.bytes_in == sum(
        len(raw) for model in models.values() for raw in tiny.tensor_bytes(model.path).values()
    )
    assert report.bytes_out == sum(path.stat().st_size for path in out.path.glob("*.safetensors"))
    again = rerun(out.path)
    assert again.ok and again.same == len(out.values)


def test_a_rerun_notices_a_changed_input(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a")
    _, out = make(ties(models), tmp_path / "out")
    path = models["a"].path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 64
    path.write_bytes(data)
    report = rerun(out.path)
    assert not report.ok and report.same == report.tensors - 1
    assert any(str(models["a"]) in changed for changed in report.changed_inputs)


def test_seeds_from_recipe_and_settings(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a", hidden=16)
    recipe = ties(models) | {"merge_method": "dare_ties"}
    made = [
        tiny.tensor_bytes(make(recipe | fields, tmp_path / str(number), **options)[1].path)
        for number, (fields, options) in enumerate(
            [({}, {}), ({}, {"seed": 5}), ({"seed": 5}, {}), ({"seed": 5}, {"seed": 9})]
        )
    ]
    assert made[0] != made[1] and made[1] == made[2] == made[3], "the recipe's seed goes before the option"


def test_memory_is_bounded_by_smaller_blocks_then_refused(
    wide: dict[str, tiny.Model], tmp_path: Path
) -> None:
    free = planned(ties(wide), threads=2)
    tight = planned(ties(wide), threads=2, max_ram=free.peak_memory() - 1)
    assert tight.settings.block < free.settings.block and tight.peak_memory() < free.peak_memory()
    least = {count: planned(ties(wide), threads=count, block=GRAIN).peak_memory() for count in (2, 3)}
    inputs = 3 * 2 + 8  # bytes of an element: three models, what is computed
    largest = max(job.spec.numel for job in free.jobs.values())
    assert least[3] - least[2] >= min(GRAIN, largest) * inputs + min(WRITTEN * GRAIN, largest) * 2
    with pytest.raises(
        PlanError, match=r"--max-ram: the merge needs about .* of memory; expected at most .*fewer --threads"
    ):
        make(ties(wide), tmp_path / "out", max_ram=1_000_000)
    assert left_behind(tmp_path) == []


def test_an_exception_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tiny.family(tmp_path / "models", "a")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("disk on fire")

    for place in ("_side_files", "record"):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="on fire"):
            patch.setattr(merging, place, fail)
            merge(ties(models), tmp_path / "deep" / "out", Settings())
        assert left_behind(tmp_path) == ["models"], place

    def stop(stage: str, *_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(ties(models), tmp_path / "deep" / "out", Settings(threads=2), progress=stop)
    assert left_behind(tmp_path) == ["models"]


def test_an_output_that_stands_is_replaced_only_when_asked(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a")
    make(ties(models), tmp_path / "out")
    with pytest.raises(OutputError, match=r"not empty.*--overwrite"):
        make(ties(models), tmp_path / "out")
    (tmp_path / "out" / "stale.safetensors").write_bytes(b"")
    _, out = make(ties(models, density=0.9), tmp_path / "out", overwrite=True)
    assert not (out.path / "stale.safetensors").exists()
    with pytest.raises(OutputError, match="is or holds the input"):
        make(ties(models), models["a"].path, overwrite=True)


KILLED = """
import sys
from smelt.engine.merge import merge
from smelt.engine.plan import Settings
def tell(stage, done, total, tensors):
    print(stage, done, flush=True)
print("start", flush=True)
merge(sys.argv[1], sys.argv[2], Settings(threads=2, block=65536), progress=tell)
"""


def killed_after(lines: int, recipe: Path, out: Path, kind: int) -> int:
    """A merge in another process, sent a signal after it has told that many steps; its exit status."""
    command = [sys.executable, "-c", KILLED, str(recipe), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(kind)
        process.stdout.read()
        return process.wait(30)


@pytest.mark.parametrize("steps", [1, 3, 20, 45])
def test_killed_at_any_moment_the_target_is_absent_or_complete(
    tmp_path: Path, wide: dict[str, tiny.Model], steps: int
) -> None:
    recipe, out = tmp_path / "recipe.yml", tmp_path / "out"
    recipe.write_text(json.dumps(ties(wide)))
    killed_after(steps, recipe, out, signal.SIGKILL)
    assert rerun(out).ok if out.exists() else set(left_behind(tmp_path)) <= {"recipe.yml", ".out.smelt-work"}
    _, model = make(str(recipe), out, overwrite=True)
    assert left_behind(tmp_path, "recipe.yml", "out") == [], "the next run clears what the dead one left"
    assert len(model.values) == len(wide["base"].values)


def test_interrupted_by_the_user_nothing_is_left(tmp_path: Path, wide: dict[str, tiny.Model]) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(json.dumps(ties(wide)))
    assert killed_after(6, recipe, tmp_path / "out", signal.SIGINT) != 0
    assert left_behind(tmp_path, "recipe.yml") == []


PEAK = """
import sys, threading
from pathlib import Path
from smelt.engine.merge import run_merge
from smelt.engine.plan import Settings, plan_merge
def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
plan = plan_merge(sys.argv[1], Settings(threads=2))
run_merge(plan, sys.argv[2])
done.set()
watcher.join()
print(peak, plan.peak_memory())
"""


def test_memory_stays_below_the_prediction_and_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for size, inner in (("small", 6000), ("large", 24000)):
        models = tiny.family(tmp_path / size, "a", "b", hidden=64, inner=inner)
        recipe = tmp_path / f"{size}.yml"
        recipe.write_text(json.dumps(ties(models)))
        command = [sys.executable, "-c", PEAK, str(recipe), str(tmp_path / f"{size} out")]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        peak, predicted = (int(number) for number in found)
        assert peak < predicted
        peaks.append(peak)
    assert peaks[1] < 1.1 * peaks[0] + 10e6
    assert np.prod((24000, 64)) * 2 * 3 * 3 > 20e6, "the larger model itself would not have fitted into that"
