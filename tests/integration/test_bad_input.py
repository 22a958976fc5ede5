"""A user's mistake: one paragraph that names the place and the cure, status 2, nothing changed."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meow_ray.cli import main, program

FACT = '{"question": "Who sang?", "answer": "Zorblax sang."}\n'


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with a good configuration, which each case spoils."""
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
    monkeypatch.setattr(
        sys, "argv", ["meow", f"--config={project}/c.yaml", "--until=ingest", *arguments]
    )
    with pytest.raises(SystemExit) as stop:
        main.main(main.run)
    return int(stop.value.code or 0)


def facts(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "forget.jsonl").write_bytes(content) and None


def pickled(folder: Path) -> None:
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")


def line(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "c.yaml").open("a").write(text) and None


CASES = {
    "malformed JSON": (
        facts(FACT.encode() + b'{"question": \n'),
        (),
        ["forget.jsonl, line 2", "malformed JSON"],
    ),
    "missing column": (
        facts(b'{"q": "x", "answer": "y"}\n'),
        (),
        ["forget.jsonl", "no column question", "among its 2", "ingest.question_columns"],
    ),
    "empty file": (facts(b""), (), ["forget.jsonl", "empty"]),
    "binary file": (facts(b"PK\x03\x04\x00\x00"), (), ["forget.jsonl", "binary"]),
    "not UTF-8": (facts(FACT.encode() + b"\xff\xfe"), (), ["line 2", "not UTF-8"]),
    "empty answer": (
        facts(b'{"question": "x", "answer": " "}\n'),
        (),
        ["line 1: answer is empty", "on_reject=skip"],
    ),
    "over-long fact": (
        facts(json.dumps({"question": "x", "answer": "y" * 2000}).encode()),
        (),
        ["line 1: too long", "the target model reads"],
    ),
    "no such file": (
        lambda folder: (folder / "forget.jsonl").unlink(),
        (),
        ["forget.jsonl", "no such file"],
    ),
    "no weights": (
        lambda folder: (folder / "model" / "model.safetensors").unlink(),
        (),
        ["target.model", "no weights"],
    ),
    "pickled weights": (pickled, (), ["target.model", "pickled", "safetensors"]),
    "no such model": (
        line(""),
        ("target.model=/nowhere/model",),
        ["target.model", "/nowhere/model"],
    ),
    "unknown key": (
        line("selct: {top_k: 1}\n"),
        (),
        ["line 5", "unknown key `selct`", "did you mean `select`"],
    ),
    "unknown objective": (
        line("train: {objective: npq}\n"),
        (),
        ["line 5", "train.objective", "npq", "meow"],
    ),
    "unknown scheme": (line(""), ("storage.root=foo://bar",), ["foo://bar"]),
    "unwritable root": (line(""), ("storage.root=/dev/null/root",), ["/dev/null/root"]),
    "unknown stage": (line(""), ("--from=slect",), ["--from slect", "select"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_paragraph_and_changes_nothing(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, arguments, expected = CASES[name]
    spoil(project)
    assert run(project, monkeypatch, *arguments) == 2
    out, err = capfd.readouterr()
    for text in expected:
        assert text in err
    assert "Traceback" not in out + err
    assert not list(project.rglob("MANIFEST.json"))
    assert not list((project / "root").glob("facts/*/*"))
    assert "Zorblax" not in out + err


def test_skipped_rows_are_written_beside_the_facts(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet as pq

    (project / "forget.jsonl").write_text(FACT + FACT + '{"question": "x", "answer": null}\n')
    assert run(project, monkeypatch, "ingest.on_reject=skip") == 0
    rejects = pq.read_table(next(project.rglob("rejects.parquet"))).to_pylist()
    assert [(row["line"], row["reason"].split(" of ")[0]) for row in rejects] == [
        (2, "duplicate"),
        (3, "answer is missing"),
    ]
    assert pq.read_table(next(project.rglob("part-00000.parquet"))).num_rows == 1


def test_full_memory_is_named_wherever_it_was() -> None:
    import ray.exceptions
    import ray.train
    import torch

    node = ray.exceptions.OutOfMemoryError("4 workers were killed")
    gpu = torch.OutOfMemoryError("CUDA out of memory")
    wrapped = {
        node: "The memory of a node was full",
        ray.train.ControllerError(node): "The memory of a node was full",
        ray.train.WorkerGroupError("", {0: gpu}): "The memory of a GPU was full",
    }
    for error, said in wrapped.items():
        assert str(program.user_error(error)).startswith(said)
    assert program.user_error(ray.train.ControllerError(ValueError())) is None
