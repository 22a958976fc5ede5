"""Progress without a cluster: where it is printed and how, and what a board collects."""

import io
import json
import sys
from typing import Any

import pytest

from meow_ray.distributed import progress
from meow_ray.distributed.figures import Figure


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A board in this process that exports no metrics."""
    monkeypatch.setattr(progress._Board, "_export", lambda self: None)
    return progress._Board("memo")


def test_output_is_standard_output_unless_events_go_elsewhere():
    stream = io.StringIO()
    assert progress.output() is sys.stdout
    with progress.events_to(stream):
        assert progress.output() is stream
    assert progress.output() is sys.stdout


def test_events_end_with_an_error_too():
    with pytest.raises(RuntimeError), progress.events_to(io.StringIO()):
        raise RuntimeError
    assert progress.output() is sys.stdout


def test_programs_get_one_event_per_line():
    stream = io.StringIO()
    with progress.events_to(stream):
        bar = progress._bar("memo", 4)
        bar.set_postfix({"memo": 0.5}, refresh=False)
        bar.n = 3
        bar.display()
        bar.display()
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) == {
        "event": "progress",
        "stage": "memo",
        "rows": 3,
        "of": 4,
        "memo": 0.5,
    }


def test_a_log_gets_one_line_per_update(capsys: pytest.CaptureFixture[str]):
    bar = progress._bar("memo", 4)
    bar.n = 2
    bar.display()
    bar.display()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("  memo: 2 of 4 (50 %), ")


def test_a_board_adds_rows_and_figures(board: Any):
    board.add(2, {"memo": Figure.mean(1.0, 2), "tokens": Figure.total(0)})
    assert board.read() == (2, {"memo": 0.5})
    board.add(1, {"memo": Figure.mean(2.0, 1), "tokens": Figure.total(9)})
    assert board.read() == (3, {"memo": 1.0, "tokens": 9.0})


def test_a_board_that_is_set_forgets_what_it_had(board: Any):
    board.add(2, {"tokens": Figure.total(3)})
    board.set(7, {"loss": Figure.mean(0.25, 1)})
    assert board.read() == (7, {"loss": 0.25})


def test_pace_is_the_time_between_reports_per_row(board: Any, monkeypatch: pytest.MonkeyPatch):
    times = iter([10.0, 12.0, 16.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    assert board.pace() is None
    board.set(1, {})
    assert board.pace() is None
    board.set(2, {})
    board.set(4, {})
    assert board.pace() == 2.0
