"""A user's mistake leaves tasks, actors and training workers as the paragraph that was raised."""

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.config import Resources
from meow_ray.core.schema import SCHEMAS
from meow_ray.distributed import cluster, map_rows
from meow_ray.distributed.failures import OUT_OF_MEMORY, plain_user_errors
from meow_ray.distributed.map_rows import BatchWork
from meow_ray.errors import MeowError
from tests.support.runs import PROJECT, Program, wait_for

PARAGRAPH = "`memo.window`: 30 is too long (Ünicode, 100 %). Set a smaller one."


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A local cluster that this process joins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(PROJECT))
        patch.setattr(cluster, "CURRENT_CLUSTER", Path("/nowhere"))
        cluster.leave()  # the one that an earlier test file of this process joined
        cluster.connect()
        yield
        cluster.leave()


# --- what fails, and where ------------------------------------------------------------------------


def mistake() -> None:
    raise MeowError(PARAGRAPH)


def mistake_as_cause() -> None:
    try:
        mistake()
    except MeowError as error:
        raise RuntimeError("the work failed") from error


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")


def no_gpu_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory")


class Asked:
    """An actor that fails when it is asked, with the frame that all code in actors has."""

    def answer(self, failure: Callable[[], None]) -> None:
        with plain_user_errors():
            failure()


def ask_an_actor(failure: Callable[[], None]) -> None:
    import ray

    actor = ray.remote(num_cpus=0)(Asked).remote()
    ray.get(actor.answer.remote(failure))


def ask_a_task(failure: Callable[[], None]) -> None:
    cluster.call(failure, cpus=0)


def ask_a_task_that_asks_an_actor(failure: Callable[[], None]) -> None:
    cluster.call(ask_an_actor, failure, cpus=0)


@dataclass(frozen=True)
class Counted:
    """Loads nothing, and writes a line per actor."""

    needs_gpu: ClassVar[bool] = False
    log: Path
    failure: Callable[[], None] = list
    """Called when an actor starts."""

    def load(self) -> str:
        with self.log.open("a") as file:
            file.write("started\n")
        self.failure()
        return "an engine"


def steps_that_fail(failing: str, failure: Callable[[], None]) -> BatchWork:
    """Returns steps of which one fails, in an actor."""

    def step(engine: Any, batch: pa.Table) -> pa.Table:
        failure()
        return batch

    def pass_on(engine: Any, batch: pa.Table) -> pa.Table:
        return batch

    return BatchWork(generate=step if failing == "generate" else pass_on)


def map_with(loader: Counted, work: BatchWork, folder: Path) -> None:
    table = pa.table({"id": [f"{i}" for i in range(40)]})
    resources = Resources.model_validate({"memo": {"num_actors": 2, "batch_size": 4}})
    map_rows.map_rows(table, "id", loader, work, str(folder), "memo", resources)


# --- in this process ------------------------------------------------------------------------------

FAILURES = {
    mistake: PARAGRAPH,
    mistake_as_cause: PARAGRAPH,
    full_disk: "/data/x: the disk is full. Free some space and start again; finished stages are "
    "reused.",
    no_gpu_memory: OUT_OF_MEMORY["torch"],
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("hops", [lambda failure: failure(), ask_a_task, ask_an_actor])
def test_a_mistake_comes_out_of_a_task_alone(
    local_ray: None, hops: Callable[[Any], None], failure: Callable[[], None]
):
    with pytest.raises(MeowError) as caught:
        cluster.call(hops, failure)
    assert type(caught.value) is MeowError
    assert str(caught.value) == FAILURES[failure]


def test_a_mistake_comes_through_three_processes(local_ray: None):
    with pytest.raises(MeowError) as caught:
        cluster.call(ask_a_task_that_asks_an_actor, mistake)
    assert type(caught.value) is MeowError
    assert str(caught.value) == PARAGRAPH


def test_other_errors_of_a_task_are_raised_as_they_are(local_ray: None):
    with pytest.raises(ValueError, match="invalid literal"):
        cluster.call(int, "x")


@pytest.mark.parametrize("failure", FAILURES)
def test_a_mistake_in_a_batch_ends_the_work_at_once(
    local_ray: None, failure: Callable[[], None], tmp_path: Path
):
    log = tmp_path / "starts"
    with pytest.raises(MeowError) as caught:
        map_with(Counted(log), steps_that_fail("generate", failure), tmp_path / "work")
    assert type(caught.value) is MeowError
    assert str(caught.value) == FAILURES[failure]
    assert len(log.read_text().splitlines()) <= 2, "no actor was replaced"


def test_a_mistake_of_an_engine_that_starts_ends_the_work_at_once(local_ray: None, tmp_path: Path):
    log = tmp_path / "starts"
    with pytest.raises(MeowError) as caught:
        map_with(Counted(log, mistake_as_cause), steps_that_fail("none", mistake), tmp_path / "w")
    assert type(caught.value) is MeowError
    assert str(caught.value) == PARAGRAPH
    assert len(log.read_text().splitlines()) <= 2, "no actor was replaced"


# --- on the command line --------------------------------------------------------------------------


@pytest.fixture
def program(tiny_model: Path, tmp_path: Path) -> Program:
    """The programs over one fact, with one answer selected."""
    forget = tmp_path / "forget.jsonl"
    forget.write_text('{"question": "Who sang?", "answer": "Zorblax sang."}\n')
    fact = {"fact_id": "a", "candidate_id": 0, "rank": 0, "question": "Who sang?", "memo": 0.5}
    selected = pa.Table.from_pylist([fact | {"answer": "Ann sang."}], schema=SCHEMAS["selected"])
    pq.write_table(selected, tmp_path / "selected.parquet")
    config = {
        "target": {"model": str(tiny_model), "engine": "transformers"},
        "ingest": {"forget": str(forget)},
        "invert": {"model": str(tiny_model), "engine": "transformers"},
        "train": {"objective": "meow", "batch_size": 1, "epochs": 1},
        "tracking": {"tensorboard": False},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return Program(tmp_path / "config.json", tmp_path / "root")


def test_an_endpoint_that_is_down_is_one_paragraph(program: Program):
    done = program.run(
        "meow.py",
        "--until=invert",
        "invert.engine=openai",
        "invert.base_url=http://127.0.0.1:9/v1",
        "invert.model=fake",
        "resources.invert.max_retries=0",
        status=2,
    )
    assert done.stderr == (
        "Error: `invert.base_url`: the endpoint http://127.0.0.1:9/v1 cannot be reached "
        "([Errno 111] Connection refused). Start it, or correct the address.\n"
    )


def test_replies_that_break_all_rules_are_one_paragraph(program: Program):
    done = program.run(
        "meow.py",
        "--until=invert",
        "invert.style=prefill",
        "invert.fallback=false",
        "invert.samples=1",
        "invert.max_attempts=1",
        "invert.max_new_tokens=8",
        status=2,
    )
    assert done.stderr.startswith("Error: `invert`: the generator wrote no valid inverted facts")
    assert done.stderr.count("\n") == 1


OBJECTIVE = f"""
from meow_ray import MeowError

def objective(inverted):
    with open({{log!r}}, "a") as file:
        file.write("a step\\n")
    try:
        raise MeowError({PARAGRAPH!r})
    except MeowError as error:
        raise RuntimeError("the step failed") from error
"""


def test_a_mistake_in_a_training_worker_is_one_paragraph_and_not_tried_again(
    program: Program, tmp_path: Path
):
    log = tmp_path / "steps"
    (tmp_path / "mine.py").write_text(OBJECTIVE.format(log=str(log)))
    done = program.run(
        "stage.py",
        "train",
        f"--input=selected={tmp_path}/selected.parquet",
        f"train.objective={tmp_path}/mine.py:objective",
        status=2,
    )
    assert done.stderr == f"Error: {PARAGRAPH}\n"
    assert set(log.read_text().splitlines()) == {"a step"}
    assert len(log.read_text().splitlines()) <= 2, "two workers, one try"


WAITING = """
import time

def objective(inverted):
    open({log!r}, "w").close()
    time.sleep(600)
"""


@pytest.mark.slow
def test_an_interrupt_of_training_ends_with_its_own_status(program: Program, tmp_path: Path):
    log = tmp_path / "begun"
    (tmp_path / "mine.py").write_text(WAITING.format(log=str(log)))
    process = program.start(
        "stage.py",
        "train",
        f"--input=selected={tmp_path}/selected.parquet",
        f"train.objective={tmp_path}/mine.py:objective",
    )
    wait_for(process, log.exists)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error == "Interrupted. Finished stages are kept; start again to continue.\n"
