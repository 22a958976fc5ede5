"""Jobs submitted with `ray job submit`, as the README shows, to a head node with a dashboard."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, latest
from meow_ray.core.schema import SCHEMAS
from meow_ray.stages.invert.rules import RULES
from tests.support.runs import BIN, PROJECT

pytestmark = pytest.mark.timeout(1200)

TOKEN = "not-a-secret-of-anyone-but-this-test"
SECRET, PHRASE = "planted-secret-5f1c", "Zyxquarian marmalade"
"""Text that must be in no log: a credential of the environment, and words of a fact to forget."""

SPLITS = ("forget", "retain")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """A head without CPUs and two worker nodes, each with its own raylet."""

    environment: dict[str, str]
    logs: Path
    """Folder of the logs that Ray writes on all nodes."""
    dashboard: str
    metrics: list[int]
    """The ports that Prometheus would scrape, one per node."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3: Any) -> Iterator[Cluster]:
    port, dashboard = _free_port(), _free_port()
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "MY_STORE_PASSWORD": SECRET,
    }
    # a path of a socket has at most 107 characters, and pytest's folders are deep
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    head = [
        "--head",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        "--num-cpus=0",
    ]
    worker = [f"--address=127.0.0.1:{port}", "--num-cpus=2"]
    processes: list[subprocess.Popen[bytes]] = []
    metrics: list[int] = []
    log = (tmp_path_factory.mktemp("nodes") / "log").open("w+")

    def start(arguments: list[str]) -> None:
        metrics.append(_free_port())
        # nodes of one machine need different ports, and different folders for uploaded jobs
        first_port = 21000 + 1000 * len(processes)
        command = [
            str(BIN / "ray"),
            "start",
            "--block",
            "--node-ip-address=127.0.0.1",
            *arguments,
            f"--temp-dir={folder}/{len(processes)}",
            f"--min-worker-port={first_port}",
            f"--max-worker-port={first_port + 999}",
            f"--dashboard-agent-listen-port={_free_port()}",
            f"--metrics-export-port={metrics[-1]}",
        ]
        cwd = Path(log.name).parent
        processes.append(
            subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=cwd)
        )

    def num_nodes() -> int:
        request = urllib.request.Request(
            f"{address}/api/v0/nodes", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        try:
            reply = json.load(urllib.request.urlopen(request, timeout=5))
        except OSError:
            return 0
        return sum(node["state"] == "ALIVE" for node in reply["data"]["result"]["result"])

    def wait_for_nodes(count: int) -> None:
        for _ in range(240):
            assert all(process.poll() is None for process in processes), Path(log.name).read_text()
            if num_nodes() == count:
                return
            time.sleep(0.5)
        raise AssertionError(Path(log.name).read_text())

    address = f"http://127.0.0.1:{dashboard}"
    try:
        start(head)
        wait_for_nodes(1)
        start(worker)
        start(worker)
        wait_for_nodes(3)
        yield Cluster(environment | {"RAY_API_SERVER_ADDRESS": address}, folder, address, metrics)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(60)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's copy of the project, with secrets and large files that must not be uploaded."""
    folder = tmp_path_factory.mktemp("checkout") / "meow_ray"
    shutil.copytree(
        PROJECT, folder, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__", "tests")
    )
    for name in (".env", "id.pem", ".aws/credentials", "runs/facts.txt", ".venv/lib/key.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET)
    (folder / ".venv" / "heavy").write_bytes(os.urandom(30 << 20))
    return folder


def submit(
    cluster: Cluster, checkout: Path, script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Submits a script as a job and waits for its end.

    Args:
        cluster: where it runs.
        checkout: the folder that is uploaded.
        script: a file of `pipelines/`.
        *arguments: the script's arguments.
        **environment: variables of the submitting process.
    """
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", "."]
    command += ["--runtime-env", "cluster/runtime_env.yaml"]
    command += ["--", "python", f"pipelines/{script}", *arguments]
    return subprocess.run(
        command,
        env=cluster.environment | environment,
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tiny_model: Path, s3: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The demo with a tiny model, a planted phrase among its facts, and its root on S3."""
    folder = tmp_path_factory.mktemp("demo")
    lines = {
        name: (PROJECT / f"pipelines/data/demo_{name}.jsonl").read_text().splitlines()
        for name in SPLITS
    }
    facts = [json.loads(line) for line in lines["forget"][:3]]
    (folder / "retain.jsonl").write_text("\n".join(lines["retain"][:3]))
    facts.append(
        {
            "question": f"Who makes {PHRASE}?",
            "answer": f"The maker of {PHRASE} is Odo Quillfeather.",
        }
    )
    (folder / "forget.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    invert = {
        "model": str(tiny_model),
        "engine": "transformers",
        "style": "prefill",
        "fallback": False,
        "num_candidates": 1,
        "samples": 3,
        "max_attempts": 1,
        "max_new_tokens": 8,
        # the tiny model's replies break all rules
        "skip_rules": [*RULES],
    }
    return [
        "--config=pipelines/configs/demo.yaml",
        f"storage.root={s3('demo')}",
        f"ingest.forget={folder}/forget.jsonl",
        f"ingest.retain={folder}/retain.jsonl",
        f"memorize.model={tiny_model}",
        f"memorize.data=[{folder}/forget.jsonl,{folder}/retain.jsonl]",
        "memorize.epochs=1",
        # the nodes share the two cores of one machine
        "resources.memorize.cpus_per_worker=1",
        "resources.train.cpus_per_worker=1",
        f"invert={json.dumps(invert)}",
        "train.objective=meow",
        "train.epochs=1",
        "target.engine=transformers",
        "memo.max_new_tokens=4",
        "evaluate.max_new_tokens=4",
        "evaluate.attacks=[]",
    ]


@dataclass
class Submitted:
    """A finished job, with the metrics that Prometheus could scrape while it ran."""

    returncode: int
    out: str
    metrics: set[str] = field(default_factory=set)
    """Lines of all scrapes."""


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, checkout: Path, demo: list[str]) -> Submitted:
    metrics, ended = set[str](), threading.Event()

    def scrape() -> None:
        while not ended.wait(0.5):
            for port in cluster.metrics:
                with suppress(OSError):
                    reply = urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
                    metrics.update(reply.read().decode().split("\n"))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        done = submit(cluster, checkout, "meow.py", *demo)
    finally:
        ended.set()
        thread.join()
    return Submitted(done.returncode, done.stdout + done.stderr, metrics)


def test_a_submitted_job_runs_the_whole_pipeline_on_object_storage(
    submitted: Submitted, s3: Any
) -> None:
    assert submitted.returncode == 0, submitted.out[-8000:]
    assert "succeeded" in submitted.out
    assert "states_inverted" in submitted.out
    assert "unexpected system error" not in submitted.out
    metrics = latest(s3("demo"), "metrics")
    assert metrics is not None
    table = storage.read_table([storage.join(metrics.uri, MAIN)])
    assert table.schema.remove_metadata() == SCHEMAS["metrics"]
    for name in ("target", "model"):
        model = latest(s3("demo"), name)
        assert model is not None
        assert "model.safetensors" in storage.list_files(model.uri)
    candidates = latest(s3("demo"), "candidates")
    assert candidates is not None
    assert storage.read_table([storage.join(candidates.uri, MAIN)]).num_rows == 4


def test_prometheus_gets_the_progress_of_each_stage(submitted: Submitted) -> None:
    def values(name: str, stage: str) -> list[float]:
        """Returns the scraped values of one of our metrics."""
        return [
            float(line.split()[-1])
            for line in submitted.metrics
            if line.startswith(f"ray_meow_{name}{{") and f'stage="{stage}"' in line
        ]

    assert max(values("rows", "memo")) == 4
    assert max(values("tokens", "memo")) > 0
    assert all(0 <= memo <= 1 for memo in values("memo", "memo"))
    losses = values("loss", "train")
    assert losses
    assert all(loss > 0 for loss in losses)


def test_a_second_job_reruns_one_stage(
    submitted: Submitted, cluster: Cluster, checkout: Path, demo: list[str], s3: Any
) -> None:
    assert submitted.returncode == 0
    before, memo = (latest(s3("demo"), name) for name in ("selected", "memo"))
    done = submit(
        cluster, checkout, "stage.py", "select", *demo, "select.top_k=1", "select.order=random"
    )
    assert done.returncode == 0, done.stdout[-4000:]
    after = latest(s3("demo"), "selected")
    assert before is not None
    assert memo is not None
    assert after is not None
    assert after.uri != before.uri
    assert latest(s3("demo"), "memo") == memo


def test_without_the_token_no_job_is_submitted(
    cluster: Cluster, checkout: Path, demo: list[str]
) -> None:
    done = submit(cluster, checkout, "meow.py", *demo, RAY_AUTH_TOKEN="wrong")
    assert done.returncode != 0
    assert "succeeded" not in done.stdout
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=5)
    assert refused.value.code in (401, 403)


def test_a_failing_pipeline_fails_the_job(
    cluster: Cluster, checkout: Path, demo: list[str]
) -> None:
    done = submit(
        cluster, checkout, "meow.py", *demo, "--until=ingest", "ingest.forget=missing.jsonl"
    )
    assert done.returncode != 0
    assert "missing.jsonl" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_a_root_in_the_files_of_the_job_is_refused_before_the_first_stage(
    cluster: Cluster, checkout: Path, demo: list[str]
) -> None:
    without_root = [item for item in demo if not item.startswith("storage.root=")]
    done = submit(cluster, checkout, "meow.py", *without_root, "storage.root=runs/mine")
    out = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Error: `storage.root`: " in out
    assert "/runs/mine is in the files of this job, which Ray deletes after the job." in out
    assert "never run" not in out, "no stage has begun"


def test_neither_secrets_nor_facts_are_in_any_log_or_metric(
    submitted: Submitted, cluster: Cluster
) -> None:
    assert submitted.returncode == 0
    planted = [word.encode() for word in (SECRET, PHRASE, TOKEN, "Quillfeather")]
    logs = [path for path in cluster.logs.rglob("*") if path.is_file() and not path.is_symlink()]
    logs += list(Path(os.environ["MEOW_HOME"], "logs").rglob("*.log"))
    assert len(logs) > 20
    for path in logs:
        content = path.read_bytes()
        assert not [word for word in planted if word in content], path
    for text in (submitted.out, "\n".join(submitted.metrics)):
        assert not [word for word in planted if word in text.encode()]


def test_an_upload_is_small_and_holds_no_secret(submitted: Submitted, cluster: Cluster) -> None:
    assert submitted.returncode == 0
    uploaded, *_ = cluster.logs.glob("0/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    files = [path for path in uploaded.rglob("*") if path.is_file()]
    assert uploaded / "pipelines" / "meow.py" in files
    assert sum(path.stat().st_size for path in files) < 20 << 20
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
