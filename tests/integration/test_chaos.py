"""A whole run gives the same results although actors, workers, tasks, nodes and drivers die."""

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
from meow_ray.core.manifest import EXAMPLES_FILE, MAIN, Artifact, latest
from meow_ray.models.folders import HISTORY_FILE
from meow_ray.stages.invert.rules import RULES
from tests.support import counting
from tests.support.runs import PROJECT, has_title, kill_node, processes_of

STAGES = ("invert", "memo", "train", "evaluate")
"""The stages in which parts are killed."""
FEW, MANY = 2, 7
"""Number of kills in each stage; those that a stage escapes are added to the next one."""
ESCAPED = 3
"""The most kills that a run may escape, because its last stage has ended."""
MAX_PAUSE = 3.0
"""The longest time between the start of a victim and its kill, in seconds."""
MAX_WAIT = 30.0
"""The longest wait for a victim to start, in seconds."""
TITLES = {"actor": "ray::MapWorker", "worker": "RayTrainWorker", "task": "ray::_apply"}
"""Titles of the processes of each kind of victim."""
ENGINE_VICTIMS = ("driver", "node", "actor", "task")
TRAINING_VICTIMS = ("driver", "node", "worker")
FACTS = 12


class Run:
    """A run of the pipeline over one storage root, with the events that it prints."""

    def __init__(self, root: Path, facts: Path, model: Path, address: str, pause: float) -> None:
        self.root = root
        self.stage = ""
        """The stage that runs now."""
        self.finished = set[str]()
        self.other_lines: list[str] = []
        """Printed lines that are no events."""
        root.mkdir(parents=True, exist_ok=True)
        self.errors = root / "errors.log"
        self.command = [sys.executable, "-m", "tests.support.counting", "run", "--json"]
        self.command.append(f"storage.root={root}")
        for key, value in _settings(facts, str(model)).items():
            self.command.append(f"{key}={json.dumps(value) if isinstance(value, dict) else value}")
        self.environment = os.environ | {
            "RAY_ADDRESS": address,
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(PROJECT),
            counting.LOG: str(root / "prompts.log"),
            counting.PAUSE: str(pause),
        }
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
        """Follows the events of a driver."""
        assert process.stdout
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                self.other_lines.append(line)
                continue
            if event["event"] == "started":
                self.stage = event["stage"]
            elif event["event"] == "finished":
                self.finished.add(event["stage"])
                self.stage = ""

    def wait(self) -> None:
        """Waits for the end of the run, which must succeed and print only events."""
        assert self.process.wait(600) == 0, self.errors.read_text()[-3000:]
        assert not self.other_lines

    def artifact(self, name: str) -> Artifact:
        artifact = latest(str(self.root), name)
        assert artifact is not None
        return artifact

    def table(self, name: str, file: str = MAIN) -> pa.Table:
        return storage.read_table([storage.join(self.artifact(name).uri, file)])


def _settings(facts: Path, model: str) -> dict[str, Any]:
    """Returns the configuration of a small run."""
    engine_resources = {
        "num_actors": [1, 2],
        "cpus_per_actor": 1,
        "batch_size": 1,
        "cpu_tasks": True,
    }
    return {
        "ingest.forget": facts,
        "target": {"model": model, "engine": "transformers", "template": "{{ question }}\n"},
        "invert": {
            "model": model,
            "engine": "transformers",
            "style": "prefill",
            "fallback": False,
            "num_candidates": 2,
            "samples": 3,
            "max_attempts": 1,
            "max_new_tokens": 8,
            "skip_rules": [*RULES],
        },
        "memo": {"max_new_tokens": 8, "stride": 7},
        "train": {"objective": "meow", "epochs": 8, "batch_size": 4, "learning_rate": 1e-3},
        "evaluate": {"max_new_tokens": 8, "attacks": [], "bootstrap_resamples": 100},
        "resources.train": {"num_workers": 2, "max_failures": 99},
        **{f"resources.{name}": engine_resources for name in ("invert", "memo", "evaluate")},
    }


class Monkey:
    """Kills parts of a run, at times and of kinds that its seed draws."""

    def __init__(self, seed: int, kills: int, run: Run, nodes: Any) -> None:
        self.draw = random.Random(seed)
        self.run = run
        self.nodes = nodes
        self.left = dict.fromkeys(STAGES, kills)
        """Kills that are left in each stage."""
        self.killed = Counter[str]()

    def rage(self) -> None:
        """Kills until the run has ended by itself."""
        while self.run.process.poll() is None:
            self.carry_over()
            stage = self.run.stage
            if self.left.get(stage):
                self.kill_in(stage)
            else:
                time.sleep(0.2)

    def carry_over(self) -> None:
        """Moves the kills that finished stages have escaped to the next stage."""
        for stage, next_stage in pairwise(STAGES):
            if stage in self.run.finished:
                self.left[next_stage] += self.left[stage]
                self.left[stage] = 0

    def kill_in(self, stage: str) -> None:
        """Waits for a victim of a drawn kind and for a drawn time, and kills it."""
        kind = self.draw.choice(TRAINING_VICTIMS if stage == "train" else ENGINE_VICTIMS)
        deadline = time.monotonic() + MAX_WAIT
        while not self.victims(kind) and self.run.stage == stage and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(self.draw.uniform(0, MAX_PAUSE))
        victims = self.victims(kind)
        if victims and self.run.stage == stage and self.run.process.poll() is None:
            self.kill(kind, self.draw.choice(victims))
            self.left[stage] -= 1

    def victims(self, kind: str) -> list[Any]:
        """Returns the running parts of a kind."""
        if kind == "driver":
            return [self.run]
        nodes = self.nodes.list_all_nodes()
        if kind == "node":
            return nodes[1:]  # without the head
        return [
            process
            for node in nodes
            for process in processes_of(node)
            if has_title(process, TITLES[kind])
        ]

    def kill(self, kind: str, victim: Any) -> None:
        """Kills a part; starts a driver or a node again."""
        if kind == "driver":
            victim.process.kill()
            victim.process.wait()
            time.sleep(2)  # the cluster then ends the driver's actors and tasks
            victim.start()
        elif kind == "node":
            kill_node(victim)
            self.nodes.remove_node(victim, allow_graceful=False)
            self.nodes.add_node(num_cpus=2)
        else:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
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
    assert run.finished >= set(STAGES)
    return run


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("seed", "kills"),
    [(0, FEW), *(pytest.param(seed, MANY, marks=pytest.mark.slow) for seed in range(10))],
)
def test_a_run_with_kills_gives_the_same_results(
    seed: int,
    kills: int,
    undisturbed: Run,
    facts: Path,
    tiny_model: Path,
    cluster: Any,
    tmp_path: Path,
):
    run = Run(tmp_path / "root", facts, tiny_model, cluster.address, pause=0.3)
    monkey = Monkey(seed, kills, run, cluster)
    monkey.rage()
    run.wait()
    print(f"seed {seed}: {dict(monkey.killed)}")
    assert monkey.killed.total() >= len(STAGES) * kills - ESCAPED, monkey.killed
    for name in ("facts", "candidates", "memo", "selected", "metrics"):
        assert run.table(name).equals(undisturbed.table(name)), name
    examples = undisturbed.table("metrics", EXAMPLES_FILE)
    assert run.table("metrics", EXAMPLES_FILE).equals(examples)
    model, expected_model = run.artifact("model").uri, undisturbed.artifact("model").uri
    history, expected_history = (
        storage.read_json(storage.join(uri, HISTORY_FILE)) for uri in (model, expected_model)
    )
    assert history == expected_history
    weights, expected_weights = (
        load_file(Path(uri, "model.safetensors")) for uri in (model, expected_model)
    )
    assert weights.keys() == expected_weights.keys()
    assert all((weight == expected_weights[name]).all() for name, weight in weights.items())
