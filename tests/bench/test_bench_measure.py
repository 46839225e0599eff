"""What is measured of a process, and the tables made of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from bench import floor, measure, records, report


def test_memory_cpu_and_status_are_those_of_the_process(tmp_path: Path) -> None:
    code = "import time\nx = bytearray(b'1') * 60_000_000\nt = time.process_time()\n"
    code += "while time.process_time() - t < 0.3: pass\nraise SystemExit(3)"
    usage = measure.run([sys.executable, "-c", code], tmp_path / "log")
    assert usage.code == 3
    assert 60e6 < usage.anon < 90e6
    assert 0.3 < usage.cpu < 2 and usage.wall >= 0.3


def test_memory_of_children_counts(tmp_path: Path) -> None:
    child = "import time; x = bytearray(b'1') * 50_000_000; time.sleep(0.4)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert measure.run([sys.executable, "-c", parent], tmp_path / "log").anon > 50e6


def test_the_floor_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"x" * 1_000_000)
    found = floor.measure([source, source], [source], tmp_path / "to")
    assert 0 < found.read < 5 and 0 < found.write < 5 and found.durable >= found.plain
    assert list((tmp_path / "to").iterdir()) == []


def test_records_of_another_subject_or_machine_are_not_used(tmp_path: Path) -> None:
    store = records.Store(tmp_path)
    store.put("ties/smelt-0", "smelt abc", {"wall": 1.0})
    found = store.get("ties/smelt-0", "smelt abc")
    assert found is not None and found["wall"] == 1.0
    assert store.get("ties/smelt-0", "smelt def") is None
    store.fingerprint = "another machine"
    assert store.get("ties/smelt-0", "smelt abc") is None


def _run(wall: float, anon: float = 3e8, code: int = 0) -> dict[str, Any]:
    return {
        "wall": wall,
        "cpu": 2 * wall,
        "anon": anon,
        "rss": anon,
        "code": code,
        "tail": "killed",
        "others": 0.0,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    floors = [{"read": 0.5, "write": 0.5, "sync": 1.0}] * 3
    row = {
        "method": "ties",
        "warm": True,
        "bound_speedup": 30,
        "bound_floor": 4,
        "rounds": {
            "floor": floors,
            "smelt": [_run(4.2, 2e8), _run(5.2), _run(9.9, 1e8)],
            "mergekit": [_run(260.0, 9e9)],
        },
        "agreement": {"mergekit": {"elements": 1000, "equal": 999, "one_step": 1000}},
    }
    facts = {"cpu": "a chip", "cores": 2, "memory_gb": 24, "kernel": "6", "python": "3.11", "gpu": "",
             "versions": {"smelt": "0.1"}, "commit": "abc", "date": "today"}  # fmt: skip
    return {
        "size": "1.24b", "parameters": 1_235_814_400, "run_id": "r", "device": "cpu", "threads": 2,
        "repeat": 3, "facts": facts, "peers": {"mergekit": "mergekit 0.1.5"}, "rows": [row],
        "startup": [{"what": "`smelt --version`", "seconds": 0.2, "limit": None},
                    {"what": "`smelt --help`", "seconds": 0.5, "limit": 0.3}],
        "scaling": [{"method": "ties", "threads": 1, "walls": [8.0, 9.0]}],
    }  # fmt: skip


def test_the_table_shows_medians_peaks_ratios_and_floor(result: dict[str, Any]) -> None:
    heads, rows = report.main_table(result)
    cells = dict(zip(heads, rows[0], strict=True))
    assert cells["smelt s"] == "5.20" and cells["mergekit s"] == "260.0" and cells["faster"] == "50.0x"
    assert cells["smelt MB"] == "300" and cells["mergekit MB"] == "9000"
    assert cells["floor s"] == "1.00" and cells["with fsync s"] == "2.00"
    assert cells["net / floor"] == "5.00" and cells["net / fsynced floor"] == "2.50"


def test_missed_bounds_are_named(result: dict[str, Any]) -> None:
    missed = report.missed(result)
    assert [text.split(" (")[0] for text in missed] == [
        "start: `smelt --help` 0.50 s",
        "ties: over the I/O floor 5.00x",
    ]
    result["rows"][0]["rounds"]["smelt"] = [_run(4.0, anon=8e8)]
    assert report.missed(result)[1:] == ["ties: anonymous memory 800 MB (bound 700 MB)"]


def test_a_failed_peer_is_shown_not_hidden(result: dict[str, Any]) -> None:
    result["rows"][0]["rounds"]["mergekit"] = [_run(3.0, code=-9)]
    heads, rows = report.main_table(result)
    cells = dict(zip(heads, rows[0], strict=True))
    assert cells["mergekit s"] == "failed" and cells["faster"] == ""


def test_the_page_holds_every_size_once(result: dict[str, Any], tmp_path: Path) -> None:
    report.publish(result, tmp_path)
    larger = {**result, "size": "3.2b"}
    report.publish(larger, tmp_path)
    report.publish(larger, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.count("## 1.24b") == text.count("## 3.2b") == 1
    assert text.index("## 1.24b") < text.index("## 3.2b")
    assert "| ties | 5.20 | 260.0 | 50.0x |" in text
    assert "ties: anonymous memory | 300 MB | 330 MB" in text  # 3.2b: at most 10 % above 1.24b
    assert "99.90% equal" in text


def test_a_busy_machine_is_named(result: dict[str, Any]) -> None:
    assert report.disturbances(result) == []
    result["rows"][0]["rounds"]["mergekit"][0]["others"] = 104.0
    assert report.disturbances(result) == ["ties with mergekit (20% of the processors)"]
    assert "not quiet" in report.page({"1.24b": result})


def test_the_page_tells_when_each_program_was_measured() -> None:
    rounds = {
        "smelt": [{"when": "2026-01-02T03:04:05+00:00"}, {"when": "2026-01-02T03:09:00+00:00"}],
        "mergekit": [{"when": "2026-01-01T20:00:00+00:00"}],
    }
    told = report.measured_when({"rows": [{"rounds": rounds}]})
    assert "smelt 2026-01-02 03:04 to 2026-01-02 03:09" in told and "mergekit 2026-01-01 20:00" in told
    assert report.measured_when({"rows": [{"rounds": {"smelt": [{}]}}]}) == ""
