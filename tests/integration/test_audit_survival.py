"""A killed driver of the stage `audit` goes on where it was, and no row is there twice."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, latest
from meow_ray.core.schema import KEYS, SCHEMAS
from tests.support import counting
from tests.support.runs import PROJECT, wait_for

pytestmark = pytest.mark.slow

NUM_FACTS = 5
SETTINGS = (
    "target.engine=transformers",
    "audit.attacks=[direct,prefix,sampling]",
    "audit.samples=2",
    "audit.max_new_tokens=8",
    "audit.bootstrap_resamples=50",
    "resources.audit.num_actors=[1,1]",
    "resources.audit.cpus_per_actor=1",
    "resources.audit.batch_size=1",
)


@pytest.fixture(scope="module")
def start(
    cluster: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], subprocess.Popen[str]]:
    """Starts the stage on the cluster, in a storage root."""
    rows = [
        {
            "fact_id": f"{number:02}",
            "split": "forget",
            "question": f"Who is number {number}?",
            "answer": f"It is Mr Zorblax the {number}th.",
        }
        for number in range(NUM_FACTS)
    ]
    table = tmp_path_factory.mktemp("inputs") / "facts.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["facts"]), table)
    named = {"facts": table, "target": tiny_model, "model": tiny_model}
    command = [sys.executable, "-m", "tests.support.counting", "audit", *SETTINGS]
    command += [f"--input={name}={path}" for name, path in named.items()]

    def process(root: Path) -> subprocess.Popen[str]:
        root.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*command, f"storage.root={root}"],
            cwd=PROJECT,
            env=os.environ
            | {
                "RAY_ADDRESS": cluster.address,
                "PYTHONPATH": str(PROJECT),
                "RAY_AUTH_MODE": "disabled",
                counting.LOG: str(root / "prompts.log"),
                counting.PAUSE: "0.2",
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return process


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out[-3000:]
    return out


def committed(root: Path) -> set[str]:
    """Returns the ids of the questions whose answers are committed."""
    found: set[str] = set()
    for path in root.glob("work/**/commits/*.parquet"):
        if ".pending" not in path.name:
            found.update(pq.read_table(path)["row_id"].to_pylist())
    return found


def audit_rows(root: Path) -> list[dict[str, Any]]:
    artifact = latest(str(root), "audit")
    assert artifact is not None
    rows: list[dict[str, Any]] = pq.read_table(storage.join(artifact.uri, MAIN)).to_pylist()
    return rows


def test_a_killed_driver_goes_on(start: Callable[[Path], subprocess.Popen[str]], tmp_path: Path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    out = finish(start(undisturbed))
    assert "Zorblax" not in out
    prompts = counting.read_log(undisturbed / "prompts.log")
    # both models have the same content, so that one is asked for both
    assert len(prompts) == 5 * NUM_FACTS
    assert len({prompt.name for prompt in prompts}) == 4 * NUM_FACTS  # sampling asks as direct does

    process = start(disturbed)
    wait_for(process, lambda: len(committed(disturbed)) >= 4, timeout=400)
    process.kill()
    process.wait()
    done = len(committed(disturbed))
    assert done < len(prompts)
    finish(start(disturbed))
    rows = audit_rows(disturbed)
    assert rows == audit_rows(undisturbed)
    keys = [tuple(row[name] for name in KEYS["audit"]) for row in rows]
    assert len(keys) == len(set(keys)) == 2 * NUM_FACTS * 5
    in_flight = 4
    again = len(counting.read_log(disturbed / "prompts.log")) - len(prompts)
    assert 0 <= again <= in_flight
