"""Mistakes are found before a run, all at once; nothing runs and no cluster is joined."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from meow_ray.config import Config
from meow_ray.core.stage import Check, Known
from meow_ray.errors import MeowError
from meow_ray.pipeline import preflight
from tests.support.world import World


def finds(*mistakes: str) -> Check:
    def check(config: Config, known: Known) -> Iterator[str]:
        yield from mistakes

    return check


def refuses(config: Config, known: Known) -> Iterator[str]:
    raise MeowError("`select`: refused.")


def use_checks(world: World, **checks: Check) -> None:
    """Gives stages of a world a check each, by the stage's name."""
    world.use(
        *(
            replace(stage, checks=(checks[stage.name],)) if stage.name in checks else stage
            for stage in world.stages
        )
    )


def test_all_mistakes_of_all_stages_are_found_before_the_first_runs(world: World):
    use_checks(world, ingest=finds("One.", "Two."), select=refuses, report=finds("One.", "Three."))
    with pytest.raises(MeowError) as caught:
        world.run()
    assert str(caught.value) == (
        "4 mistakes were found before the run:\n- One.\n- Two.\n- `select`: refused.\n- Three."
    )
    assert world.ran == []


def test_a_single_mistake_is_the_whole_message(world: World):
    use_checks(world, select=refuses)
    with pytest.raises(MeowError, match=r"^`select`: refused\.$"):
        world.run()


def test_only_stages_that_would_run_are_checked(world: World):
    assert world.run(until="ingest") == ["ingest"]
    use_checks(world, ingest=finds("One."), report=finds("Two."))
    assert world.run(until="select") == ["select"]
    with pytest.raises(MeowError, match=r"^One\.$"):
        world.run(until="select", force=True)
    with pytest.raises(MeowError, match=r"^Two\.$"):
        world.run()


def test_missing_files_are_found_together_with_the_mistakes_of_stages(world: World):
    world.data.unlink()
    use_checks(world, report=finds("Three."))
    with pytest.raises(MeowError) as caught:
        world.run()
    first, *rest = str(caught.value).splitlines()
    assert first == "2 mistakes were found before the run:"
    assert str(world.data) in rest[0]
    assert rest[1] == "- Three."


def test_a_check_sees_the_table_that_an_earlier_stage_will_write(world: World):
    seen = {}

    def look(config: Config, known: Known) -> Iterator[str]:
        seen.update({name: artifact.value for name, artifact in known.items()})
        yield from ()

    ingest, select, report = world.stages
    world.run(until="ingest")
    table = world.pipeline().artifact("facts").table
    world.use(
        replace(ingest, version=2, foresee=lambda config, known: table),
        replace(select, checks=(look,)),
        report,
    )
    pipeline = world.pipeline()
    pipeline.preflight(pipeline.selection(None, None, None))
    assert seen["facts"] is table
    assert "selected" not in seen


def test_what_cannot_be_foreseen_is_a_mistake_and_other_checks_go_on(world: World):
    def refuse(config: Config, known: Known) -> None:
        raise MeowError("3 rows were rejected.")

    ingest, select, report = world.stages
    steps = [replace(ingest, foresee=refuse), replace(select, checks=(finds("Two."),)), report]
    config = world.pipeline().config
    assert preflight.findings(config, steps, {}) == ["3 rows were rejected.", "Two."]


def test_an_input_that_no_chosen_stage_makes_is_found_first(world: World):
    with pytest.raises(MeowError, match=r"^Stage select needs facts, which does not exist yet"):
        world.run(start="select")
    assert world.ran == []
