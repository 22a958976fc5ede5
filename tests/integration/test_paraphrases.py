"""Rewordings as a user makes them, over HTTP and without a generator, and training on them."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.config import Train, TrainResources
from meow_ray.core.manifest import REJECTS_FILE
from meow_ray.core.schema import SCHEMAS
from tests.support.endpoints import endpoint
from tests.support.people import facts, selected
from tests.support.runs import Program
from tests.support.training import Run, Workers, job

SECRET = "Zorblax"
NPO = "train: {objective: npo, paraphrases: 2, epochs: 1, batch_size: 2}\n"


def facts_option(folder: Path) -> str:
    rows = [
        {
            "fact_id": f"f{i}",
            "split": "forget",
            "question": f"Where was {SECRET} {i} born?",
            "answer": f"{SECRET} {i} was born in Lima.",
        }
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["facts"]), folder / "facts.parquet")
    return f"--input=facts={folder}/facts.parquet"


def write(request: dict[str, Any]) -> list[str]:
    """Rewords the first fact twice, the second once, and answers the third."""
    message = request["messages"][0]["content"]
    if SECRET not in message:
        return ["OK"]  # to the request before the run
    number = int(message.split(SECRET)[1].split()[0])
    name = f"{SECRET} {number}"
    texts = [f"In which town was {name} born?", f"What is the birthplace of {name}?"]
    texts = [*texts[: 2 - number], f"Was {name} born in Lima?"]
    return [f"<think>['?']</think>{json.dumps({'questions': texts})}"]


def test_an_endpoint_rewords_and_each_wording_is_scored_and_trained_on(
    tiny_model: Path, tmp_path: Path
):
    given = facts_option(tmp_path)
    with endpoint(lambda _: None, write) as server:
        (tmp_path / "config.yaml").write_text(
            f"target: {{model: {tiny_model}, engine: transformers, dtype: float32}}\n"
            f"invert: {{engine: openai, base_url: 'http://127.0.0.1:{server.port}/v1', model: m}}\n"
            f"{NPO}"
        )
        program = Program(tmp_path / "config.yaml", tmp_path / "root")
        done = program.run("stage.py", "paraphrases", given)
    assert SECRET not in done.stdout + done.stderr
    artifact = program.artifact("paraphrases")
    rows = artifact.table.to_pylist()
    assert [(row["fact_id"], row["paraphrase_id"], row["source"]) for row in rows] == [
        ("f0", 1, "generator"),
        ("f0", 2, "generator"),
        ("f1", 1, "generator"),
        ("f1", 2, "rule"),
        ("f2", 1, "rule"),
        ("f2", 2, "rule"),
    ]
    assert rows[3]["question"] == f"Could you tell me: Where was {SECRET} 1 born?"
    assert artifact.manifest is not None
    assert artifact.manifest.summary == {
        "facts": 3,
        "facts_short": 0,
        "by_source": {"generator": 3, "rule": 3},
        "rejected_by_reason": {"says_answer": 4, "duplicate": 1},
        "left_out": {},
    }
    rejects = artifact.extra(REJECTS_FILE).to_pylist()
    assert Counter(row["fact_id"] for row in rejects) == {"f1": 3, "f2": 2}

    paraphrases = tmp_path / "paraphrases.parquet"
    pq.write_table(artifact.table, paraphrases)
    reworded = f"--input=paraphrases={paraphrases}"
    program.run("stage.py", "reference", given, reworded)
    scored = program.table("reference")
    assert scored.num_rows == 9
    assert set(scored["question"].to_pylist()) >= {row["question"] for row in rows}
    pq.write_table(scored, tmp_path / "reference.parquet")
    reference = f"--input=reference={tmp_path}/reference.parquet"
    program.run("stage.py", "train", given, reworded, reference)
    trained = program.artifact("model").manifest
    assert trained is not None
    assert "paraphrases" in trained.ingredients["inputs"]


def test_rewordings_without_a_generator_need_no_model(tiny_model: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(f"target: {{model: {tiny_model}}}\n{NPO}")
    program = Program(tmp_path / "config.yaml", tmp_path / "root")
    program.run("stage.py", "paraphrases", facts_option(tmp_path))
    assert set(program.table("paraphrases")["source"].to_pylist()) == {"rule"}
    refused = program.run(
        "stage.py",
        "paraphrases",
        facts_option(tmp_path),
        "paraphrases.sources=[generator]",
        status=2,
    )
    assert "`paraphrases.sources` has the generator alone" in refused.stderr


# --- training on any setup ------------------------------------------------------------------------

SPEC = Train(
    objective="meow",
    paraphrases=2,
    epochs=3,
    batch_size=4,
    learning_rate=1e-3,
)


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[int, Workers]]:
    started = {count: Workers(count) for count in (1, 2)}
    yield started
    for group in started.values():
        group.close()


def run(folder: Path, model: Path, name: str, packing: bool = False, **options: Any) -> Run:
    rows = [
        {
            "fact_id": fact_id,
            "paraphrase_id": number,
            "question": text.format(fact_id),
            "source": "rule",
        }
        for fact_id in facts()["fact_id"].to_pylist()
        for number, text in ((1, "Tell me: where was {} born?"), (2, "Q: Where was {} born?"))
    ]
    paraphrases = pa.Table.from_pylist(rows, schema=SCHEMAS["paraphrases"])
    resources = TrainResources(micro_batch_size=1, packing=packing)
    tables = facts(), selected(inverted=True)
    made = job(folder, model, *tables, SPEC, resources, paraphrases=paraphrases)
    return Run(made, folder / name, **options)


def test_the_losses_depend_neither_on_workers_nor_packing_nor_a_resume(
    tiny_model: Path, groups: dict[int, Workers], tmp_path: Path
):
    stopped = run(tmp_path, tiny_model, "stopped", stop_at=1)
    runs = {
        1: [run(tmp_path, tiny_model, "packed", packing=True), stopped],
        2: [
            run(tmp_path, tiny_model, "padded"),
            run(tmp_path, tiny_model, "resumed", resume=tmp_path / "stopped/1"),
        ],
    }
    (packed, _), (padded, resumed) = (groups[count].train(runs[count]) for count in runs)
    losses = [[record["loss"] for record in history] for history in (packed, padded, resumed)]
    assert len(losses[0]) == 3
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], rel=1e-3)
    assert len({record["tokens"] for record in packed}) == 1, "the answers are the same"
