"""Finished measurements of one run id on disk: a long run can be continued, and is never mixed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine
from bench.paths import runs_dir

LATEST = "latest"


class Store:
    """Records of one run id; each names the machine (and boot) it was measured on and what was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fingerprint = machine.fingerprint()
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def get(self, key: str, subject: str) -> dict[str, Any] | None:
        """The record of ``key`` if measured here and of the same ``subject`` (source or pins)."""
        path = self._path(key)
        if not path.exists():
            return None
        record: dict[str, Any] = json.loads(path.read_text())
        same = (record["fingerprint"], record["subject"]) == (self.fingerprint, subject)
        return record if same else None

    def put(self, key: str, subject: str, values: dict[str, Any]) -> dict[str, Any]:
        """Keep a measurement."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record = {**values, "subject": subject, "fingerprint": self.fingerprint, "when": when}
        self._path(key).parent.mkdir(parents=True, exist_ok=True)
        self._path(key).write_text(json.dumps(record, indent=1))
        return record


def new_run_id() -> str:
    """Time and commit."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S-") + machine.commit().split()[0]


def latest_run_id() -> str | None:
    """The newest run id on this machine, if any."""
    found = sorted(path.name for path in runs_dir().glob("*") if path.is_dir())
    return found[-1] if found else None
