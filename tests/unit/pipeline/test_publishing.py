"""Publishing artifacts despite crashes, and while another driver works on the same storage root."""

import re
import threading
from dataclasses import dataclass, field
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


@dataclass
class SecondDriver:
    """Another driver of the stage select, which comes while the first one works on it."""

    world: World
    force: bool = False
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        select = self.world.runs["select"]
        waits = threading.Event()

        def keep(event: Event) -> None:
            self.events.append(event)
            waits.set()

        def drive() -> None:
            pipeline = self.world.pipeline()
            chosen = pipeline.selection("select", None, None)
            pipeline.run(chosen, force=self.force, on_event=keep)

        self.thread = threading.Thread(target=drive)

        def until_it_waits(context: Context) -> dict[str, Any]:
            self.thread.start()
            assert waits.wait(60)
            return select(context)

        self.world.runs["select"] = until_it_waits


def test_of_two_drivers_one_works_and_the_other_uses_its_result(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEOW_LEASE_BEAT", "1")
    second = SecondDriver(world)
    assert world.run() == ["ingest", "select", "report"]
    second.thread.join()
    waiting, cached = second.events
    assert str(waiting).startswith("[1/1] select: waits for another driver (process ")
    assert cached.kind == "cached"
    assert cached.state.artifact == world.pipeline().artifact("selected")
    assert world.states() == CACHED


def test_a_forced_driver_uses_what_was_made_while_it_waited(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEOW_LEASE_BEAT", "1")
    world.run()
    second = SecondDriver(world, force=True)
    assert world.run(force=True, only="select") == ["select"]
    second.thread.join()
    assert [event.kind for event in second.events] == ["waiting", "cached"]
    made = second.events[1].state.artifact
    assert made is not None
    assert made.number == 2


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
