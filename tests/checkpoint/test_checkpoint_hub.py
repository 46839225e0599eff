"""A model is found as a path, in the local cache without the network, or fetched with only what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ckpt_tools import save, sharded
from hub_server import COMMIT, hub

from smelt.checkpoint import find_model, open_checkpoint
from smelt.core.errors import CheckpointError

ONES = np.ones(3)


def cache_snapshot(cache: Path, *, commit: str = COMMIT) -> Path:
    """The folder of a snapshot as huggingface_hub lays it out."""
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def run(ref: str, endpoint: str, home: Path, **more: str) -> tuple[str, str]:
    """find_model in a process of its own, with its own cache."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **more}
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        if name not in more:
            environment.pop(name, None)
    code = (
        "import sys\nfrom smelt.checkpoint import find_model\nfrom smelt.core.errors import CheckpointError\n"
        f"try: print(find_model({ref!r}), 'huggingface_hub' in sys.modules)\n"
        "except CheckpointError as error: sys.exit(f'refused: {error}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    return done.stdout.strip(), done.stderr.strip()


def test_local_paths_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.safetensors", {"a": ONES})
    assert find_model(str(tmp_path)) == tmp_path and find_model(str(path)) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/x.safetensors") == path


def test_missing_paths_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mistral-7b").mkdir()
    with pytest.raises(CheckpointError, match=r"no such file or directory; did you mean '.*/mistral-7b'\?"):
        find_model(str(tmp_path / "mistrl-7b"))
    with pytest.raises(CheckpointError, match="no such file"):
        find_model("gone.safetensors")
    with pytest.raises(CheckpointError, match="does not exist either"):
        find_model(str(tmp_path / "a" / "b" / "c"))


def test_the_cache_is_used_without_the_network_or_its_library(tmp_path: Path) -> None:
    save(cache_snapshot(tmp_path / "hub") / "model.safetensors", {"a": ONES})
    found, errors = run("org/tiny", "http://127.0.0.1:9", tmp_path)
    assert found == f"{tmp_path}/hub/models--org--tiny/snapshots/{COMMIT} False", errors


def test_revisions_of_the_cache(tmp_path: Path) -> None:
    save(cache_snapshot(tmp_path) / "model.safetensors", {"a": ONES})
    assert find_model("org/tiny", COMMIT, cache_dir=tmp_path).name == COMMIT
    assert find_model("org/tiny", "main", cache_dir=tmp_path).name == COMMIT


def test_only_what_is_needed_is_fetched(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "made", {"model-00001-of-00001.safetensors": {"a": ONES}})
    save(folder / "consolidated.safetensors", {"a": ONES})
    for name in ("pytorch_model.bin", "modeling_tiny.py", "README.md", "flax_model.msgpack", "model.onnx"):
        (folder / name).write_text("not wanted")
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "merges.txt", "tokenizer.model"):
        (folder / name).write_text("{}")
    with hub({path.name: path.read_bytes() for path in folder.iterdir()}) as (endpoint, requests):
        found, errors = run("org/tiny", endpoint, tmp_path)
        assert found, errors
        fetched = {path.name for path in Path(found.split()[0]).iterdir()}
        assert fetched == {
            "config.json", "tokenizer.json", "chat_template.jinja", "merges.txt", "tokenizer.model",
            "model.safetensors.index.json", "model-00001-of-00001.safetensors",
        }  # fmt: skip
        assert list(open_checkpoint(found.split()[0]).tensors) == ["a"]
        seen = len(requests)
        assert run("org/tiny", endpoint, tmp_path)[0].split()[0] == found.split()[0]
        assert len(requests) == seen, "the second time nothing is asked"


def test_torch_files_are_fetched_where_there_is_nothing_better(tmp_path: Path) -> None:
    with hub({"pytorch_model.bin": b"x", "training_args.bin": b"y", "config.json": b"{}"}) as (endpoint, _):
        found, errors = run("org/tiny", endpoint, tmp_path)
        assert found, errors
        assert {p.name for p in Path(found.split()[0]).iterdir()} == {"pytorch_model.bin", "config.json"}


def test_an_incomplete_cache_is_completed(tmp_path: Path) -> None:
    (cache_snapshot(tmp_path / "hub") / "config.json").write_text("{}")
    content = save(tmp_path / "model.safetensors", {"a": ONES}).read_bytes()
    with hub({"model.safetensors": content, "config.json": b"{}"}) as (endpoint, _):
        found, errors = run("org/tiny", endpoint, tmp_path)
        assert found, errors
        assert list(open_checkpoint(found.split()[0]).tensors) == ["a"]


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_name_nobody_knows(tmp_path: Path, offline: str) -> None:
    with hub({}) as (endpoint, _):
        found, errors = run("org/other", endpoint, tmp_path, HF_HUB_OFFLINE=offline)
        assert not found and errors.startswith(
            "refused: org/other: is no path, is not complete in the local cache"
        )
        assert "Traceback" not in errors and ("offline" in errors.lower()) == (offline == "1")


def test_no_network_is_told_soon(tmp_path: Path) -> None:
    import time

    began = time.monotonic()
    found, errors = run("org/tiny", "http://127.0.0.1:9", tmp_path)
    assert not found and "check the name, the network and your access" in errors
    assert time.monotonic() - began < 20
