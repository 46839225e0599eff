"""What the judging tests share: the server process, small files of answers, a clean environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

SERVER = Path(__file__).with_name("judge_server.py")
SCRIPT = Path(__file__).parents[2] / "scripts" / "judgebench_eval.py"


class LiveServer:
    """The server process, its address, and what it counted."""

    def __init__(self, folder: Path) -> None:
        self.ready, self.log = folder / "port", folder / "log"
        self.log.touch()
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> None:
        """Start on a free port, or again on the port it had."""
        self.ready.unlink(missing_ok=True)
        command = [sys.executable, str(SERVER), "--port", str(self.port), "--ready", str(self.ready)]
        self.process = subprocess.Popen([*command, "--log", str(self.log)])
        wait_for(self.ready.exists, 60, self.process)
        wait_for(lambda: self.ready.read_text() != "", 5, self.process)
        self.port = int(self.ready.read_text())

    def kill(self) -> None:
        """kill -9: no goodbye to anyone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def events(self, since: int = 0) -> list[tuple[str, str]]:
        """(event, hash of the request) in order, from byte ``since`` of the log."""
        lines = self.log.read_bytes()[since:].decode().splitlines()
        return [(event, asked) for event, _, asked in (line.partition(" ") for line in lines)]

    def counts(self, event: str, since: int = 0) -> Counter[str]:
        return Counter(asked for found, asked in self.events(since) if found == event)

    @property
    def mark(self) -> int:
        return self.log.stat().st_size


def wait_for(
    condition: Callable[[], bool], seconds: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Poll until true; fails when the time is over or the process died."""
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"process ended with {process.returncode}")
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.02)


def answer_rows(name: str, count: int) -> list[dict[str, str]]:
    """Different answers to ``count`` questions from three sources."""
    return [
        {
            "id": f"q{i}",
            "prompt": f"What is {i} plus {i}?",
            "text": f"{name} thinks: {'well, ' * (i % 5)}{2 * i + (i % 3 == 0) * len(name)}.",
            "source": ("sums", "more", "rest")[i % 3],
            "model": name,
        }
        for i in range(count)
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def environment() -> dict[str, str]:
    """The environment for a subprocess: no keys, no proxies, no network libraries going online."""
    dropped = ("OPENAI_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
