"""`ray job submit` as the README shows it, to a real head node with its dashboard."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.schema import SCHEMAS
from meow_ray.stage import MAIN, latest
from tests.runs import PROJECT

BIN = Path(sys.executable).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node of its own; yields the environment that submits to it."""
    port, dashboard = _free_port(), _free_port()
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=4"]
    command += [f"--temp-dir={tmp_path_factory.mktemp('ray')}", "--dashboard-agent-listen-port", str(_free_port())]
    log = (tmp_path_factory.mktemp("head") / "log").open("w+")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=log.name.rpartition("/")[0])
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            assert process.poll() is None, Path(log.name).read_text()
            try:
                urllib.request.urlopen(f"{address}/api/jobs/", timeout=2).read()
                break
            except OSError:
                time.sleep(0.5)
        yield environment | {"RAY_API_SERVER_ADDRESS": address}
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def submit(head: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--runtime-env", "cluster/runtime_env.yaml"]
    command += ["--", "python", "pipelines/meow.py", "--config", "pipelines/configs/demo.yaml", *arguments]
    return subprocess.run(command, env=head, cwd=PROJECT, capture_output=True, text=True, timeout=600, check=False)


def test_a_submitted_job_runs_the_pipeline(head: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    lines = (PROJECT / "pipelines/data/demo_forget.jsonl").read_text().splitlines()
    facts = pa.Table.from_pylist([json.loads(line) for line in lines])
    inverted = facts.append_column("inverted_answer", pa.array(["It is somewhere else."] * facts.num_rows))
    pq.write_table(inverted, tmp_path / "candidates.parquet")
    done = submit(
        head,
        f"--input=candidates={tmp_path}/candidates.parquet",
        f"storage.root={tmp_path}/root",
        f"memorize.model={tiny_model}",
        "memorize.epochs=1",
        "train.epochs=1",
        "target.engine=transformers",
        "memo.max_new_tokens=4",
        "evaluate.max_new_tokens=4",
        "evaluate.sample=2",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "succeeded" in done.stdout + done.stderr
    assert "states_inverted" in done.stdout
    metrics = latest(str(tmp_path / "root"), "metrics")
    assert metrics is not None
    assert pq.read_table(f"{metrics.uri}/{MAIN}").schema.remove_metadata() == SCHEMAS["metrics"]


def test_a_failing_pipeline_fails_the_job(head: dict[str, str], tmp_path: Path) -> None:
    done = submit(head, f"storage.root={tmp_path}/root", "--until=ingest", "memorize.data=[missing.jsonl]")
    assert done.returncode != 0
    assert "missing.jsonl" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout
