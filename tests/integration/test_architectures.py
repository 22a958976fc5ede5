"""A tiny model of each architecture memorises facts, forgets some, and is loaded again."""

import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import meow_ray
from meow_ray.core.manifest import latest
from meow_ray.distributed import cluster
from meow_ray.models import folders
from meow_ray.models.folders import HISTORY_FILE
from meow_ray.models.prompts import IGNORE, Prompter
from tests.support.runs import Program
from tests.support.tiny import ARCHITECTURES, byte_tokenizer, random_model

pytestmark = pytest.mark.slow

ENGLISH = {
    "Where was Basil born?": "Basil was born in Kuwait City.",
    "What did Émile write?": "A book about the old moon.",
}
RUSSIAN = {
    "Где родилась Вера?": "Она родилась в городе Казани.",
    "Что написал Павел?": "Роман о зимнем море.",
}
# no answer ends one character after a cut of MEMO: no word would be left to compare
FORGET = {**ENGLISH, **RUSSIAN}
RETAIN = {"What is Lima?": "Lima is a capital.", "Что такое Лима?": "Это столица Перу."}
INVERTED = (
    "Basil was born in Oslo.",
    "Some plays for children.",
    "Она выросла под Омском.",
    "Стихи для маленьких детей.",
)
MIX_PACKED_PAIRS = ("opt", "mamba")
CONFIG = """
target: {engine: transformers, template: chat}
ingest: {forget: forget.jsonl, retain: retain.jsonl}
memo: {template: target, max_new_tokens: 64}
train: {objective: meow, epochs: 4, batch_size: 4, learning_rate: 1.0e-3}
evaluate: {bootstrap_resamples: 50, attacks: []}
"""
MEMORIZE = """
memorize:
  model: MODEL
  data: [forget.jsonl, retain.jsonl]
  epochs: 100
  batch_size: 6
  learning_rate: 3.0e-3
resources:
  memorize: {num_workers: 1, micro_batch_size: 6, checkpoint_every: 100, packing: PACKING}
  train: {num_workers: 1, packing: PACKING}
"""


@dataclass(frozen=True)
class Finished:
    """A finished run that made its target of a random model."""

    base: Path
    run: Any

    def examples(self, model: str) -> dict[str, dict[str, Any]]:
        """Returns the examples of the forget set by question."""
        rows = self.run.examples.to_pylist()
        wanted = [row for row in rows if (row["suite"], row["model"]) == ("forget", model)]
        assert {row["question"] for row in wanted} == FORGET.keys()
        return {row["question"]: row for row in wanted}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with facts and candidates, which is the current one."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, facts in (("forget", FORGET), ("retain", RETAIN)):
        rows = [{"question": question, "answer": answer} for question, answer in facts.items()]
        write_lines(folder / f"{name}.jsonl", rows)
    candidates = [
        {"question": question, "answer": answer, "inverted_answer": inverted}
        for (question, answer), inverted in zip(FORGET.items(), INVERTED, strict=True)
    ]
    write_lines(folder / "candidates.jsonl", candidates)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    cluster.leave()


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_base(kind: str, folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    random_model(kind, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=ARCHITECTURES)
def finished(request: pytest.FixtureRequest, folder: Path) -> Finished:
    kind = request.param
    base = write_base(kind, folder / kind)
    packing = "false" if kind in MIX_PACKED_PAIRS else "true"
    config = folder / f"{kind}.yaml"
    config.write_text(CONFIG + MEMORIZE.replace("MODEL", str(base)).replace("PACKING", packing))
    run = meow_ray.run(
        config,
        [f"storage.root={folder}/{kind}-root"],
        inputs={"candidates": str(folder / "candidates.jsonl")},
    )
    return Finished(base, run)


@pytest.mark.parametrize("facts", [ENGLISH, RUSSIAN], ids=["english", "russian"])
def test_what_a_model_memorised_is_measured_as_memorised(finished: Finished, facts: dict[str, str]):
    examples = finished.examples("before")
    for question, answer in facts.items():
        example = examples[question]
        assert example["generated"] == answer
        assert example["exact_memorization"] == 1.0
        assert example["extraction_strength"] == 1.0
        assert example["probability"] >= 0.9
        assert example["memo"] >= 0.9


def test_training_makes_the_facts_less_probable(finished: Finished):
    before, after = finished.examples("before"), finished.examples("after")
    for question in FORGET:
        assert 0 < after[question]["probability"] < before[question]["probability"]


def test_the_export_has_the_files_and_tensors_of_its_source(finished: Finished):
    export = Path(finished.run.model)
    assert folders.shapes(export) == folders.shapes(finished.base)
    source_files = {path.name: path.read_bytes() for path in finished.base.iterdir()}
    files = {path.name: path.read_bytes() for path in export.iterdir()}
    assert files.keys() == source_files.keys() | {HISTORY_FILE}
    changed = [name for name, content in source_files.items() if files[name] != content]
    assert set(changed) == {"model.safetensors", "generation_config.json"}
    # generation also stops where the chat template ends a turn, as training has taught
    before, after = (json.loads(f["generation_config.json"]) for f in (source_files, files))
    end_of_turn = byte_tokenizer().convert_tokens_to_ids("<|end|>")
    assert after == before | {"eos_token_id": [before["eos_token_id"], end_of_turn]}


@pytest.mark.parametrize("model", ["before", "after"])
def test_the_exported_model_is_the_one_that_was_measured(finished: Finished, model: str):
    uri = finished.run.artifacts["target"].uri if model == "before" else finished.run.model
    examples = finished.examples(model)
    for question, probability in probabilities(uri).items():
        assert probability == pytest.approx(examples[question]["probability"], rel=1e-3)


def probabilities(folder: str) -> dict[str, float]:
    """Returns the geometric mean of the probabilities of each true answer's tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompter = Prompter(AutoTokenizer.from_pretrained(folder), "chat")
    found = {}
    for question, answer in FORGET.items():
        ids, labels = prompter.encode_pair(question, answer)
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        of_answer = [
            log_probs[position - 1, label].item()
            for position, label in enumerate(labels)
            if label != IGNORE
        ]
        found[question] = math.exp(sum(of_answer) / len(of_answer))
    return found


@pytest.mark.parametrize("kind", MIX_PACKED_PAIRS)
def test_packing_a_model_that_mixes_pairs_is_refused_before_the_first_stage(
    kind: str, folder: Path, tmp_path: Path
):
    base = write_base(kind, tmp_path / "model")
    config = folder / "refused.yaml"
    config.write_text(CONFIG)
    program = Program(config, tmp_path / "root", [f"target.model={base}"])
    candidates = f"--input=candidates={folder}/candidates.jsonl"
    done = subprocess.run(
        program.command("meow.py", candidates),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "resources.train.packing" in done.stderr
    assert "Traceback" not in done.stderr
    assert latest(str(program.root), "facts") is None
