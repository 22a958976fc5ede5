"""Rounds of forgetting, with stages that load no model."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import meow_ray
from meow_ray.core import schema, storage
from meow_ray.core.manifest import MAIN
from meow_ray.core.stage import Context, Stage
from meow_ray.errors import MeowError
from meow_ray.pipeline import rounds
from meow_ray.pipeline.graph import STAGES
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.ingest.facts import fact_id
from tests.support.world import write_inputs

FACTS = ("A", "B", "C")
"""The answers of the forget set."""


class RoundsWorld:
    """The real stages with other run functions: each round forgets the first remaining fact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[tuple[str, list[str] | None]] = []
        """The stages that were executed, and the ids of the facts in `selected` if they read it."""
        self.labels: list[str] = []
        """The labels of the parts of the last run."""
        self.stages = [self._fake(stage) for stage in STAGES]
        self.settings = write_inputs(folder)

    def run(self, *overrides: str, inputs: dict[str, str] | None = None) -> list[str]:
        """Runs all parts of a run; returns the names of the stages that were executed."""
        config, before = load_config(None, [*self.settings, *overrides]), len(self.ran)
        self.labels = []
        for part in rounds.parts_of_run(config, inputs, stages=self.stages):
            part.pipeline.run(part.stages, on_event=str, label=part.label)
            self.labels.append(part.label)
        return [name for name, _ in self.ran[before:]]

    def tables(self, artifact: str) -> list[list[dict[str, Any]]]:
        """Returns the rows of all artifacts of a name."""
        paths = self.folder.glob(f"root/{artifact}/*/*/{MAIN}")
        return [pq.read_table(path).to_pylist() for path in sorted(paths)]

    def _fake(self, stage: Stage) -> Stage:
        run = partial(self._run_stage, stage.name)
        return replace(stage, run=run, checks=(), foresee=None)

    def _run_stage(self, name: str, context: Context) -> dict[str, Any]:
        if name == "ingest":
            context.write(self._facts())
        elif name == "remain":
            context.write(context.inputs["facts"].table.slice(1))
        elif name in ("invert", "memo", "select"):
            context.write(self._next_table(name, context))
        elif name in ("neighbours", "twins", "evaluate"):
            context.write(schema.SCHEMAS[context.stage.artifact].empty_table())
        else:
            digests = {key: artifact.digest for key, artifact in context.inputs.items()}
            storage.write_bytes(context.path("file"), json.dumps(digests).encode())
        selected = context.inputs.get("selected")
        ids = sorted(selected.table["fact_id"].to_pylist()) if selected else None
        self.ran.append((name, ids))
        return {}

    @staticmethod
    def _facts() -> pa.Table:
        answers = [("forget", answer) for answer in FACTS] + [("retain", "Z")]
        rows = [
            {"split": split, "question": "Q", "answer": answer, "fact_id": fact_id("Q", answer)}
            for split, answer in answers
        ]
        return pa.Table.from_pylist(rows, schema=schema.SCHEMAS["facts"])

    @staticmethod
    def _next_table(name: str, context: Context) -> pa.Table:
        """Returns a table with one row for each row of the table before it, but no retain facts."""
        before = {"invert": "facts", "memo": "candidates", "select": "memo"}[name]
        seed = context.config.invert.seed if name == "invert" else 0
        defaults = {
            "attempt": 0,
            "seed": seed,
            "generator": "",
            "candidate_id": 0,
            "inverted_answer": f"seed {seed}",
            "text": "",
            "memo": 0.5,
            "rank": 0,
        }
        rows = [
            defaults | row
            for row in context.inputs[before].table.to_pylist()
            if row.get("split") != "retain"
        ]
        return pa.Table.from_pylist(rows, schema=schema.SCHEMAS[context.stage.artifact])


@pytest.fixture
def world(tmp_path: Path) -> RoundsWorld:
    return RoundsWorld(tmp_path)


ROUND = ["invert", "memo", "select", "train"]


def test_one_round_is_the_plain_pipeline(world: RoundsWorld):
    assert world.run() == ["ingest", *ROUND, "evaluate", "report"]
    assert world.labels == [""]
    assert "remain" in [stage.name for stage in STAGES]


def test_remaining_facts_go_through_a_second_round_and_evaluation_runs_once(world: RoundsWorld):
    ran = world.run("pipeline.rounds=2")
    assert ran == ["ingest", *ROUND, "remain", *ROUND, "evaluate", "report"]
    assert world.labels == ["round 1, ", "round 2, ", ""]
    facts_of_rounds = [{row["fact_id"] for row in rows} for rows in world.tables("candidates")]
    assert sorted(map(len, facts_of_rounds)) == [2, 3]


def test_each_round_makes_its_own_neighbours_and_twins(world: RoundsWorld):
    settings = ("train.objective=meow_kl", "train.retain=neighbours", "evaluate.twins=true")
    ran = world.run("pipeline.rounds=2", *settings)
    own = ["invert", "neighbours", "twins", "memo", "select", "train"]
    assert ran == ["ingest", *own, "remain", *own, "evaluate", "report"]
    assert world.run("pipeline.rounds=2", *settings) == []


def test_given_neighbours_and_twins_serve_all_rounds(world: RoundsWorld):
    paths = {}
    for name in ("neighbours", "twins"):
        paths[name] = f"{world.folder}/{name}.parquet"
        pq.write_table(schema.SCHEMAS[name].empty_table(), paths[name])
    settings = ("train.objective=meow_kl", "train.retain=neighbours", "evaluate.twins=true")
    ran = world.run("pipeline.rounds=2", *settings, inputs=paths)
    assert ran == ["ingest", *ROUND, "remain", *ROUND, "evaluate", "report"]


def test_each_round_has_its_own_seed_for_inverted_facts(world: RoundsWorld):
    world.run("pipeline.rounds=3", "invert.seed=5")
    assert {row["seed"] for rows in world.tables("candidates") for row in rows} == {5, 6, 7}


def test_rounds_end_when_no_fact_remains(world: RoundsWorld):
    ran = world.run("pipeline.rounds=9")
    assert ran.count("train") == len(FACTS)
    assert world.labels[-2:] == ["round 3, ", ""]


def test_evaluation_reads_the_inverted_facts_of_all_rounds(world: RoundsWorld):
    world.run("pipeline.rounds=2")
    selected = dict(world.ran)["evaluate"]
    ids = {answer: fact_id("Q", answer) for answer in FACTS}
    assert selected == sorted([*ids.values(), ids["B"], ids["C"]])


def test_a_second_run_finds_every_round_in_the_cache(world: RoundsWorld):
    world.run("pipeline.rounds=2")
    assert world.run("pipeline.rounds=2") == []
    assert world.run("pipeline.rounds=3") == ["remain", *ROUND, "evaluate", "report"]


def test_another_threshold_only_selects_the_remaining_facts_again(world: RoundsWorld):
    world.run("pipeline.rounds=2")
    assert world.run("pipeline.rounds=2", "pipeline.threshold=0.4") == ["remain"], (
        "the same facts remain"
    )


def test_parts_end_at_the_first_part_that_has_not_been_run(world: RoundsWorld):
    config = load_config(None, [*world.settings, "pipeline.rounds=2"])
    assert [part.label for part in rounds.parts_of_run(config, stages=world.stages)] == [
        "round 1, "
    ]


@pytest.mark.parametrize("name", ["candidates", "memo", "selected", "model"])
def test_artifacts_that_each_round_makes_cannot_be_given(world: RoundsWorld, name: str):
    message = (
        f"--input {name}: `pipeline.rounds` is 2, and each round makes its own {name}. "
        "Set pipeline.rounds=1, or remove the input."
    )
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        world.run("pipeline.rounds=2", inputs={name: "mine.parquet"})


def test_a_run_in_python_holds_the_last_round_and_the_selection_of_all(world: RoundsWorld):
    config = load_config(None, [*world.settings, "pipeline.rounds=2"])
    run = meow_ray.run(config, stages=world.stages, on_event=str)
    facts = {name: set(run.table(name)["fact_id"].to_pylist()) for name in ("facts", "candidates")}
    ids = {answer: fact_id("Q", answer) for answer in FACTS}
    assert facts["candidates"] == {ids["B"], ids["C"]}
    assert facts["candidates"] < facts["facts"]
    assert set(run.table("selected")["fact_id"].to_pylist()) == set(ids.values())
