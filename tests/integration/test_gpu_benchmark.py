"""The GPU benchmark from end to end on the CPU, with hidden packages, in its reduced form."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.runs import PROJECT

HIDDEN = ("ray", "vllm", "deepspeed", "bitsandbytes", "pyarrow", "tenacity", "duckdb", "peft")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the command prints and writes where the packages of `HIDDEN` are not installed."""
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    paths = [str(PROJECT / "tests" / "support" / "hiding"), str(PROJECT)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--minutes", "14", "--out", str(path)],
        cwd=PROJECT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HIDDEN_PACKAGES": ",".join(HIDDEN),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.fixture(scope="module")
def checks(run: tuple[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {check["check"]: check for check in run[1]["checks"]}


def values(check: dict[str, Any]) -> dict[str, Any]:
    return {found["name"]: found["value"] for found in check["measurements"]}


@pytest.mark.slow
def test_the_run_says_that_it_is_reduced_and_what_is_missing(run: tuple[str, dict[str, Any]]):
    printed, document = run
    assert document["device"] == "cpu, reduced"
    assert "Device: cpu, reduced" in printed
    assert set(HIDDEN) <= set(document["not_installed"])
    for name in HIDDEN[:3]:
        assert name in printed.partition("Not installed: ")[2].replace("\n", " ")


@pytest.mark.slow
def test_each_check_has_run_or_names_what_it_lacks(checks: dict[str, dict[str, Any]]):
    found = {name: (check["status"], check["detail"]) for name, check in checks.items()}
    passed, no_gpu = ("passed", ""), ("no GPU", "needs a CUDA device")
    no_vllm = ("missing", "vllm, pyarrow, tenacity")
    assert found == {
        "limits": passed,
        "parity transformers float32": passed,
        "parity transformers bfloat16": passed,
        "parity training": passed,
        "memo transformers": ("missing", "pyarrow"),
        "training": passed,
        "parity vllm float32": no_vllm,
        "memo vllm": no_vllm,
        "zero": ("missing", "deepspeed, pyarrow, tenacity"),
        "rates transformers 1B": passed,
        "rates vllm 1B": no_vllm,
        "pipeline": ("missing", "ray, deepspeed, duckdb, pyarrow"),
        "quantised": no_gpu,
        "rates transformers 8B": no_gpu,
        "rates vllm 8B": no_gpu,
        "parity vllm bfloat16": no_vllm,
    }


@pytest.mark.slow
def test_the_engine_agrees_with_plain_transformers(checks: dict[str, dict[str, Any]]):
    assert values(checks["parity transformers float32"])["greedy continuations equal"] == 1.0
    differing = values(checks["parity transformers bfloat16"])
    assert differing["mean difference of log-probabilities"] > 1e-4
    memo = values(checks["memo transformers"])
    assert memo["continuations equal"] == 1.0
    assert memo["bare engine against the plain loop"] > 0


@pytest.mark.slow
def test_training_runs_in_each_way_that_is_installed(checks: dict[str, dict[str, Any]]):
    training = values(checks["training"])
    for way in ("packed", "padded", "checkpointing"):
        assert training[way] > 0
    assert training["packed, leak between pairs"] < 0.05
    assert training["LoRA"] is None
    (lora,) = (f for f in checks["training"]["measurements"] if f["name"] == "LoRA")
    assert lora["note"] == "missing: peft"
