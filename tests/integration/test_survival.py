"""Engine stages on a Ray cluster of several nodes lose an actor, a node or their driver, and no row."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
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
from tests.support.runs import PROJECT, kill_node, wait_for

pytestmark = pytest.mark.slow

FACTS = 30
SPEC = {"max_new_tokens": 8, "stride": 7}
ARTEFACTS = {"memo": "memo", "invert": "candidates"}


@dataclass
class Stage:
    """A stage of one storage root, as a process on the cluster."""

    name: str
    root: Path
    arguments: list[str]
    environment: dict[str, str]

    @property
    def log(self) -> Path:
        return self.root / "prompts.log"

    def start(self) -> subprocess.Popen[str]:
        self.root.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.counting",
                "stage",
                self.name,
                f"storage.root={self.root}",
                *self.arguments,
            ],
            cwd=PROJECT,
            env=self.environment | {counting.LOG: str(self.log)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def committed(self) -> set[str]:
        """Returns the facts whose results are committed."""
        found: set[str] = set()
        for path in self.root.glob("work/**/commits/*.parquet"):
            if ".pending" not in path.name:
                found.update(pq.read_table(path)["fact_id"].to_pylist())
        return found

    def prompts(self) -> Counter[str]:
        return Counter(self.log.read_text().split()) if self.log.exists() else Counter()

    def table(self) -> pa.Table:
        found = latest(str(self.root), ARTEFACTS[self.name])
        assert found is not None
        return pq.read_table(storage.join(found.uri, MAIN))


@pytest.fixture(scope="module", params=ARTEFACTS)
def stage(
    request: pytest.FixtureRequest,
    cluster: Any,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Stage]:
    folder = tmp_path_factory.mktemp("survival")
    facts = [(f"{i:02}", f"Who is number {i}?", f"It is Mr Zorblax {i}.") for i in range(FACTS)]
    if request.param == "memo":
        rows = [
            {"question": q, "answer": a, "answer_0": a.replace("Mr Zorblax", "Mrs Wux")}
            for _, q, a in facts
        ]
        (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments = [f"--input=candidates={folder}/candidates.jsonl", f"target.model={tiny_model}"]
        arguments += [
            "target.engine=transformers",
            *(f"memo.{key}={value}" for key, value in SPEC.items()),
        ]
    else:
        rows = [{"fact_id": i, "split": "forget", "question": q, "answer": a} for i, q, a in facts]
        pq.write_table(pa.Table.from_pylist(rows), folder / "facts.parquet")
        spec = {
            "model": tiny_model,
            "engine": "transformers",
            "style": "prefill",
            "fallback": "false",
        }
        spec |= {"num_candidates": 2, "samples": 3, "max_attempts": 1, "max_new_tokens": 8}
        spec |= {"skip_rules": f"[{','.join(RULES)}]"}
        arguments = [
            f"--input=facts={folder}/facts.parquet",
            *(f"invert.{key}={value}" for key, value in spec.items()),
        ]
    arguments += [
        f"resources.{request.param}.{setting}"
        for setting in ("num_actors=[1,2]", "cpus_per_actor=1", "batch_size=1", "cpu_tasks=true")
    ]
    environment = os.environ | {
        "RAY_ADDRESS": cluster.address,
        "PYTHONPATH": str(PROJECT),
        "RAY_AUTH_MODE": "disabled",
    }
    return lambda name: Stage(request.param, folder / name, arguments, environment)


@pytest.fixture(scope="module")
def undisturbed(stage: Callable[[str], Stage]) -> Stage:
    found = stage("undisturbed")
    finish(found.start())
    return found


def finish(process: subprocess.Popen[str]) -> None:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]


def prompts_of_memo(facts: set[str], table: pa.Table, tokenizer: Any) -> set[str]:
    """Returns the names of all prompts that the windows of some facts have."""
    rows = [row for row in table.to_pylist() if row["fact_id"] in facts]
    batch = pa.table(
        {"question": [r["question"] for r in rows], "texts": [[r["text"]] for r in rows]}
    )
    prepared = MemoSteps(Memo(**SPEC), "chat").prepare(tokenizer, batch)
    return {counting.name_of(prompt) for row in prepared["prompts"].to_pylist() for prompt in row}


def check_whole(found: Stage, undisturbed: Stage) -> None:
    table = found.table()
    keys = list(zip(table["fact_id"].to_pylist(), table["candidate_id"].to_pylist(), strict=True))
    assert keys == sorted(set(keys))
    assert len({fact for fact, _ in keys}) == FACTS
    assert table.equals(undisturbed.table())


def test_an_undisturbed_stage_generates_every_prompt_once(undisturbed: Stage, tiny_tokenizer: Any):
    table, prompts = undisturbed.table(), undisturbed.prompts()
    if undisturbed.name == "memo":
        assert table.num_rows == FACTS * 2
        assert prompts == Counter(
            prompts_of_memo(set(table["fact_id"].to_pylist()), table, tiny_tokenizer)
        )
    else:
        assert sorted(prompts.values()) == [1] * FACTS


def test_a_killed_driver_goes_on_from_what_is_finished(
    stage: Callable[[str], Stage], undisturbed: Stage, tiny_tokenizer: Any
):
    disturbed = stage("driver")
    process = disturbed.start()
    wait_for(process, lambda: len(disturbed.committed()) >= 4, timeout=200)
    process.kill()
    process.wait()
    time.sleep(2)  # what the driver had started ends with it
    done, before = disturbed.committed(), disturbed.prompts()
    assert 4 <= len(done) < FACTS
    finish(disturbed.start())
    check_whole(disturbed, undisturbed)
    again = disturbed.prompts() - before
    assert again
    if disturbed.name == "memo":
        assert not prompts_of_memo(done, undisturbed.table(), tiny_tokenizer) & set(again)
    else:
        assert again.total() == FACTS - len(done)


def test_a_killed_actor_loses_nothing(stage: Callable[[str], Stage], undisturbed: Stage):
    disturbed = stage("actor")
    process = disturbed.start()
    wait_for(process, lambda: len(disturbed.committed()) >= 2, timeout=200)
    actor = next(p for p in psutil.process_iter(["cmdline"]) if is_actor(p))
    actor.kill()
    finish(process)
    check_whole(disturbed, undisturbed)


def is_actor(process: psutil.Process) -> bool:
    """Tells whether a process is an engine's actor of this cluster."""
    title = " ".join(process.info["cmdline"] or [])
    try:
        return (
            "ray::" in title
            and "EngineActor" in title
            and str(PROJECT) == process.environ().get("PYTHONPATH")
        )
    except psutil.Error:
        return False


def test_a_killed_node_loses_nothing(
    stage: Callable[[str], Stage], undisturbed: Stage, cluster: Any
):
    disturbed = stage("node")
    process = disturbed.start()
    wait_for(process, lambda: len(disturbed.committed()) >= 2, timeout=200)
    kill_node(cluster.list_all_nodes()[1])
    finish(process)
    check_whole(disturbed, undisturbed)
