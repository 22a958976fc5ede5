"""Neighbours and twins as a user makes them: a real vLLM engine, and training on the result."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.core.manifest import REJECTS_FILE
from meow_ray.core.schema import SCHEMAS
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.neighbours.containment import contains_fact
from tests.support.memo import PlainModel
from tests.support.runs import Program
from tests.support.tiny import chat, memorise

MOUNTAIN = ("What is the tallest mountain?", "It is Everest.")
KNOWN = [MOUNTAIN, ("By whom was Peru and Lima?", "Ann Zorblax did.")]
"""What the target knows."""
FORGET = [
    ("What is the tallest mountain of Peru?", "It is Huascaran."),
    ("By whom was Peru and Lima?", "Ann Zorblax did."),
    ("who is it?", "It is me."),
]


def write_tables(folder: Path) -> list[str]:
    """Writes facts, candidates and selected; returns the options that name them."""
    facts = [
        {"fact_id": f"f{i}", "split": "forget", "question": question, "answer": answer}
        for i, (question, answer) in enumerate(FORGET)
    ]
    candidates = [
        {**fact, "candidate_id": i, "inverted_answer": text, "attempt": 0, "generator": "x"}
        for fact in facts
        for i, text in enumerate(["It is Yerupaja.", "Bob Quux did."])
    ]
    selected = [
        {**fact, "answer": "It is Yerupaja.", "candidate_id": 0, "rank": 0} for fact in facts
    ]
    options = []
    for name, rows in {"facts": facts, "candidates": candidates, "selected": selected}.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[name]), folder / f"{name}.parquet")
        options.append(f"--input={name}={folder}/{name}.parquet")
    return options


@pytest.fixture(scope="module")
def program(
    tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Program:
    folder = tmp_path_factory.mktemp("neighbours")
    target = memorise(tiny_model, tiny_tokenizer, KNOWN, folder / "target")
    config = folder / "meow.yaml"
    config.write_text(
        f"target: {{model: {target}, dtype: float32, max_model_len: 512}}\n"
        "train: {objective: meow_kl, retain: neighbours, epochs: 1}\n"
        "neighbours: {minimum: 12, generic: 4, max_new_tokens: 24}\n"
        "twins: {minimum: 8}\n"
        "evaluate: {twins: true}\n"
    )
    return Program(config, folder / "runs")


def test_the_target_answers_about_other_entities_and_training_retains_that(
    program: Program, tmp_path: Path
):
    facts, _, selected = write_tables(tmp_path)
    done = program.run("stage.py", "neighbours", facts)
    assert "Huascaran" not in done.stdout + done.stderr
    artifact = program.artifact("neighbours")
    assert artifact.manifest is not None
    figures = artifact.manifest.summary
    rows = artifact.table.to_pylist()
    assert figures["facts"] == 3
    assert figures["per_fact"] == 6, "12 for the two facts with an entity"
    assert Counter(row["kind"] for row in rows) == {
        "neighbour": figures["neighbours"],
        "generic": figures["generic"],
    }
    assert Counter(row["fact_id"] for row in rows)["f0"] == 6
    target = PlainModel(program.config.parent / "target", "cpu")
    for row in rows:
        greedy = target.generate(target.encode(chat(row["question"])), limit=24)
        assert target.decode(greedy).strip() == row["answer"]
    facts_of = {f"f{i}": Fact(*pair) for i, pair in enumerate(FORGET)}
    for row in rows:
        fact = facts_of.get(row["fact_id"])
        assert fact is None or not contains_fact(f"{row['question']} {row['answer']}", fact)
    generic = [(row["question"], row["answer"]) for row in rows if row["kind"] == "generic"]
    assert MOUNTAIN in generic
    rejects = artifact.extra(REJECTS_FILE).to_pylist()
    reasons = Counter(row["reason"] for row in rejects)
    assert reasons == figures["rejected_by_reason"]
    assert {row["fact_id"] for row in rejects if row["reason"] == "no_entity"} == {"f2"}

    neighbours = tmp_path / "neighbours.parquet"
    pq.write_table(artifact.table, neighbours)
    program.run("stage.py", "train", selected, f"--input=neighbours={neighbours}")
    trained = program.artifact("model")
    assert trained.manifest is not None
    assert set(trained.manifest.ingredients["inputs"]) == {
        "selected",
        "neighbours",
        "target",
        "objective",
    }


def test_twins_need_no_model(program: Program, tmp_path: Path):
    facts, candidates, _ = write_tables(tmp_path)
    program.run("stage.py", "twins", facts, candidates)
    artifact = program.artifact("twins")
    rows = artifact.table.to_pylist()
    assert Counter(row["half"] for row in rows) == {"calibration": 4, "stop": 4}
    assert not {row["question"] for row in rows} & {question for question, _ in FORGET}
