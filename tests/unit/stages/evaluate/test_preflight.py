"""What `evaluate` would refuse only after training is found before the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from meow_ray.core.manifest import Artifact
from meow_ray.pipeline import preflight
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.evaluate.stage import EVALUATE
from meow_ray.stages.inputs import TARGET
from tests.support.models import llama_config, write_model


@pytest.fixture
def folder(tiny_tokenizer: Any, tmp_path: Path) -> Path:
    write_model(tmp_path / "model", tiny_tokenizer, llama_config())
    return tmp_path


def findings(folder: Path, *overrides: str) -> list[str]:
    """Returns what is found with the inputs that a configuration names."""
    settings = [f"target.model={folder}/model", "target.max_model_len=64", *overrides]
    config = load_config(None, settings)
    known: dict[str, Artifact] = {"target": TARGET.resolve(config, False)}
    for entry in EVALUATE.declared_inputs(config):
        if not isinstance(entry, str) and entry.name != "target":
            known[entry.name] = entry.resolve(config, False)
    return preflight.findings(config, [EVALUATE], known)


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **columns}


def test_long_rows_of_sets_are_named_by_file_and_line(folder: Path):
    # <s> <|user|> Who? <|end|> <|assistant|> are 8 tokens, </s> is one, and one is generated
    path = write_rows(folder / "h.jsonl", row("Who?", "A" * 54), row("Who?", "A" * 55))
    assert findings(folder, f"evaluate.sets.holdout={path}") == [
        "evaluate.sets.holdout: 1 row is longer with the prompt than the 63 tokens that "
        f"target.max_model_len allows: {path}, line 2 (64 tokens). Shorten or remove these rows, "
        "or set target.max_model_len=65."
    ]


@pytest.mark.parametrize(
    "columns",
    [
        {"paraphrased_answer": "A" * 60, "perturbed_answer": ["A"]},
        {"paraphrased_answer": "A", "perturbed_answer": ["A", "A" * 60]},
        {"paraphrased_question": "A" * 60},
    ],
)
def test_the_other_answers_and_questions_of_a_row_count(folder: Path, columns: dict[str, Any]):
    path = write_rows(folder / "h.jsonl", row("Who?", "A", **columns))
    (fault,) = findings(folder, f"evaluate.sets.holdout={path}")
    assert "1 row is longer with the prompt" in fault


def test_a_long_system_message_is_blamed_and_not_the_rows(folder: Path):
    path = write_rows(folder / "h.jsonl", row("Who?", "A"))
    system = f"target.system={'x' * 60}"
    (fault,) = findings(folder, f"evaluate.sets.holdout={path}", system)
    assert fault.endswith(
        "Shorten `target.system` or `target.template`, which add 66 tokens to each question, or "
        "set target.max_model_len=73."
    )


def test_all_sets_are_read_although_one_cannot_be(folder: Path):
    passages = folder / "passages.json"
    passages.write_text('["A passage.", "Another."]')
    long = write_rows(folder / "long.jsonl", row("Who?", "A" * 70))
    first, second = findings(
        folder, f"evaluate.sets.holdout={passages}", f"evaluate.sets.more={long}"
    )
    assert first == (
        f"{passages}, line 1: expected an object with a question and an answer (got str). Write "
        "one object per fact. Passages without questions belong in `evaluate.text`."
    )
    assert second.startswith("evaluate.sets.more: 1 row is longer")


def test_long_passages_are_named(folder: Path):
    path = folder / "text.txt"
    # <s> and 62 letters are the most; one token is generated
    path.write_text(f"{'a' * 40} {'b' * 21}\n{'a' * 40} {'b' * 22}\n")
    (fault,) = findings(folder, f"evaluate.text={path}")
    assert f"{path}, passage 2 (" in fault
    assert "1 row is longer" in fault


def test_the_retain_model_must_be_a_decoder(folder: Path, tiny_tokenizer: Any):
    bert = llama_config(model_type="bert", architectures=["BertForMaskedLM"])
    write_model(folder / "bert", tiny_tokenizer, bert)
    (fault,) = findings(folder, f"evaluate.retain_model={folder}/bert")
    assert fault.startswith(f"`evaluate.retain_model`: {folder}/bert is a BertForMaskedLM")
