"""Training that ends by itself: a model memorises facts, then forgets them."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meow_ray.config import Train, TrainResources
from meow_ray.stages.train.stop import LEAST_STEPS
from tests.support.people import facts, selected, twins
from tests.support.training import Run, Workers, job

MEMORIZE = Train(objective="meow", epochs=60, batch_size=4, learning_rate=3e-3)
FORGET = Train(
    objective="meow_floor",
    settings={"level": 0, "lift": 0},
    stop_level=0.1,
    cooldown=0,
    kl_weight=0,
    batch_size=4,
    learning_rate=1e-3,
)
TWO_WORKERS = TrainResources(micro_batch_size=1, zero_stage=2)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    group = Workers(2)
    yield group
    group.close()


@pytest.fixture(scope="module")
def memorised(tiny_model: Path, workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memorised")
    learn = job(folder, tiny_model, facts(), selected(inverted=False), MEMORIZE, TWO_WORKERS)
    workers.train([Run(learn, folder / "checkpoints")])
    return Path(learn.out)


@pytest.fixture(scope="module")
def histories(
    memorised: Path, workers: Workers, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """Histories of runs that forget."""
    folder = tmp_path_factory.mktemp("forgotten")

    def run(name: str, **settings: Any) -> Run:
        spec = FORGET.model_copy(update=settings)
        tables = facts(), selected(inverted=True)
        forget = job(folder, memorised, *tables, spec, TWO_WORKERS, twins=twins())
        return Run(forget, folder / name)

    unreachable = {"stop_level": 0.99999, "max_steps": 30}
    stopped = run("stopped", **unreachable)
    runs = {
        "by itself": run("by itself", max_steps=100),
        "cooled": run("cooled", max_steps=100, cooldown=0.5),
        "whole": run("whole", **unreachable),
        "stopped": Run(stopped.job, stopped.checkpoints, stop_at=20),
        "resumed": Run(run("again", **unreachable).job, folder / "again", folder / "stopped/20"),
    }
    return dict(zip(runs, workers.train(list(runs.values())), strict=True))


def comparisons(history: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Returns the p-values by the step after which the facts were compared."""
    return {record["step"]: record["never_seen"] for record in history if "never_seen" in record}


def test_training_ends_when_the_facts_look_never_seen(histories: dict[str, Any]):
    by_step = comparisons(histories["by itself"])
    last = max(by_step)
    assert len(histories["by itself"]) == last < 100
    assert list(by_step) == list(range(LEAST_STEPS, last + 1, LEAST_STEPS))
    assert min(by_step[last].values()) > 0.1
    assert all(min(by_step[step].values()) <= 0.1 for step in by_step if step < last)
    assert min(by_step[LEAST_STEPS].values()) < 0.05


def test_the_learning_rate_falls_to_0_after_the_facts_look_never_seen(histories: dict[str, Any]):
    start = len(histories["by itself"])
    cooled = histories["cooled"]
    assert len(cooled) == start + math.ceil(start / 2)
    for record, expected in zip(cooled, histories["by itself"], strict=False):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    rates = [record["learning_rate"] for record in cooled[start:]]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    assert rates[-1] < 0.2 * rates[0]
    assert "never_seen" in cooled[-1]


def test_training_that_does_not_reach_the_level_takes_all_its_steps(histories: dict[str, Any]):
    assert len(histories["whole"]) == 30


def test_a_resumed_run_has_the_same_losses_and_comparisons(histories: dict[str, Any]):
    whole, resumed = histories["whole"], histories["resumed"]
    assert [record["loss"] for record in resumed] == pytest.approx(
        [record["loss"] for record in whole], rel=1e-4, abs=1e-6
    )
    for step, p_values in comparisons(whole).items():
        assert comparisons(resumed)[step] == pytest.approx(p_values)
