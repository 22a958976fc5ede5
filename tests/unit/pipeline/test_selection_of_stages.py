"""The stages that `--only`, `--from` and `--until` select, and the inputs that they need."""

import re

import pytest

from meow_ray.errors import MeowError
from tests.support.world import World

ALL = ["ingest", "select", "report"]


def test_only_from_and_until_select_stages(world: World):
    pipeline = world.pipeline()

    def names(*options: str | None) -> list[str]:
        return [s.name for s in pipeline.selection(*options)]

    assert names(None, None, None) == ALL
    assert names("select", None, None) == ["select"]
    assert names(None, "select", None) == ["select", "report"]
    assert names(None, None, "select") == ["ingest", "select"]
    assert names(None, "select", "select") == ["select"]


@pytest.mark.parametrize("option", ["--only", "--from", "--until"])
def test_an_unknown_stage_is_refused_with_the_known_stages(world: World, option: str):
    only, start, until = ("x" if option == o else None for o in ("--only", "--from", "--until"))
    message = f"{option} x: this run has no such stage. Choose from ingest, select, report."
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        world.pipeline().selection(only, start, until)


def test_a_first_stage_after_the_last_is_refused(world: World):
    message = "--from report comes after --until ingest. The order is ingest, select, report."
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        world.pipeline().selection(None, "report", "ingest")


def test_stages_before_the_first_must_be_cached(world: World):
    message = (
        "Stage select needs facts, which does not exist yet (stage ingest: never run). "
        "Run with --until ingest first, or give --input facts=URI."
    )
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        world.run(only="select")
    assert world.run(until="ingest") == ["ingest"]
    assert world.run(only="select") == ["select"]
    assert world.run(start="select") == ["report"]


def test_only_runs_nothing_else_even_if_other_stages_are_stale(world: World):
    world.run()
    assert world.run("report.title=New", "select.top_k=1", only="select") == ["select"]
    assert world.states("report.title=New", "select.top_k=1")["report"][0] == "stale"
