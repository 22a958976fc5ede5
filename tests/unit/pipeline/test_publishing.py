"""Publishing artifacts despite crashes, and while another driver works on the same storage root."""

from typing import Any

import pytest

from meow_ray.core import storage
from meow_ray.core.stage import Context
from tests.support.world import World

CACHED = dict.fromkeys(["ingest", "select", "report"], ("cached", ""))


def crash(context: Context) -> dict[str, Any]:
    storage.write_bytes(storage.join(context.out, "half.parquet"), b"half")
    raise RuntimeError("the worker died")


def test_a_crash_leaves_no_artifact_and_keeps_those_of_finished_stages(world: World):
    select, world.runs["select"] = world.runs["select"], crash
    with pytest.raises(RuntimeError, match="the worker died"):
        world.run()
    assert not [path for path in world.files() if "half" in path or "selected" in path]
    assert world.states() == {
        "ingest": ("cached", ""),
        "select": ("missing", "never run"),
        "report": ("missing", "waits for selected"),
    }
    world.runs["select"] = select
    assert world.run() == ["select", "report"]


def test_a_crash_of_a_forced_stage_keeps_the_old_artifact(world: World):
    world.run()
    before = world.files()
    world.runs["select"] = crash
    with pytest.raises(RuntimeError):
        world.run(force=True, only="select")
    assert world.files() == before
    assert world.states() == CACHED


def test_of_two_drivers_the_first_manifest_wins(world: World):
    select, states_of_other = world.runs["select"], []

    def overtaken(context: Context) -> dict[str, Any]:
        world.runs["select"] = select
        states_of_other.append(world.pipeline().run(list(world.stages), on_event=str))
        return select(context)

    world.runs["select"] = overtaken
    ran = world.run()
    assert ran == ["ingest", "select", "select", "report"], "the second driver's report is cached"
    assert len([path for path in world.files() if path.endswith("MANIFEST.json")]) == 3
    (other,) = states_of_other
    assert [s.artifact for s in world.pipeline().states()] == [s.artifact for s in other]


def test_a_driver_uses_what_another_published_if_its_unfinished_work_is_gone(world: World):
    select = world.runs["select"]

    def overtaken(context: Context) -> dict[str, Any]:
        world.runs["select"] = select
        storage.write_json(storage.join(context.work, "half.json"), "half of the work")
        world.run()
        storage.read_json(storage.join(context.work, "half.json"))
        return select(context)

    world.runs["select"] = overtaken
    assert world.run() == ["ingest", "select", "select", "report"]
    assert world.states() == CACHED
    assert not [path for path in world.files() if "half" in path]
