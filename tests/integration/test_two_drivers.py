"""Two real drivers on one storage root: one does the work, the other uses its result."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meow_ray.core import storage
from meow_ray.core.manifest import latest
from tests.support import counting
from tests.support.runs import PROJECT, wait_for

pytestmark = pytest.mark.slow

NUM_FACTS = 6
LONG_PAUSE = 12
"""Seconds after each batch, so that a second driver starts before the first one has ended."""


@dataclass
class Drivers:
    """Drivers of the stage memo on one storage root, with a log of the prompts that they ran."""

    root: str
    log: Path
    arguments: list[str]
    environment: dict[str, str] = field(repr=False)

    def start(self, *options: str, pause: int = 1) -> subprocess.Popen[str]:
        """Starts a driver whose engine pauses for some seconds after each batch."""
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.support.counting", "stage", "memo"),
                *(f"storage.root={self.root}", *self.arguments, *options),
            ],
            cwd=PROJECT,
            env=self.environment | {counting.PAUSE: str(pause)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def prompts(self) -> Counter[str]:
        """Returns how often each prompt was continued."""
        return Counter(prompt.name for prompt in counting.read_log(self.log))


@pytest.fixture(params=["local", "s3"])
def drivers(
    request: pytest.FixtureRequest,
    s3: Callable[[str], str],  # before the cluster, whose nodes need its credentials
    cluster: Any,
    tiny_model: Path,
    tmp_path: Path,
) -> Drivers:
    root = str(tmp_path / "root") if request.param == "local" else s3(f"drivers/{tmp_path.name}")
    rows = [
        f"Who is number {i}?,It is Mr Zorblax {i}.,It is Mrs Wux {i}.\n" for i in range(NUM_FACTS)
    ]
    candidates = tmp_path / "candidates.csv"
    candidates.write_text("question,answer,answer_0\n" + "".join(rows))
    arguments = [
        f"--input=candidates={candidates}",
        f"target.model={tiny_model}",
        "target.engine=transformers",
        "memo.max_new_tokens=4",
        "memo.stride=9",
        "resources.memo.num_actors=1",
        "resources.memo.cpus_per_actor=1",
        "resources.memo.batch_size=1",
        "resources.memo.cpu_tasks=true",
    ]
    environment = os.environ | {
        "RAY_ADDRESS": cluster.address,
        "PYTHONPATH": str(PROJECT),
        "RAY_AUTH_MODE": "disabled",
        "MEOW_LEASE_BEAT": "1",
        counting.LOG: str(tmp_path / "prompts.log"),
    }
    return Drivers(root, tmp_path / "prompts.log", arguments, environment)


def output(process: subprocess.Popen[str], status: int = 0) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == status, out[-3000:]
    return out


def test_of_two_drivers_that_start_together_one_does_the_work(drivers: Drivers):
    outputs = [output(process) for process in [drivers.start(), drivers.start()]]
    assert sorted("waits for another driver" in out for out in outputs) == [False, True]
    assert sorted("[1/1] memo: cached" in out for out in outputs) == [False, True]
    places = {out.splitlines()[-1] for out in outputs}
    memo = latest(drivers.root, "memo")
    assert memo is not None
    assert len(places) == 1
    assert memo.table.num_rows == NUM_FACTS * 2
    assert set(drivers.prompts().values()) == {1}


def test_the_second_driver_takes_over_from_a_killed_one(drivers: Drivers):
    first = drivers.start(pause=LONG_PAUSE)
    wait_for(first, lambda: len(drivers.prompts()) >= 1)
    second = drivers.start()
    waits = [line for line in iter_until(second, "waits for another driver")]
    assert f"process {first.pid} on " in waits[-1]
    first.kill()
    first.wait()
    assert "[1/1] memo: never run" in output(second)
    memo = latest(drivers.root, "memo")
    assert memo is not None
    assert memo.table.num_rows == NUM_FACTS * 2
    assert storage.list_names(storage.join(drivers.root, "leases")) == []


def test_a_driver_that_must_not_wait_is_refused(drivers: Drivers):
    first = drivers.start(pause=LONG_PAUSE)
    wait_for(first, lambda: len(drivers.prompts()) >= 1)
    refused = output(drivers.start("--no-wait"), status=2)
    assert f"Error: Stage memo: another driver works on it (process {first.pid} on " in refused
    assert "memo: never run" in output(first)


def iter_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Returns the lines that a process prints, up to one with a text."""
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + 200
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
        assert time.monotonic() < deadline
    raise AssertionError(f"{text!r} is not among {lines}")
