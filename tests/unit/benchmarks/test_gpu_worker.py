"""The process that runs the checks of the GPU benchmark."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu_checks.values import Measurement, Setting
from benchmarks.gpu_checks.worker import Worker
from tests.support import gpu_checks

SETTING = Setting("cpu", "/nowhere")
LIMIT = 300.0
"""Far above what a check takes here."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "log"


@pytest.fixture
def worker(log: Path) -> Iterator[Worker]:
    worker = Worker(log)
    yield worker
    worker.close()


def test_checks_share_a_process_until_one_of_them_fails(worker: Worker, log: Path):
    first = worker.run(gpu_checks.process_number, SETTING, LIMIT)
    assert first.status == "passed"
    assert first.measurements[1] == Measurement("device", "cpu")
    missing = worker.run(gpu_checks.without_a_package, SETTING, LIMIT)
    assert (missing.status, missing.detail) == ("missing", "no_such_package")
    assert missing.measurements == [Measurement("before", 1.0)]
    assert worker.run(gpu_checks.process_number, SETTING, LIMIT).measurements == first.measurements

    failed = worker.run(gpu_checks.outside_its_tolerance, SETTING, LIMIT)
    assert (failed.status, failed.detail) == ("failed", "CheckError: differs by 2.")
    assert failed.measurements == [Measurement("difference", 2.0)]
    assert "differs by 2." in log.read_text()
    after = worker.run(gpu_checks.process_number, SETTING, LIMIT)
    assert after.status == "passed"
    assert after.measurements[0] != first.measurements[0]


def test_a_missing_module_of_the_project_is_a_failure(worker: Worker):
    outcome = worker.run(gpu_checks.without_a_module_of_the_project, SETTING, LIMIT)
    assert (outcome.status, outcome.detail) == (
        "failed",
        "No module named 'meow_ray.no_such_module'",
    )


def test_a_process_that_dies_is_a_failure_and_keeps_what_was_measured(worker: Worker):
    outcome = worker.run(gpu_checks.killed, SETTING, LIMIT)
    assert (outcome.status, outcome.detail) == ("failed", "its process ended with status -9")
    assert outcome.measurements == [Measurement("before", 1.0)]
    assert worker.run(gpu_checks.process_number, SETTING, LIMIT).status == "passed"


def test_a_check_that_takes_too_long_is_stopped(worker: Worker):
    # the process has started, so that the time is the check's own
    assert worker.run(gpu_checks.process_number, SETTING, LIMIT).status == "passed"
    outcome = worker.run(gpu_checks.hanging, SETTING, 5)
    assert (outcome.status, outcome.detail) == ("no time", "stopped after 5 s")
    assert worker.run(gpu_checks.process_number, SETTING, LIMIT).status == "passed"


def test_what_a_check_prints_goes_to_the_log(
    worker: Worker, log: Path, capfd: pytest.CaptureFixture[str]
):
    assert worker.run(gpu_checks.printing, SETTING, LIMIT).status == "passed"
    assert "to the output\nto the errors\n" in log.read_text()
    assert capfd.readouterr() == ("", "")
