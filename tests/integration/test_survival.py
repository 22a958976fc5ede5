"""Engine stages on a cluster of several nodes lose an actor, a node or the driver, and no row."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.config import Memo
from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, latest
from meow_ray.stages.invert.rules import RULES
from meow_ray.stages.memo.steps import MemoSteps
from tests.support import counting
from tests.support.counting import LoggedPrompt
from tests.support.runs import PROJECT, kill_node, processes_of, wait_for

pytestmark = pytest.mark.slow

NUM_FACTS = 30
MEMO_SETTINGS = {"max_new_tokens": 8, "stride": 7}
ARTIFACTS = {"memo": "memo", "invert": "candidates"}
LONG_PAUSE = 1.5
"""Seconds that an actor holds a batch after its prompts are logged; long enough to be killed in."""
ENGINE_LABELS = {"role": "engines"}


@dataclass
class StageRun:
    """A stage of one storage root, run as a process on the cluster."""

    name: str
    root: Path
    arguments: list[str]
    environment: dict[str, str]

    @property
    def log(self) -> Path:
        return self.root / "prompts.log"

    def start(self, *overrides: str, pause: float | None = None) -> subprocess.Popen[str]:
        self.root.mkdir(parents=True, exist_ok=True)
        environment = self.environment | {counting.LOG: str(self.log)}
        if pause is not None:
            environment[counting.PAUSE] = str(pause)
        command = [sys.executable, "-m", "tests.support.counting", "stage", self.name]
        return subprocess.Popen(
            [*command, f"storage.root={self.root}", *self.arguments, *overrides],
            cwd=PROJECT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def committed(self) -> set[str]:
        """Returns the ids of the facts whose results are committed."""
        facts: set[str] = set()
        for path in self.root.glob("work/**/commits/*.parquet"):
            if ".pending" not in path.name:
                facts.update(pq.read_table(path)["fact_id"].to_pylist())
        return facts

    def logged(self) -> list[LoggedPrompt]:
        """Returns the prompts that were continued so far."""
        return counting.read_log(self.log)

    def prompts(self) -> Counter[str]:
        """Returns how often each prompt was continued."""
        return Counter(prompt.name for prompt in self.logged())

    def table(self) -> pa.Table:
        artifact = latest(str(self.root), ARTIFACTS[self.name])
        assert artifact is not None
        return pq.read_table(storage.join(artifact.uri, MAIN))


@pytest.fixture(scope="module", params=ARTIFACTS)
def stage(
    request: pytest.FixtureRequest,
    cluster: Any,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], StageRun]:
    """Returns runs of a stage over the same input, each in a storage root of its own."""
    folder = tmp_path_factory.mktemp("survival")
    name: str = request.param
    arguments = (memo_arguments if name == "memo" else invert_arguments)(folder, tiny_model)
    resources = ("num_actors=[1,2]", "cpus_per_actor=1", "batch_size=1", "cpu_tasks=true")
    arguments += [f"resources.{name}.{setting}" for setting in resources]
    environment = os.environ | {
        "RAY_ADDRESS": cluster.address,
        "PYTHONPATH": str(PROJECT),
        "RAY_AUTH_MODE": "disabled",
    }
    return lambda root: StageRun(name, folder / root, arguments, environment)


def facts() -> list[tuple[str, str, str]]:
    """Returns id, question and answer of each fact."""
    return [(f"{i:02}", f"Who is number {i}?", f"It is Mr Zorblax {i}.") for i in range(NUM_FACTS)]


def memo_arguments(folder: Path, model: Path) -> list[str]:
    rows = [
        {
            "question": question,
            "answer": answer,
            "answer_0": answer.replace("Mr Zorblax", "Mrs Wux"),
        }
        for _, question, answer in facts()
    ]
    candidates = folder / "candidates.jsonl"
    candidates.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"--input=candidates={candidates}",
        f"target.model={model}",
        "target.engine=transformers",
        *(f"memo.{key}={value}" for key, value in MEMO_SETTINGS.items()),
    ]


def invert_arguments(folder: Path, model: Path) -> list[str]:
    rows = [
        {"fact_id": fact_id, "split": "forget", "question": question, "answer": answer}
        for fact_id, question, answer in facts()
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "facts.parquet")
    settings = {
        "model": model,
        "engine": "transformers",
        "style": "prefill",
        "fallback": "false",
        "num_candidates": 2,
        "samples": 3,
        "max_attempts": 1,
        "max_new_tokens": 8,
        # the tiny model's replies break all rules
        "skip_rules": f"[{','.join(RULES)}]",
    }
    return [
        f"--input=facts={folder}/facts.parquet",
        *(f"invert.{key}={value}" for key, value in settings.items()),
    ]


@pytest.fixture(scope="module")
def undisturbed(stage: Callable[[str], StageRun]) -> StageRun:
    run = stage("undisturbed")
    finish(run.start())
    return run


def finish(process: subprocess.Popen[str]) -> None:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]


def prompts_of_memo(facts: set[str], table: pa.Table, tokenizer: Any) -> set[str]:
    """Returns the names of the prompts of all windows of some facts."""
    rows = [row for row in table.to_pylist() if row["fact_id"] in facts]
    batch = pa.table(
        {
            "question": [row["question"] for row in rows],
            "texts": [[row["text"]] for row in rows],
        }
    )
    prepared = MemoSteps(Memo(**MEMO_SETTINGS), "chat").prepare(tokenizer, batch)
    return {counting.name_of(prompt) for row in prepared["prompts"].to_pylist() for prompt in row}


def check_complete(run: StageRun, undisturbed: StageRun) -> None:
    """Checks that a run's table has each row once, and equals that of the undisturbed run."""
    table = run.table()
    keys = list(zip(table["fact_id"].to_pylist(), table["candidate_id"].to_pylist(), strict=True))
    assert keys == sorted(set(keys))
    assert len({fact_id for fact_id, _ in keys}) == NUM_FACTS
    assert table.equals(undisturbed.table())


# --- tests --------------------------------------------------------------------------------------


def test_an_undisturbed_stage_continues_each_prompt_once(
    undisturbed: StageRun, tiny_tokenizer: Any
):
    table, prompts = undisturbed.table(), undisturbed.prompts()
    if undisturbed.name == "memo":
        assert table.num_rows == NUM_FACTS * 2
        facts = set(table["fact_id"].to_pylist())
        assert prompts == Counter(prompts_of_memo(facts, table, tiny_tokenizer))
    else:
        assert sorted(prompts.values()) == [1] * NUM_FACTS


def test_a_killed_driver_resumes_from_committed_rows(
    stage: Callable[[str], StageRun], undisturbed: StageRun, tiny_tokenizer: Any
):
    disturbed = stage("driver")
    process = disturbed.start()
    wait_for(process, lambda: len(disturbed.committed()) >= 4, timeout=200)
    process.kill()
    process.wait()
    time.sleep(2)  # the cluster then ends the driver's actors and tasks
    committed, before = disturbed.committed(), disturbed.prompts()
    assert 4 <= len(committed) < NUM_FACTS
    finish(disturbed.start())
    check_complete(disturbed, undisturbed)
    continued_after = disturbed.prompts() - before
    assert continued_after
    if disturbed.name == "memo":
        done = prompts_of_memo(committed, undisturbed.table(), tiny_tokenizer)
        assert not done & set(continued_after)
    else:
        assert continued_after.total() == NUM_FACTS - len(committed)


def wait_for_batch_in_flight(
    run: StageRun, undisturbed: StageRun, process: subprocess.Popen[str]
) -> LoggedPrompt:
    """Returns a prompt whose batch an actor holds now, after a quarter of all prompts.

    The engine logs a prompt before it pauses, so that the newest prompt's batch is not finished.
    """
    quarter = len(undisturbed.logged()) // 4
    wait_for(process, lambda: len(run.logged()) >= quarter, timeout=200)
    num_logged = len(run.logged())
    wait_for(process, lambda: len(run.logged()) > num_logged, timeout=60)
    return run.logged()[-1]


def check_batch_was_repeated(
    run: StageRun, lost: LoggedPrompt, logged_before: int, killed: set[int]
) -> None:
    """Checks that the batch of a prompt was lost with killed processes, and done by another."""
    after = run.logged()[logged_before:]
    repeats = [prompt for prompt in after if prompt.name == lost.name]
    assert repeats, "the killed process had finished its batch: nothing was lost"
    assert not killed & {prompt.process for prompt in repeats}


def test_a_killed_actor_loses_nothing(stage: Callable[[str], StageRun], undisturbed: StageRun):
    disturbed = stage("actor")
    process = disturbed.start(pause=LONG_PAUSE)
    lost = wait_for_batch_in_flight(disturbed, undisturbed, process)
    actor = psutil.Process(lost.process)
    assert "EngineActor" in " ".join(actor.cmdline())
    actor.kill()
    actor.wait(10)
    logged_before = len(disturbed.logged())
    finish(process)
    check_batch_was_repeated(disturbed, lost, logged_before, {lost.process})
    check_complete(disturbed, undisturbed)


@pytest.fixture
def engine_nodes(cluster: Any) -> Iterator[list[Any]]:
    """Two nodes with the labels that the actors of a stage can require."""
    nodes = [cluster.add_node(num_cpus=2, labels=ENGINE_LABELS) for _ in range(2)]
    yield nodes
    for node in nodes:
        cluster.remove_node(node, allow_graceful=False)


def test_a_killed_node_loses_nothing(
    stage: Callable[[str], StageRun], undisturbed: StageRun, engine_nodes: list[Any]
):
    disturbed = stage("node")
    labels = json.dumps(ENGINE_LABELS)
    process = disturbed.start(f"resources.{disturbed.name}.node_labels={labels}", pause=LONG_PAUSE)
    lost = wait_for_batch_in_flight(disturbed, undisturbed, process)
    node = next(
        node for node in engine_nodes if lost.process in {child.pid for child in processes_of(node)}
    )
    killed = {child.pid for child in processes_of(node)}
    kill_node(node)
    logged_before = len(disturbed.logged())
    finish(process)
    check_batch_was_repeated(disturbed, lost, logged_before, killed)
    check_complete(disturbed, undisturbed)
