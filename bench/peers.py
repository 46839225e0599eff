"""Environments of the peers: built once with pinned versions, each apart from smelt's own.

``python -m bench.peers`` builds both. smelt never imports a peer; a peer is only ever started as a program.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.paths import peer_dir


@dataclass(frozen=True, slots=True)
class Peer:
    """One program to compare with, and what it needs."""

    name: str
    package: str
    pins: tuple[str, ...]
    note: str

    @property
    def python(self) -> Path:
        return peer_dir(self.name) / "bin" / "python"

    def program(self, name: str) -> Path:
        return peer_dir(self.name) / "bin" / name


#: the versions the recorded figures were made with, so that a table can be made again years later
MERGEKIT = Peer(
    "mergekit",
    "mergekit",
    (
        "mergekit==0.1.5",  # the version the bounds of the benchmark were set against
        "torch==2.13.0",  # the same torch as smelt's own environment: kernels of equal age on both sides
        "transformers==5.23.0",  # mergekit asks for no upper bound; newest one that was seen to work with it
        "pydantic==2.14.3",  # likewise: its config classes load and its runs pass with this one
        "safetensors==0.8.0",  # its reader; the same as smelt's tests use
        "numpy==2.4.6",  # slerp runs in it; the same as smelt's own
    ),
    "the merge toolkit whose recipes smelt reads",
)
SD_MECHA = Peer(
    "sd-mecha",
    "sd-mecha",
    (
        "sd-mecha==1.1.8",  # newest release that installs; infers a config from an LLM state dict
        "torch==2.13.0",  # as above
        "numpy==2.4.6",
        "safetensors==0.8.0",
    ),
    "a streaming merger of state dicts, made for diffusion models",
)
PEERS: dict[str, Peer] = {peer.name: peer for peer in (MERGEKIT, SD_MECHA)}


def ensure(peer: Peer) -> Path:
    """Build the peer's environment unless it stands as pinned; returns its Python."""
    stamp = peer_dir(peer.name) / "pins.json"
    if stamp.exists() and json.loads(stamp.read_text()) == list(peer.pins):
        return peer.python
    print(f"building an environment for {peer.name}: {', '.join(peer.pins)}", file=sys.stderr)
    venv.create(peer_dir(peer.name), with_pip=True, clear=True)
    pip = [str(peer.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.pins]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pip could not install {peer.name}:\n{done.stderr.strip()[-2000:]}")
    stamp.write_text(json.dumps(list(peer.pins)))
    return peer.python


def versions(peer: Peer, packages: Sequence[str] = ("torch", "transformers", "numpy")) -> str:
    """What is installed there, for the caption of a table."""
    code = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    done = subprocess.run(
        [str(peer.python), "-c", code, peer.package, *packages], capture_output=True, text=True, check=True
    )
    return ", ".join(done.stdout.split("\n")).rstrip(", ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(PEERS), help="build one of them")
    only = parser.parse_args().only
    for name in [only] if only else PEERS:
        ensure(PEERS[name])
        print(f"{name}: {versions(PEERS[name])}")


if __name__ == "__main__":
    main()
