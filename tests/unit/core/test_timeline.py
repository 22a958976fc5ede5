"""The timeline: one line per point, and nothing without the variable."""

import json
import os
from pathlib import Path

import pytest

from meow_ray.core import timeline


def test_points_are_appended_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "timeline.jsonl"
    monkeypatch.setenv("MEOW_TIMELINE", str(file))
    timeline.mark("worker started")
    timeline.mark("worker ready")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["point"] for row in rows] == ["worker started", "worker ready"]
    assert {row["process"] for row in rows} == {os.getpid()}
    assert rows[0]["time"] <= rows[1]["time"]


def test_nothing_is_written_without_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MEOW_TIMELINE", raising=False)
    monkeypatch.chdir(tmp_path)
    timeline.mark("worker started")
    assert list(tmp_path.iterdir()) == []


def test_a_first_time_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "timeline.jsonl"
    monkeypatch.setenv("MEOW_TIMELINE", str(file))
    timeline.mark_first.cache_clear()
    for _ in range(3):
        timeline.mark_first("first result")
    assert len(file.read_text().splitlines()) == 1
