import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config.files import load_config
from meow_ray.core import schema, storage
from meow_ray.core.stage import Context, Stage, execute
from meow_ray.errors import MeowError
from meow_ray.pipeline.graph import STAGES
from meow_ray.pipeline.pipeline import Pipeline
from tests.support.world import World

ALL = ["ingest", "select", "report"]
CACHED = dict.fromkeys(ALL, ("cached", ""))


# --- the cache ----------------------------------------------------------------------------------


def test_nothing_is_there_at_first(world: World):
    assert world.states() == {
        "ingest": ("missing", "never run"),
        "select": ("missing", "waits for facts"),
        "report": ("missing", "waits for facts, selected"),
    }
    assert not world.root.exists()


def test_all_stages_run_once_and_are_cached_then(world: World):
    assert world.run() == ALL
    assert world.said[0] == "[1/3] ingest: never run"
    assert world.said[1].startswith("[1/3] ingest: 2 rows in ")
    before = world.files()
    assert world.states() == CACHED
    assert world.run() == []
    assert world.said == ["[1/3] ingest: cached", "[2/3] select: cached", "[3/3] report: cached"]
    assert world.files() == before


def test_a_run_returns_the_states_afterwards(world: World):
    pipeline = world.pipeline()
    states = pipeline.run(pipeline.selection(None, None, None), on_event=str)
    assert [(s.stage.name, s.state) for s in states] == [(name, "cached") for name in ALL]
    rows = [s.as_row() for s in states]
    assert [row["rows"] for row in rows] == [2, 2, None]
    assert [Path(row["uri"]).parts[-3] for row in rows] == ["facts", "selected", "report"]
    assert json.loads(json.dumps(rows)) == rows


def test_a_changed_key_makes_its_stage_stale_and_says_which(world: World):
    world.run()
    assert world.states("select.top_k=1") == CACHED | {
        "select": ("stale", "select.top_k: 3 → 1"),
        "report": ("stale", "waits for selected"),
    }
    assert world.run("select.top_k=1") == ["select", "report"]
    assert world.said[:2] == ["[1/3] ingest: cached", "[2/3] select: select.top_k: 3 → 1"]
    assert world.states("select.top_k=1") == CACHED


def test_going_back_to_what_ran_before_runs_nothing(world: World):
    world.run()
    world.run("select.top_k=1")
    assert world.states() == CACHED
    assert world.run() == []


def test_the_reason_compares_with_the_last_run_and_not_with_an_older_one(world: World):
    for value in (3, 1, 7):
        world.run(f"select.top_k={value}")
    assert world.states("select.top_k=4")["select"] == ("stale", "select.top_k: 7 → 4")


def test_equal_output_stops_the_change_from_going_further(world: World):
    world.run()
    assert world.run("select.top_k=2") == ["select"]
    assert world.states("select.top_k=2") == CACHED


@pytest.mark.parametrize(
    "override",
    [
        "resources.memo.num_actors=4",
        "resources.train.num_workers=2",
        "resources.autoscaling=[{gpus: 8}]",
        "memo.stride=9",
    ],
)
def test_resources_and_other_sections_change_nothing(world: World, override: str):
    world.run()
    assert world.states(override) == CACHED
    assert world.run(override) == []


def test_a_changed_byte_of_the_data_is_noticed(world: World):
    world.run()
    world.write("A", "C")
    os.utime(world.data, ns=(10**18, 10**18))
    assert world.states()["ingest"] == ("stale", "input data changed")
    assert world.run() == ALL


def test_a_byte_changed_behind_the_times_back_is_noticed_by_verify(world: World):
    os.utime(world.data, ns=(10**18, 10**18))
    world.run()
    world.write("A", "C")
    os.utime(world.data, ns=(10**18, 10**18))
    assert world.states() == CACHED
    assert world.states(verify=True)["ingest"] == ("stale", "input data changed")


def test_moved_data_is_the_same_data(world: World):
    world.run()
    world.data = world.data.rename(world.data.with_name("moved.jsonl"))
    assert world.states() == CACHED


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


def test_several_reasons_are_all_named(world: World):
    world.run()
    world.write("A", "C", "D")
    assert world.states("ingest.on_reject=skip")["ingest"] == (
        "stale",
        "input data changed; ingest.on_reject: 'fail' → 'skip'",
    )


# --- which stages run ---------------------------------------------------------------------------


def test_only_from_and_until_choose_stages(world: World):
    pipeline = world.pipeline()

    def names(*options: str | None) -> list[str]:
        return [s.name for s in pipeline.selection(*options)]

    assert names(None, None, None) == ALL
    assert names("select", None, None) == ["select"]
    assert names(None, "select", None) == ["select", "report"]
    assert names(None, None, "select") == ["ingest", "select"]
    assert names(None, "select", "select") == ["select"]


@pytest.mark.parametrize(
    ("options", "option"),
    [(("x",), "--only"), ((None, "x"), "--from"), ((None, None, "x"), "--until")],
)
def test_an_unknown_stage_is_refused_with_those_there_are(
    world: World, options: tuple, option: str
):
    only, start, until = (*options, None, None)[:3]
    with pytest.raises(
        MeowError,
        match=f"^{option} x: there is no such stage here; there are ingest, select, report",
    ):
        world.pipeline().selection(only, start, until)


def test_a_first_stage_behind_the_last_is_refused(world: World):
    with pytest.raises(MeowError, match=r"--from report.*--until ingest"):
        world.pipeline().selection(None, "report", "ingest")


def test_stages_before_the_first_must_be_cached(world: World):
    with pytest.raises(MeowError) as caught:
        world.run(only="select")
    said = "Stage select needs facts, which is not there (stage ingest: never run)."
    assert str(caught.value).startswith(said)
    assert "--until ingest" in str(caught.value)
    assert "--input facts=URI" in str(caught.value)
    assert world.run(until="ingest") == ["ingest"]
    assert world.run(only="select") == ["select"]
    assert world.run(start="select") == ["report"]


def test_only_runs_nothing_else_even_where_something_is_stale(world: World):
    world.run()
    assert world.run("report.title=New", "select.top_k=1", only="select") == ["select"]
    assert world.states("report.title=New", "select.top_k=1")["report"][0] == "stale"


# --- force --------------------------------------------------------------------------------------


def test_force_makes_a_new_attempt_and_never_overwrites(world: World):
    world.run()
    before = world.files()
    assert world.run(force=True) == ALL
    assert world.said[0] == "[1/3] ingest: forced"
    after = world.files()
    assert {path: after[path] for path in before} == before
    assert len([path for path in after if path.endswith("MANIFEST.json")]) == 6
    assert world.states() == CACHED


def test_what_follows_a_forced_stage_runs_again_only_if_it_made_something_else(world: World):
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


# --- crashes and other drivers ------------------------------------------------------------------


def crash(context: Context) -> dict[str, Any]:
    storage.write_bytes(storage.join(context.out, "half.parquet"), b"half")
    raise RuntimeError("the worker died")


def test_a_crash_leaves_no_artifact_and_what_was_finished_stays(world: World):
    whole, world.runs["select"] = world.runs["select"], crash
    with pytest.raises(RuntimeError, match="the worker died"):
        world.run()
    assert not [path for path in world.files() if "half" in path or "selected" in path]
    assert world.states() == {
        "ingest": ("cached", ""),
        "select": ("missing", "never run"),
        "report": ("missing", "waits for selected"),
    }
    world.runs["select"] = whole
    assert world.run() == ["select", "report"]


def test_a_crash_of_a_forced_stage_leaves_the_old_artifact(world: World):
    world.run()
    before = world.files()
    world.runs["select"] = crash
    with pytest.raises(RuntimeError):
        world.run(force=True, only="select")
    assert world.files() == before
    assert world.states() == CACHED


def test_of_two_drivers_the_first_manifest_wins(world: World):
    whole, first = world.runs["select"], []

    def overtaken(context: Context) -> dict[str, Any]:
        world.runs["select"] = whole
        first.append(world.pipeline().run(list(world.stages), on_event=str))
        return whole(context)

    world.runs["select"] = overtaken
    assert world.run() == ["ingest", "select", "select", "report"], (
        "the second driver's report is cached"
    )
    assert len([path for path in world.files() if path.endswith("MANIFEST.json")]) == 3
    assert [s.artifact for s in world.pipeline().states()] == [s.artifact for s in first[0]]


def test_a_driver_whose_work_another_has_finished_and_cleared_uses_what_the_other_made(
    world: World,
):
    whole = world.runs["select"]

    def overtaken(context: Context) -> dict[str, Any]:
        world.runs["select"] = whole
        storage.write_json(storage.join(context.work, "half.json"), "half of the work")
        world.run()
        storage.read_json(storage.join(context.work, "half.json"))
        return whole(context)

    world.runs["select"] = overtaken
    assert world.run() == ["ingest", "select", "select", "report"]
    assert world.states() == CACHED
    assert not [path for path in world.files() if "half" in path]


# --- the real stages ----------------------------------------------------------------------------


def test_the_stages_are_those_of_the_design_in_order():
    names = [
        "memorize",
        "ingest",
        "invert",
        "memo",
        "select",
        "reference",
        "train",
        "remain",
        "evaluate",
        "report",
    ]
    assert [s.name for s in STAGES] == names
    made = [s.artifact for s in STAGES]
    assert made[1:8] == [
        "facts",
        "candidates",
        "memo",
        "selected",
        "reference",
        "model",
        "remaining",
    ]
    assert made[8:] == ["metrics", "report"]
    outside = {"data", "memorize_data", "base", "generator", "target", "sets", "objective", "roles"}
    outside |= {"retain_model", "text", "task_folder"}
    for i, step in enumerate(STAGES):
        assert set(step.inputs) <= outside | set(made[:i])


MEOW = {"select": ("memo",), "train": ("selected", "target", "objective")}
GRADIENT_ASCENT = {"train": ("facts", "target", "objective")}
ALTPO = {
    "reference": ("selected", "facts", "target", "roles"),
    "train": ("selected", "facts", "reference", "target", "objective"),
}


@pytest.mark.parametrize(
    ("objective", "inputs"),
    [("meow", MEOW), ("gradient_ascent", GRADIENT_ASCENT), ("altpo", ALTPO)],
)
def test_training_depends_on_what_its_objective_reads_alone(
    objective: str, inputs: dict[str, tuple[str, ...]]
):
    found = {
        s.name: s.inputs
        for s in Pipeline(load_config(None, [f"train.objective={objective}"])).stages
    }
    assert {name: found[name] for name in inputs} == inputs
    assert ("reference" in found) == ("reference" in inputs)


def test_an_objective_is_known_by_what_it_comes_to():
    def digest(name: str, *overrides: str) -> str:
        found = Pipeline(load_config(None, [*overrides])).artifact(name)
        assert found is not None
        return found.digest

    npo = "train.objective=npo"
    assert digest("objective", npo) == digest(
        "objective", npo, "train.settings={beta: 0.1}", "train.retain_weight=0"
    )
    assert digest("objective", npo) != digest("objective", npo, "train.settings={beta: 0.2}")
    assert digest("objective", npo) == digest("objective", npo, "train.idk_answers=[No.]"), (
        "it reads none"
    )
    assert digest("objective", "train.objective=dpo") != digest(
        "objective", "train.objective=dpo", "train.idk_answers=[No.]"
    )
    assert digest("roles", npo) == digest("roles", npo, "train.settings={beta: 0.2}"), (
        "scored once for all of them"
    )


def test_a_deepspeed_file_is_known_by_its_content(tmp_path: Path):
    file = tmp_path / "ds.json"

    def digest(text: str) -> str:
        file.write_text(text)
        found = Pipeline(load_config(None, [f"train.deepspeed={file}"])).artifact("train_deepspeed")
        assert found is not None
        return found.digest

    assert digest('{"a": 1, "b": 2}') == digest('{"b": 2,   "a": 1}') != digest('{"a": 1}')
    with pytest.raises(MeowError, match=r"ds\.json is no JSON"):
        digest("{")


def test_changing_top_k_reruns_select_and_what_follows_and_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran: list[str] = []

    def fake(stage: Stage) -> Stage:
        def run(context: Context) -> dict[str, Any]:
            ran.append(stage.name)
            if stage.artifact in schema.SCHEMAS:
                spec = {
                    name: str(getattr(context.config, name))
                    for name in stage.sections
                    if "." not in name
                }
                read = () if stage.name == "ingest" else context.inputs.items()
                key = json.dumps([spec, {name: a.digest for name, a in read}])
                values = {
                    f.name: [key if f.type == pa.string() else 0]
                    for f in schema.SCHEMAS[stage.artifact]
                }
                context.write(pa.table(values, schema=schema.SCHEMAS[stage.artifact]))
            else:
                digests = [a.digest for a in context.inputs.values()]
                storage.write_bytes(storage.join(context.out, "file"), json.dumps(digests).encode())
            return {}

        return replace(stage, run=run)

    stages = [fake(stage) for stage in STAGES]
    for name in ("target", "generator"):
        storage.write_bytes(str(tmp_path / name / "config.json"), b"{}")
        storage.write_bytes(str(tmp_path / name / "model.safetensors"), name.encode())
    (tmp_path / "forget.jsonl").write_text('{"question": "Q", "answer": "A"}')
    base = [
        f"target.model={tmp_path}/target",
        f"invert.model={tmp_path}/generator",
        f"ingest.forget={tmp_path}/forget.jsonl",
        f"storage.root={tmp_path}/root",
    ]

    def executed(*overrides: str) -> list[str]:
        pipeline, before = Pipeline(load_config(None, [*base, *overrides]), stages=stages), len(ran)
        pipeline.run(pipeline.selection(None, None, None), on_event=str)
        return ran[before:]

    every = ["ingest", "invert", "memo", "select", "train", "evaluate", "report"]
    assert executed() == every
    assert executed() == []
    assert executed("select.top_k=2") == ["select", "train", "evaluate", "report"]
    assert executed("report.title=New") == ["report"]
    assert executed("invert.seed=1") == every[1:]
    assert executed("resources.memo.num_actors=2", "resources.train.zero_stage=3") == []
    storage.write_bytes(str(tmp_path / "target" / "model.safetensors"), b"another target")
    assert executed() == [name for name in every if name != "invert"], "the facts are the same"
    states = Pipeline(load_config(None, [*base, "train.epochs=9"]), stages=stages).states()
    assert [(s.stage.name, s.state, s.reason) for s in states[4:]] == [
        ("train", "stale", "train.epochs: 5 → 9"),
        ("evaluate", "stale", "waits for model"),
        ("report", "stale", "waits for model, metrics"),
    ]


def test_a_pipeline_on_s3_is_cached_there(world: World, s3: Callable[[str], str]):
    root = f"storage.root={s3('pipeline')}"
    assert world.run(root) == ALL
    assert world.states(root) == CACHED
    assert world.run(root, "select.top_k=1") == ["select", "report"]
    pipeline = world.pipeline(root)
    state = pipeline.state(world.stages[0])
    assert execute(state, pipeline.config, {"data": pipeline.artifact("data")}).table.num_rows == 2
    assert world.states(root) == CACHED
