"""Mistakes of users: one paragraph with place, value and cure, exit status 2, nothing written."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from meow_ray.cli import main
from meow_ray.core.manifest import MAIN, REJECTS_FILE
from meow_ray.distributed.failures import user_error
from tests.support.hub import card, write_repository

FACT = '{"question": "Who sang?", "answer": "Zorblax sang."}\n'


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with a valid configuration, into which each case puts a mistake."""
    (tmp_path / "forget.jsonl").write_text(FACT)
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "c.yaml").write_text(
        f"target: {{model: {tmp_path}/model}}\n"
        f"invert: {{model: {tmp_path}/model}}\n"
        f"ingest: {{forget: {tmp_path}/forget.jsonl}}\n"
        f"storage: {{root: {tmp_path}/root}}\n"
    )
    return tmp_path


def run(project: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the stage `ingest` by the command line; returns the exit status."""
    command = ["meow", f"--config={project}/c.yaml", "--until=ingest", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main.main(main.run)
    return int(stop.value.code or 0)


# --- mistakes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A mistake, and the parts of the message that must be there: place, value, cure."""

    parts: tuple[str, ...]
    """Compared without regard to case."""
    spoil: Callable[[Path], object] = lambda folder: None
    """Puts the mistake into the project."""
    arguments: tuple[str, ...] = ()


def facts(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "forget.jsonl").write_bytes(content)


def config_line(text: str) -> Callable[[Path], object]:
    def append(folder: Path) -> None:
        with (folder / "c.yaml").open("a") as file:
            file.write(text)

    return append


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")


def workbook() -> bytes:
    """Returns the beginning of what Excel saves."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return content.getvalue()


LONG_FACT = json.dumps({"question": "x", "answer": "y" * 2000}).encode()

CASES = {
    "malformed JSON": Case(
        spoil=facts(FACT.encode() + b'{"question": \n'),
        parts=("forget.jsonl, line 2", "malformed JSON"),
    ),
    "missing column": Case(
        spoil=facts(b'{"q": "x", "answer": "y"}\n'),
        parts=("forget.jsonl", "column", "question", "ingest.question_columns"),
    ),
    "empty file": Case(spoil=facts(b""), parts=("forget.jsonl", "empty")),
    "binary file": Case(spoil=facts(b"\x00\x01\x02"), parts=("forget.jsonl", "binary")),
    "workbook": Case(spoil=facts(workbook()), parts=("forget.jsonl", "Excel", "CSV UTF-8")),
    "semicolons": Case(
        spoil=facts(b"Frage;Antwort\nWer?;Sie.\n"),
        parts=("forget.jsonl", "column question among its 2", "ingest.question_columns"),
    ),
    "not UTF-8": Case(
        spoil=facts(FACT.encode() + b"\xff\xfe"), parts=("forget.jsonl, line 2", "UTF-8")
    ),
    "empty answer": Case(
        spoil=facts(b'{"question": "x", "answer": " "}\n'),
        parts=("forget.jsonl, line 1", "answer is empty", "on_reject=skip"),
    ),
    "over-long fact": Case(spoil=facts(LONG_FACT), parts=("forget.jsonl, line 1", "too long")),
    "Windows code page": Case(
        spoil=facts("question,answer\nWo?,München.\n".encode("windows-1252")),
        parts=("forget.jsonl, line 2", "windows-1252", "CSV UTF-8", "ingest.encoding"),
    ),
    "web page": Case(spoil=facts(b"<!DOCTYPE html>"), parts=("forget.jsonl", "web page")),
    "chat of several turns": Case(
        spoil=facts(b'{"messages": [{"role": "user", "content": "Who?"}]}'),
        parts=("forget.jsonl, line 1", "1 messages", "one message of the user"),
    ),
    "choices": Case(
        spoil=facts(b'{"question": "Who?", "choices": ["a", "b"], "answer": 1}'),
        parts=("forget.jsonl, line 1", "not a text but int", "text of the choice"),
    ),
    "folder without data": Case(
        spoil=lambda folder: (folder / "empty").mkdir(),
        arguments=("ingest.forget=empty",),
        parts=("empty", "no data file"),
    ),
    "no such file": Case(spoil=without("forget.jsonl"), parts=("forget.jsonl", "no such file")),
    "no weights": Case(
        spoil=without("model/model.safetensors"),
        parts=("target.model", "no weights", "safetensors"),
    ),
    "pickled weights": Case(spoil=pickle_weights, parts=("target.model", "pickled", "safetensors")),
    "no such model": Case(
        arguments=("target.model=/nowhere/model",), parts=("target.model", "/nowhere/model")
    ),
    "unknown key": Case(
        spoil=config_line("selct: {top_k: 1}\n"),
        parts=("c.yaml, line 5", "unknown key `selct`", "did you mean `select`"),
    ),
    "renamed key": Case(
        spoil=config_line("evaluate: {reference: some/model}\n"),
        parts=("c.yaml, line 5", "`evaluate.reference`", "use `evaluate.retain_model`"),
    ),
    "unknown objective": Case(
        spoil=config_line("train: {objective: npq}\n"),
        parts=("c.yaml, line 5", "train.objective", "npq", "meow"),
    ),
    "unknown scheme": Case(arguments=("storage.root=foo://bar",), parts=("foo://bar",)),
    "unwritable root": Case(arguments=("storage.root=/dev/null/root",), parts=("/dev/null/root",)),
    "unknown stage": Case(arguments=("--from=slect",), parts=("--from slect", "select")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_paragraph_and_nothing_is_written(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    case.spoil(project)
    monkeypatch.chdir(project)
    assert run(project, monkeypatch, *case.arguments) == 2
    out, err = capfd.readouterr()
    for part in case.parts:
        assert part.lower() in err.lower()
    assert "Traceback" not in out + err
    assert "Zorblax" not in out + err, "messages never contain text of facts"
    assert not list(project.rglob("MANIFEST.json"))
    assert not list((project / "root").glob("facts/*/*"))


def test_a_hub_dataset_without_a_network_is_read_from_the_cache_or_refused(project: Path) -> None:
    import pyarrow.parquet as pq

    command = [
        sys.executable,
        str(Path(__file__).parents[2] / "pipelines" / "meow.py"),
        f"--config={project}/c.yaml",
        "--until=ingest",
        "ingest.forget={path: my-org/facts, subset: people}",
    ]
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(project / "hf")}
    environment = os.environ | hub
    files = {"README.md": card(people="people.jsonl"), "people.jsonl": FACT.encode()}

    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert done.returncode == 2
    assert "my-org/facts: there is no such file" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

    write_repository(project / "hf" / "hub", "my-org/facts", "a" * 40, files)
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(next(project.rglob(MAIN)))["question"].to_pylist() == ["Who sang?"]


def test_skipped_rows_are_written_next_to_the_facts(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet as pq

    (project / "forget.jsonl").write_text(FACT + FACT + '{"question": "x", "answer": null}\n')
    assert run(project, monkeypatch, "ingest.on_reject=skip") == 0
    rejects = pq.read_table(next(project.rglob(REJECTS_FILE))).to_pylist()
    assert [row["line"] for row in rejects] == [2, 3]
    assert "duplicate" in rejects[0]["reason"]
    assert "answer is missing" in rejects[1]["reason"]
    assert pq.read_table(next(project.rglob(MAIN))).num_rows == 1


# --- memory -------------------------------------------------------------------------------------


def test_a_lack_of_memory_is_named_inside_the_errors_of_ray() -> None:
    import ray.exceptions
    import ray.train
    import torch

    node = ray.exceptions.OutOfMemoryError("4 workers were killed")
    gpu = torch.OutOfMemoryError("CUDA out of memory")
    expected = {
        node: ("node", "memory", "actors"),
        ray.train.ControllerError(node): ("node", "memory", "actors"),
        ray.train.WorkerGroupError("", {0: gpu}): ("GPU", "memory", "zero_stage"),
    }
    for error, parts in expected.items():
        for part in parts:
            assert part in str(user_error(error))
    assert user_error(ray.train.ControllerError(ValueError())) is None
