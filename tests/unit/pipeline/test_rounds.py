"""Rounds of forgetting over stages that load no model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config.files import load_config
from meow_ray.core import schema, storage
from meow_ray.core.stage import Context, Stage
from meow_ray.errors import MeowError
from meow_ray.pipeline import rounds
from meow_ray.pipeline.graph import STAGES
from meow_ray.stages.ingest.facts import fact_id

FACTS = ("A", "B", "C")


class World:
    """A pipeline in which each round makes the first remaining fact forgotten."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran = folder, list[tuple[str, Any]]()
        self.stages = [self.fake(stage) for stage in STAGES]
        for name in ("target", "generator"):
            storage.write_bytes(str(folder / name / "config.json"), b"{}")
            storage.write_bytes(str(folder / name / "model.safetensors"), name.encode())
        (folder / "forget.jsonl").write_text('{"question": "Q", "answer": "A"}')
        self.settings = [
            f"target.model={folder}/target",
            f"invert.model={folder}/generator",
            f"ingest.forget={folder}/forget.jsonl",
            f"storage.root={folder}/root",
        ]

    def fake(self, stage: Stage) -> Stage:
        return replace(stage, run=lambda context: self.run_stage(stage.name, context))

    def run_stage(self, name: str, context: Context) -> dict[str, Any]:
        tables = {
            key: value.table
            for key, value in context.inputs.items()
            if key in schema.SCHEMAS and key != "reference"
        }
        if name == "ingest":
            rows = [("forget", answer) for answer in FACTS] + [("retain", "Z")]
            made = [
                {"split": s, "question": "Q", "answer": a, "fact_id": fact_id("Q", a)}
                for s, a in rows
            ]
            context.write(pa.Table.from_pylist(made, schema=schema.SCHEMAS["facts"]))
        elif name == "remain":
            context.write(tables["facts"].slice(1))
        elif name in ("invert", "memo", "select"):
            source = tables["facts"] if name == "invert" else next(iter(tables.values()))
            made = [
                self._row(context, row, name)
                for row in source.to_pylist()
                if row.get("split") != "retain"
            ]
            context.write(pa.Table.from_pylist(made, schema=schema.SCHEMAS[context.stage.artifact]))
        elif name == "evaluate":
            context.write(pa.Table.from_pylist([], schema=schema.SCHEMAS["metrics"]))
        else:
            key = json.dumps({name: artifact.digest for name, artifact in context.inputs.items()})
            storage.write_bytes(storage.join(context.out, "file"), key.encode())
        self.ran.append(
            (
                name,
                sorted(tables["selected"]["fact_id"].to_pylist()) if "selected" in tables else None,
            )
        )
        return {}

    @staticmethod
    def _row(context: Context, row: dict[str, Any], name: str) -> dict[str, Any]:
        seed = context.config.invert.seed if name == "invert" else 0
        more = {
            "candidate_id": 0,
            "inverted_answer": f"seed {seed}",
            "text": "",
            "memo": 0.5,
            "rank": 0,
        }
        return {"attempt": 0, "seed": seed, "generator": "", **row, **more}

    def run(self, *overrides: str, inputs: dict[str, str] | None = None) -> list[str]:
        config, before, labels = load_config(None, [*self.settings, *overrides]), len(self.ran), []
        for part in rounds.parts_of_run(config, inputs, stages=self.stages):
            part.pipeline.run(part.stages, on_event=str, label=part.label)
            labels.append(part.label)
        self.labels = labels
        return [name for name, _ in self.ran[before:]]

    def table(self, artifact: str) -> list[list[dict[str, Any]]]:
        """Returns the rows of all artifacts of a name."""
        import pyarrow.parquet as pq

        paths = self.folder.glob(f"root/{artifact}/*/*/part-00000.parquet")
        return [pq.read_table(path).to_pylist() for path in sorted(paths)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


ROUND = ["invert", "memo", "select", "train"]


def test_one_round_is_the_plain_pipeline(world: World):
    assert world.run() == ["ingest", *ROUND, "evaluate", "report"]
    assert world.labels == [""]
    assert [stage.name for stage in STAGES if stage.name == "remain"]


def test_what_is_left_goes_round_again_and_evaluation_comes_once(world: World):
    ran = world.run("pipeline.rounds=2")
    assert ran == ["ingest", *ROUND, "remain", *ROUND, "evaluate", "report"]
    assert world.labels == ["round 1, ", "round 2, ", ""]
    assert sorted(len({row["fact_id"] for row in rows}) for rows in world.table("candidates")) == [
        2,
        3,
    ]


def test_each_round_asks_for_fresh_inverted_facts(world: World):
    world.run("pipeline.rounds=3", "invert.seed=5")
    assert {row["seed"] for rows in world.table("candidates") for row in rows} == {5, 6, 7}


def test_rounds_stop_when_nothing_is_left(world: World):
    ran = world.run("pipeline.rounds=9")
    assert ran.count("train") == len(FACTS)
    assert world.labels[-2:] == ["round 3, ", ""]


def test_evaluation_knows_the_inverted_facts_of_all_rounds(world: World):
    world.run("pipeline.rounds=2")
    selected = dict(world.ran)["evaluate"]
    ids = {answer: fact_id("Q", answer) for answer in FACTS}
    assert selected == sorted([*ids.values(), ids["B"], ids["C"]])


def test_a_second_run_finds_every_round_in_the_cache(world: World):
    world.run("pipeline.rounds=2")
    assert world.run("pipeline.rounds=2") == []
    assert world.run("pipeline.rounds=3") == ["remain", *ROUND, "evaluate", "report"]


def test_another_threshold_asks_again_what_is_left(world: World):
    world.run("pipeline.rounds=2")
    assert world.run("pipeline.rounds=2", "pipeline.threshold=0.4") == ["remain"], (
        "the same facts remain"
    )


def test_what_has_not_run_yet_ends_the_list(world: World):
    config = load_config(None, [*world.settings, "pipeline.rounds=2"])
    assert [part.label for part in rounds.parts_of_run(config, stages=world.stages)] == [
        "round 1, "
    ]


def test_inverted_facts_from_a_file_cannot_go_round(world: World):
    with pytest.raises(MeowError, match=r"--input candidates: `pipeline\.rounds` is 2"):
        world.run("pipeline.rounds=2", inputs={"candidates": "mine.parquet"})
