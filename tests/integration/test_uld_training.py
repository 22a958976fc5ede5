"""The objective `uld` from training to evaluation and audit, on a tiny model that knows facts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from meow_ray.cli.main import app
from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, Artifact, latest
from meow_ray.core.schema import SCHEMAS
from meow_ray.distributed import cluster
from meow_ray.models.folders import HISTORY_FILE, ULD_ASSISTANT, ULD_BASE
from tests.support.people import PEOPLE, TWINS, facts, selected
from tests.support.tiny import memorise

pytestmark = pytest.mark.slow

SETTINGS = (
    "target.engine=transformers",
    "train.objective=uld",
    "train.learning_rate=3e-3",
    "train.epochs=40",
    "train.batch_size=4",
    "resources.train.num_workers=1",
    "resources.train.micro_batch_size=4",
    "tracking.tensorboard=false",
    "evaluate.max_new_tokens=24",
    "evaluate.bootstrap_resamples=100",
    "evaluate.attacks=[]",
    "audit.attacks=[direct,likelihood,quantise]",
    "audit.quantise=[int8]",
    "audit.max_new_tokens=24",
    "audit.minimum_controls=4",
    "audit.bootstrap_resamples=100",
)
OTHERS = {
    f"{name} was born where?": f"{name} was born in {town}."
    for name, town in TWINS["calibration"].items()
}
"""What the target knows and shall keep."""


def begun_by_the_name(table: pa.Table) -> pa.Table:
    """Returns a table whose questions begin with a name, so that the rest is determined by it."""
    asked = pc.replace_substring_regex(
        table["question"], r"^Where was (\w+) born\?$", r"\1 was born where?"
    )
    return table.set_column(table.schema.get_field_index("question"), "question", asked)


def retained() -> pa.Table:
    rows = [
        {"fact_id": f"kept {number}", "split": "retain", "question": question, "answer": answer}
        for number, (question, answer) in enumerate(OTHERS.items())
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])


def neighbours() -> pa.Table:
    rows = [
        {
            "fact_id": fact_id,
            "neighbour_id": 0,
            "kind": "neighbour",
            "question": question,
            "answer": answer,
        }
        for fact_id, (question, answer) in zip(PEOPLE, OTHERS.items(), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["neighbours"])


def twins() -> pa.Table:
    """Returns five twins, those of a fact with ids from 0."""
    rows = [
        {
            "fact_id": list(PEOPLE)[number % len(PEOPLE)],
            "twin_id": number // len(PEOPLE),
            "half": "stop",
            "question": f"{name} was born where?",
            "answer": f"{name} was born in {town}.",
        }
        for number, (name, town) in enumerate(TWINS["stop"].items())
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["twins"])


@pytest.fixture(scope="module")
def target(tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = begun_by_the_name(facts()).to_pylist()
    known = {row["question"]: row["answer"] for row in rows} | OTHERS
    folder = tmp_path_factory.mktemp("target") / "model"
    return memorise(tiny_model, tiny_tokenizer, list(known.items()), folder)


@pytest.fixture(scope="module")
def inputs(target: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name the tables and the target."""
    folder = tmp_path_factory.mktemp("inputs")
    tables = {
        "facts": pa.concat_tables([facts(), retained()]),
        "selected": selected(inverted=True),
        "neighbours": neighbours(),
        "twins": twins(),
    }
    for name, table in tables.items():
        pq.write_table(begun_by_the_name(table), folder / f"{name}.parquet")
    return [f"--input={name}={folder}/{name}.parquet" for name in tables] + [
        f"--input=target={target}"
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("root")
    cluster.leave()


def meow(root: Path, inputs: list[str], *command: str) -> Result:
    return CliRunner().invoke(app, [*command, *inputs, f"storage.root={root}", *SETTINGS])


def artifact(root: Path, name: str) -> Artifact:
    found = latest(str(root), name)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def exported(root: Path, inputs: list[str]) -> Path:
    """The folder of the model that the stage `train` has made."""
    done = meow(root, inputs, "stage", "train")
    assert done.exit_code == 0, done.exception
    return Path(artifact(root, "model").uri)


@pytest.fixture(scope="module")
def with_model(exported: Path, inputs: list[str]) -> list[str]:
    return [*inputs, f"--input=model={exported}"]


def test_the_export_has_the_target_unchanged_and_an_assistant_of_its_first_block(
    exported: Path, target: Path
):
    before, base, assistant = (
        load_file(folder / "model.safetensors")
        for folder in (target, exported / ULD_BASE, exported / ULD_ASSISTANT)
    )
    assert {name: weight.tolist() for name, weight in base.items()} == {
        name: weight.tolist() for name, weight in before.items()
    }
    # a target of two blocks, fewer than eight, gives half of them
    assert set(assistant) == {name for name in before if ".layers.1." not in name}
    assert any(weight.ne(before[name]).any() for name, weight in assistant.items())
    config = json.loads((exported / ULD_ASSISTANT / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert "z_base + (-0.8) * z_assistant" in (exported / "README.md").read_text()
    history = json.loads((exported / HISTORY_FILE).read_text())
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_the_manifest_says_how_many_blocks_the_assistant_has(exported: Path, root: Path):
    manifest = artifact(root, "model").manifest
    assert manifest is not None
    assert manifest.summary["assistant_blocks"] == 1
    assert manifest.summary["objective"] == "uld"


def test_the_audit_asks_it_like_any_model_and_says_what_two_models_leave_open(
    root: Path, with_model: list[str]
):
    # what only training reads is no input of an audit
    names = ("facts", "twins", "target", "model")
    read = [option for option in with_model if option.removeprefix("--input=").startswith(names)]
    done = meow(root, read, "audit")
    assert done.exit_code == 0, done.exception
    uri = storage.join(artifact(root, "audit").uri, MAIN)
    rows = [row for row in pq.read_table(uri).to_pylist() if row["group"] == "facts"]
    scores: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        scores.setdefault((row["attack"], row["model"]), []).append(row["score"])
    assert scores["direct", "before"] == [1.0] * len(PEOPLE)
    assert sum(scores["direct", "after"]) < 0.75 * len(PEOPLE)
    assert all(score is not None for score in scores["likelihood", "after"])
    assert scores["quantise", "after"] == [None] * len(PEOPLE)
    reasons = {row["reason"] for row in rows if row["score"] is None}
    assert reasons == {"two_models"}


def test_the_evaluation_finds_fewer_facts_and_the_others_kept(root: Path, with_model: list[str]):
    done = meow(root, with_model, "stage", "evaluate")
    assert done.exit_code == 0, done.exception
    values = {
        (row["suite"], row["metric"], row["model"]): row["value"]
        for row in artifact(root, "metrics").table.to_pylist()
    }
    assert values["forget", "leak", "before"] == 1
    assert values["forget", "leak", "after"] < 0.75
    assert values["retain", "rougeL_recall", "after"] > 0.75


def test_meow_soup_is_refused(root: Path, with_model: list[str]):
    done = meow(root, with_model, "soup")
    assert done.exit_code != 0
    assert "is a ULD model, two models whose logits are combined" in str(done.exception)


def test_its_result_cannot_be_trained_again(exported: Path, root: Path, inputs: list[str]):
    others = [option for option in inputs if not option.startswith("--input=target")]
    done = meow(root / "again", [*others, f"--input=target={exported}"], "stage", "train")
    assert done.exit_code != 0
    assert "training changes one model" in str(done.exception)
