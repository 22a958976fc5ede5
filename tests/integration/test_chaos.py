"""Actors, workers, tasks, nodes and drivers of a whole run are killed again and again, and it makes the same."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from meow_ray.core import storage
from meow_ray.core.manifest import HISTORY_FILE, MAIN, Artifact, latest
from meow_ray.stages.invert.rules import RULES
from tests.support import counting
from tests.support.runs import PROJECT, has_title, kill_node, processes_of

KILLS = {"invert": 7, "memo": 7, "train": 7, "evaluate": 7}
"""How often something dies in each stage; what a stage escapes, the next one gets."""
ENOUGH = 25
LONGEST_PEACE, PATIENCE = 3.0, 30.0
"""Seconds from the moment what shall die is there until it dies; seconds that it may take to be there."""
TITLES = {"actor": "ray::MapWorker", "worker": "RayTrainWorker", "task": "ray::_apply"}
KINDS = {"train": ("driver", "node", "worker")}
"""What dies in a stage, if not the kinds of those that run Ray Data."""
OTHERS = ("driver", "node", "actor", "task")
FACTS = 12


class Run:
    """The pipeline over one storage root, and what it says."""

    def __init__(self, root: Path, facts: Path, model: Path, address: str, pause: float) -> None:
        self.root, self.stage, self.finished = root, "", set[str]()
        self.noise: list[str] = []
        """Lines that are no events."""
        settings = {
            "ingest.forget": facts,
            "target": {
                "model": str(model),
                "engine": "transformers",
                "template": "{{ question }}\n",
            },
            "invert": {
                "model": str(model),
                "engine": "transformers",
                "style": "prefill",
                "fallback": False,
            }
            | {
                "num_candidates": 2,
                "samples": 3,
                "max_attempts": 1,
                "max_new_tokens": 8,
                "skip_rules": [*RULES],
            },
            "memo": {"max_new_tokens": 8, "stride": 7},
            "train": {"epochs": 8, "batch_size": 4, "learning_rate": 1e-3},
            "evaluate": {"max_new_tokens": 8, "attacks": [], "bootstrap_resamples": 100},
            "resources.train": {"num_workers": 2, "max_failures": 99},
        }
        engine = {"num_actors": [1, 2], "cpus_per_actor": 1, "batch_size": 1, "cpu_tasks": True}
        settings |= {f"resources.{name}": engine for name in ("invert", "memo", "evaluate")}
        # with an engine that takes its time
        self.command = [
            sys.executable,
            "-m",
            "tests.support.counting",
            "run",
            "--json",
            f"storage.root={root}",
        ]
        for key, value in settings.items():
            self.command.append(f"{key}={json.dumps(value) if isinstance(value, dict) else value}")
        root.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "RAY_ADDRESS": address,
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(PROJECT),
        }
        self.errors = root / "errors.log"
        self.environment |= {counting.LOG: str(root / "prompts.log"), counting.PAUSE: str(pause)}
        self.start()

    def start(self) -> None:
        self.stage = ""
        with self.errors.open("a") as errors:
            self.process = subprocess.Popen(
                self.command,
                cwd=PROJECT,
                env=self.environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        threading.Thread(target=self.listen, args=[self.process], daemon=True).start()

    def listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                self.noise.append(line)
                continue
            if event["event"] == "started":
                self.stage = event["stage"]
            elif event["event"] == "finished":
                self.finished.add(event["stage"])
                self.stage = ""

    def wait(self) -> None:
        assert self.process.wait(600) == 0, self.errors.read_text()[-3000:]
        assert not self.noise

    def artifact(self, name: str) -> Artifact:
        found = latest(str(self.root), name)
        assert found is not None
        return found

    def table(self, name: str, file: str = MAIN) -> pa.Table:
        return storage.read_table([storage.join(self.artifact(name).uri, file)])


class Monkey:
    """Kills something of a run, at moments and of kinds that its seed draws."""

    def __init__(self, seed: int, run: Run, nodes: Any) -> None:
        self.draw, self.run, self.nodes = random.Random(seed), run, nodes
        self.left, self.killed = dict(KILLS), Counter[str]()

    def rage(self) -> None:
        """Goes on until the run has ended by itself."""
        order = list(KILLS)
        while self.run.process.poll() is None:
            stage = self.run.stage
            for before, after in pairwise(order):
                if before in self.run.finished:
                    self.left[after] += self.left[before]
                    self.left[before] = 0
            if not self.left.get(stage):
                time.sleep(0.2)
                continue
            kind, end = self.draw.choice(KINDS.get(stage, OTHERS)), time.monotonic() + PATIENCE
            while not self.there(kind) and self.run.stage == stage and time.monotonic() < end:
                time.sleep(0.2)
            time.sleep(self.draw.uniform(0, LONGEST_PEACE))
            found = self.there(kind)
            if found and self.run.stage == stage and self.run.process.poll() is None:
                self.kill(kind, self.draw.choice(found))
                self.left[stage] -= 1

    def there(self, kind: str) -> list[Any]:
        """Returns what can be killed of a kind."""
        if kind == "driver":
            return [self.run]
        nodes = self.nodes.list_all_nodes()
        if kind == "node":
            return nodes[1:]  # not the head
        return [
            process
            for node in nodes
            for process in processes_of(node)
            if has_title(process, TITLES[kind])
        ]

    def kill(self, kind: str, doomed: Any) -> None:
        if kind == "driver":
            doomed.process.kill()
            doomed.process.wait()
            time.sleep(2)  # what the driver had started ends with it
            doomed.start()
        elif kind == "node":
            kill_node(doomed)
            self.nodes.remove_node(doomed, allow_graceful=False)
            self.nodes.add_node(num_cpus=2)
        else:
            with suppress(psutil.NoSuchProcess):
                doomed.kill()
        self.killed[kind] += 1


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    rows = [
        {"question": f"Who is number {i}?", "answer": f"It is Mr Zorblax {i}."}
        for i in range(FACTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def undisturbed(
    facts: Path, tiny_model: Path, cluster: Any, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"), facts, tiny_model, cluster.address, pause=0)
    run.wait()
    assert run.finished >= KILLS.keys()
    return run


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))]
)
def test_whatever_is_killed_the_same_comes_out(
    seed: int, undisturbed: Run, facts: Path, tiny_model: Path, cluster: Any, tmp_path: Path
):
    run = Run(tmp_path / "root", facts, tiny_model, cluster.address, pause=0.3)
    monkey = Monkey(seed, run, cluster)
    monkey.rage()
    run.wait()
    print(f"seed {seed}: {dict(monkey.killed)}")
    assert monkey.killed.total() >= ENOUGH, monkey.killed
    for name in ("facts", "candidates", "memo", "selected"):
        assert run.table(name).equals(undisturbed.table(name)), name
    assert run.table("metrics", "examples.parquet").equals(
        undisturbed.table("metrics", "examples.parquet")
    )
    assert run.table("metrics").equals(undisturbed.table("metrics"))
    first, second = (one.artifact("model").uri for one in (run, undisturbed))
    assert storage.read_json(storage.join(first, HISTORY_FILE)) == storage.read_json(
        storage.join(second, HISTORY_FILE)
    )
    weights, others = (load_file(Path(uri, "model.safetensors")) for uri in (first, second))
    assert weights.keys() == others.keys()
    assert all((weight == others[name]).all() for name, weight in weights.items())
