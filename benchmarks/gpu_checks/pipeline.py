"""A whole run of the pipeline on a tiny model, as a user starts it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_checks import models
from benchmarks.gpu_checks.models import TINY
from benchmarks.gpu_checks.values import CheckError, Measurement, Setting
from benchmarks.host import PROJECT

NEEDS = ("ray", "deepspeed", "duckdb", "omegaconf", "pyarrow", "pydantic", "rouge_score_rs")
STAGES = ("ingest", "memo", "select", "train", "evaluate", "report")


def pipeline(setting: Setting) -> Iterator[Measurement]:
    """Runs `pipelines/meow.py` on a random tiny model, six facts and given inverted facts.

    The stages run under Ray: ingest, memo, select, train, evaluate and report. The engine is vLLM
    on a GPU where it is installed, and transformers otherwise.

    - s per stage, from the manifests.

    Raises:
        CheckError: the program fails, or a stage has no artifact.
    """
    folder = Path(setting.folder, "pipeline")
    folder.mkdir()
    config = _write_inputs(setting, folder)
    done = subprocess.run(
        [
            sys.executable,
            str(PROJECT / "pipelines" / "meow.py"),
            f"--config={config}",
            f"--input=candidates={folder}/candidates.jsonl",
            "--json",
        ],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = {}
    for path in sorted((folder / "root").rglob("MANIFEST.json")):
        manifest = json.loads(path.read_text())
        seconds[manifest["stage"]] = float(manifest["seconds"])
    for stage in STAGES:
        if stage in seconds:
            yield Measurement(stage, seconds[stage], "s")
    if done.returncode:
        raise CheckError(f"pipelines/meow.py ended with status {done.returncode}.")
    lacking = [stage for stage in STAGES if stage not in seconds]
    if lacking:
        raise CheckError(f"no artifact of {', '.join(lacking)}.")


def _write_inputs(setting: Setting, folder: Path) -> Path:
    """Writes facts, inverted facts and the configuration; returns the configuration's path."""
    texts = models.facts(6)
    for name, some in (("forget", texts[:3]), ("retain", texts[3:])):
        rows = [{"question": question, "answer": answer} for question, answer in some]
        _write_rows(folder / f"{name}.jsonl", rows)
    inverted = [
        {
            "question": question,
            "answer": answer,
            "inverted_answer": f"{answer.partition(' at ')[0]} in {place}.",
        }
        for question, answer in texts[:3]
        for place in ("a lighthouse", "the hills of another county", "a houseboat")
    ]
    _write_rows(folder / "candidates.jsonl", inverted)
    on_gpu = setting.device == "cuda"
    sections = {
        "target": {
            "model": str(models.saved(setting, TINY, "float32").folder),
            "engine": "vllm" if on_gpu and models.is_installed("vllm") else "transformers",
            "template": "{{ question }}\n",
            "max_model_len": 512,
        },
        "ingest": {
            "forget": str(folder / "forget.jsonl"),
            "retain": str(folder / "retain.jsonl"),
        },
        "memo": {"max_new_tokens": 12, "stride": 9},
        "select": {"top_k": 2},
        "train": {"objective": "meow", "epochs": 2, "batch_size": 2, "learning_rate": 1e-3},
        "evaluate": {"max_new_tokens": 12, "bootstrap_resamples": 50},
        "storage": {"root": str(folder / "root")},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(sections))  # JSON is YAML
    return path


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
