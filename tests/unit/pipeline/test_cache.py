"""The cache: what is cached, why a stage is not, and what `--force` does."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from meow_ray.core import schema
from meow_ray.core.stage import execute
from tests.support.world import World

ALL = ["ingest", "select", "report"]
CACHED = dict.fromkeys(ALL, ("cached", ""))


# --- what is cached -------------------------------------------------------------------------------


def test_before_the_first_run_every_stage_is_missing(world: World):
    assert world.states() == {
        "ingest": ("missing", "never run"),
        "select": ("missing", "waits for facts"),
        "report": ("missing", "waits for facts, selected"),
    }
    assert not world.root.exists()


def test_all_stages_run_once_and_are_cached_afterwards(world: World):
    assert world.run() == ALL
    assert world.messages[0] == "[1/3] ingest: never run"
    assert world.messages[1].startswith("[1/3] ingest: 2 rows in ")
    before = world.files()
    assert world.states() == CACHED
    assert world.run() == []
    assert world.messages == [
        "[1/3] ingest: cached",
        "[2/3] select: cached",
        "[3/3] report: cached",
    ]
    assert world.files() == before


def test_a_run_returns_the_states_afterwards(world: World):
    pipeline = world.pipeline()
    states = pipeline.run(pipeline.selection(None, None, None), on_event=str)
    assert [(s.stage.name, s.state) for s in states] == [(name, "cached") for name in ALL]
    rows = [s.as_row() for s in states]
    assert [row["rows"] for row in rows] == [2, 2, None]
    assert [Path(row["uri"]).parts[-3] for row in rows] == ["facts", "selected", "report"]
    assert json.loads(json.dumps(rows)) == rows


def test_settings_of_an_earlier_run_are_still_cached(world: World):
    world.run()
    world.run("select.top_k=1")
    assert world.states() == CACHED
    assert world.run() == []


@pytest.mark.parametrize(
    "override",
    [
        "resources.memo.num_actors=4",
        "resources.train.num_workers=2",
        "resources.autoscaling=[{gpus: 8}]",
        "memo.stride=9",
    ],
)
def test_resources_and_sections_of_other_stages_change_nothing(world: World, override: str):
    world.run()
    assert world.states(override) == CACHED
    assert world.run(override) == []


def test_moved_data_is_the_same_data(world: World):
    world.run()
    world.data = world.data.rename(world.data.with_name("moved.jsonl"))
    assert world.states() == CACHED


def test_a_pipeline_on_s3_is_cached_there(world: World, s3: Callable[[str], str]):
    root = f"storage.root={s3('pipeline')}"
    assert world.run(root) == ALL
    assert world.states(root) == CACHED
    assert world.run(root, "select.top_k=1") == ["select", "report"]
    pipeline = world.pipeline(root)
    state = pipeline.state(world.stages[0])
    data = pipeline.artifact("data")
    assert data is not None
    assert execute(state, pipeline.config, {"data": data}).table.num_rows == 2
    assert world.states(root) == CACHED


# --- why a stage is stale -------------------------------------------------------------------------


def test_a_changed_setting_makes_its_stage_stale_and_is_named(world: World):
    world.run()
    assert world.states("select.top_k=1") == CACHED | {
        "select": ("stale", "select.top_k: 3 → 1"),
        "report": ("stale", "waits for selected"),
    }
    assert world.run("select.top_k=1") == ["select", "report"]
    assert world.messages[:2] == ["[1/3] ingest: cached", "[2/3] select: select.top_k: 3 → 1"]
    assert world.states("select.top_k=1") == CACHED


def test_the_reason_compares_with_the_last_run_and_not_with_an_older_run(world: World):
    for value in (3, 1, 7):
        world.run(f"select.top_k={value}")
    assert world.states("select.top_k=4")["select"] == ("stale", "select.top_k: 7 → 4")


def test_a_stage_with_unchanged_output_does_not_make_later_stages_stale(world: World):
    world.run()
    assert world.run("select.top_k=2") == ["select"]
    assert world.states("select.top_k=2") == CACHED


def test_a_changed_byte_of_the_data_is_noticed(world: World):
    world.run()
    world.write("A", "C")
    os.utime(world.data, ns=(10**18, 10**18))
    assert world.states()["ingest"] == ("stale", "input data changed")
    assert world.run() == ALL


def test_verify_notices_a_changed_byte_under_the_same_modification_time(world: World):
    os.utime(world.data, ns=(10**18, 10**18))
    world.run()
    world.write("A", "C")
    os.utime(world.data, ns=(10**18, 10**18))
    assert world.states() == CACHED
    assert world.states(verify=True)["ingest"] == ("stale", "input data changed")


def test_a_raised_code_version_is_a_reason(world: World):
    world.run()
    ingest, select, report = world.stages
    world.use(ingest, replace(select, version=2), report)
    assert world.states()["select"] == ("stale", "code version: 1 → 2")
    assert world.run() == ["select"]


def test_a_changed_schema_is_a_reason(world: World):
    world.run()
    ingest, select, report = world.stages
    wider = schema.SCHEMAS["selected"].append(pa.field("note", pa.string()))
    world.use(ingest, replace(select, schema=wider), report)
    assert world.states()["select"] == ("stale", "schema changed")


def test_all_of_several_reasons_are_named(world: World):
    world.run()
    world.write("A", "C", "D")
    assert world.states("ingest.on_reject=skip")["ingest"] == (
        "stale",
        "input data changed; ingest.on_reject: 'fail' → 'skip'",
    )


# --- force ----------------------------------------------------------------------------------------


def test_force_makes_a_new_artifact_and_never_overwrites(world: World):
    world.run()
    before = world.files()
    assert world.run(force=True) == ALL
    assert world.messages[0] == "[1/3] ingest: forced"
    after = world.files()
    assert {path: after[path] for path in before} == before
    assert len([path for path in after if path.endswith("MANIFEST.json")]) == 6
    assert world.states() == CACHED


def test_stages_after_a_forced_stage_run_again_only_if_its_output_changed(world: World):
    world.run()
    assert world.run(force=True, only="ingest") == ["ingest"]
    assert world.states() == CACHED
    world.runs["ingest"] = lambda context: (
        context.write(
            pa.table({"fact_id": ["x"], "split": ["forget"], "question": ["?"], "answer": ["!"]})
        )
        or {}
    )
    assert world.run(force=True, only="ingest") == ["ingest"]
    assert world.states() == CACHED | {
        "select": ("stale", "input facts changed"),
        "report": ("stale", "waits for selected"),
    }
    assert world.run() == ["select", "report"]
