"""Fixtures shared by all latent tests: tiny models, a byte tokenizer, a pair trained once per machine and
day."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import latent_tiny as tiny
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer with a chat template."""
    return tiny.byte_tokenizer()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The recorded reference: base, donor, cases, expected logits."""
    return Path(__file__).parents[1] / "data" / "latent_reference"


@pytest.fixture(scope="session")
def skilled_dir() -> Path:
    """Directory with ``ancestor``, ``r`` (reverses) and ``s`` (shifts): models and tokenizer, trained once.

    Kept between sessions under the temporary directory, named after the code that makes them.
    """
    source = hashlib.sha256(Path(tiny.__file__).read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"smelt-skilled-{torch.__version__}-{source}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            for name, model in zip(("ancestor", "r", "s"), tiny.trained_pair(), strict=True):
                model.save_pretrained(folder / name)
                tiny.byte_tokenizer().save_pretrained(folder / name)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def skilled(skilled_dir: Path) -> tuple[Any, Any]:
    """The two trained models: one reverses words, one shifts letters."""
    from transformers import AutoModelForCausalLM

    return tuple(AutoModelForCausalLM.from_pretrained(skilled_dir / name).eval() for name in "rs")  # type: ignore[return-value]
