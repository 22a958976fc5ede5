"""Publishing artifacts despite crashes, and while another driver works on the same storage root."""

import re
import threading
from typing import Any

import pytest

from meow_ray.core import storage
from meow_ray.core.stage import Context
from meow_ray.errors import MeowError
from meow_ray.pipeline.events import Event
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


def test_of_two_drivers_one_works_and_the_other_uses_its_result(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEOW_LEASE_BEAT", "0.2")
    select, events = world.runs["select"], []
    waiting = threading.Event()

    def drive_second() -> None:
        def keep(event: Event) -> None:
            events.append(event)
            waiting.set()

        pipeline = world.pipeline()
        pipeline.run(pipeline.selection("select", None, None), on_event=keep)

    second = threading.Thread(target=drive_second)

    def slow(context: Context) -> dict[str, Any]:
        second.start()
        assert waiting.wait(30)
        return select(context)

    world.runs["select"] = slow
    assert world.run() == ["ingest", "select", "report"]
    second.join()
    assert [event.kind for event in events] == ["waiting", "cached"]
    assert str(events[0]).startswith("[1/1] select: waits for another driver (process ")
    assert events[1].state.artifact == world.pipeline().artifact("selected")
    assert world.states() == CACHED


def test_a_forced_driver_uses_what_was_made_while_it_waited(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEOW_LEASE_BEAT", "0.2")
    world.run()
    select, events = world.runs["select"], []
    waiting = threading.Event()

    def drive_second() -> None:
        def keep(event: Event) -> None:
            events.append(event)
            waiting.set()

        pipeline = world.pipeline()
        pipeline.run(pipeline.selection("select", None, None), force=True, on_event=keep)

    second = threading.Thread(target=drive_second)

    def slow(context: Context) -> dict[str, Any]:
        second.start()
        assert waiting.wait(30)
        return select(context)

    world.runs["select"] = slow
    assert world.run(force=True, only="select") == ["select"]
    second.join()
    assert [event.kind for event in events] == ["waiting", "cached"]
    assert events[1].state.artifact is not None
    assert events[1].state.artifact.number == 2


def test_a_driver_that_must_not_wait_stops(world: World):
    refusals = []

    def occupied(context: Context) -> dict[str, Any]:
        pipeline = world.pipeline()
        with pytest.raises(MeowError) as refused:
            pipeline.run(pipeline.selection("select", None, None), wait=False, on_event=str)
        refusals.append(str(refused.value))
        return select(context)

    select, world.runs["select"] = world.runs["select"], occupied
    assert world.run() == ["ingest", "select", "report"]
    assert re.fullmatch(
        r"Stage select: another driver works on it \(process \d+ on .*, since .* UTC\)\. "
        r"Run with --wait to use its result, or use another `storage\.root`\.",
        *refusals,
    )


def test_a_driver_that_lost_its_lease_publishes_nothing(world: World):
    select = world.runs["select"]

    def replaced(context: Context) -> dict[str, Any]:
        storage.remove(storage.join(context.root, "leases"))
        return select(context)

    world.runs["select"] = replaced
    with pytest.raises(MeowError, match=r"^Stage select: another driver took this one for dead"):
        world.run()
    assert world.states()["select"] == ("missing", "never run")
    assert not [path for path in world.files() if "selected" in path]
