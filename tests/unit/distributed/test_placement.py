"""Placement on an autoscaling cluster: demands that fit, and refusals that name what there is."""

import pytest

from meow_ray.config.files import load_config
from meow_ray.distributed import placement
from meow_ray.errors import MeowError
from meow_ray.pipeline.graph import STAGES

AUTOSCALING = (
    "resources.autoscaling=["
    "{cpus: 8, gpus: 2, max_nodes: 2, labels: {group: a}}, {cpus: 4, max_nodes: 3}]"
)


def require(section: str, *overrides: str) -> None:
    placement.require(section, load_config(None, [AUTOSCALING, *overrides]).resources)


@pytest.mark.parametrize(
    ("section", "overrides"),
    [
        ("memo", ["resources.memo.num_actors=4"]),
        ("memo", ["resources.memo.num_actors=[4,400]"]),
        ("memo", ["resources.memo.num_actors=2", "resources.memo.tensor_parallel_size=2"]),
        ("invert", ["resources.invert.num_actors=26", "resources.invert.gpus_per_actor=0"]),
        ("train", ["resources.train.num_workers=4", "resources.train.cpus_per_worker=4"]),
        ("train", ["resources.train.num_workers=40", "resources.train.min_workers=4"]),
    ],
)
def test_a_stage_is_accepted_if_its_least_number_fits(section: str, overrides: list[str]):
    require(section, *overrides)


ALL_NODES = "2 x 8 CPUs and 2 GPUs; 3 x 4 CPUs and 0 GPUs"


@pytest.mark.parametrize(
    ("section", "overrides", "needed", "available"),
    [
        (
            "memo",
            ["num_actors=5"],
            "5 x (0.5 CPUs, 1 GPUs, each on one node) and 1 CPU for tasks",
            ALL_NODES,
        ),
        (
            "memo",
            ["num_actors=1", "tensor_parallel_size=4"],
            "1 x (0.5 CPUs, 4 GPUs, each on one node) and 1 CPU for tasks",
            ALL_NODES,
        ),
        (
            "evaluate",
            ["num_actors=[57,58]", "gpus_per_actor=0"],
            "57 x (0.5 CPUs, 0 GPUs, each on one node) and 1 CPU for tasks",
            ALL_NODES,
        ),
        ("train", ["num_workers=5"], "5 x (1 CPUs, 1 GPUs, each on one node)", ALL_NODES),
        ("train", ["cpus_per_worker=9"], "4 x (9 CPUs, 1 GPUs, each on one node)", ALL_NODES),
        (
            "train",
            ["num_workers=1", "node_labels={group: b}"],
            '1 x (1 CPUs, 0 GPUs, each on one node) on nodes labelled {"group": "b"}',
            "no such node",
        ),
    ],
)
def test_a_stage_that_never_fits_is_refused_with_demand_and_nodes(
    section: str, overrides: list[str], needed: str, available: str
):
    with pytest.raises(MeowError) as refused:
        require(section, *(f"resources.{section}.{override}" for override in overrides))
    assert str(refused.value) == (
        f"`resources.{section}`: it needs {needed}, but the cluster can grow to at most: "
        f"{available}. Lower the key, or add nodes to `resources.autoscaling`."
    )


@pytest.mark.parametrize(
    ("nodes", "overrides", "workers", "cpus"),
    [
        ("[{cpus: 2, max_nodes: 1}]", [], 1, 2),
        ("[{cpus: 16, max_nodes: 3}]", [], 3, 16),
        ("[{cpus: 16, max_nodes: 3}]", ["max_workers=2"], 2, 16),
        ("[{cpus: 16, max_nodes: 3}]", ["num_workers=2"], 2, 16),
        ("[{cpus: 2, max_nodes: 1}]", ["num_workers=2"], 2, 1),
        ("[{cpus: 7, max_nodes: 1}]", ["num_workers=2"], 2, 3),
        ("[{cpus: 2, max_nodes: 1}]", ["num_workers=3"], 3, 1),
        ("[{cpus: 2, max_nodes: 1}]", ["cpus_per_worker=1"], 1, 1),
        ("[{cpus: 0.5, max_nodes: 1}, {cpus: 8, max_nodes: 2}]", [], 2, 8),
        ("[{cpus: 2, max_nodes: 1}, {cpus: 64, max_nodes: 1}]", [], 1, 64),
        ("[{cpus: 6, max_nodes: 1}, {cpus: 8, max_nodes: 1}]", [], 2, 6),
        ("[{cpus: 8, gpus: 2, max_nodes: 2}, {cpus: 64, max_nodes: 1}]", [], 4, 1),
    ],
)
def test_workers_have_all_cores_of_the_nodes_or_a_gpu_each(
    nodes: str, overrides: list[str], workers: int, cpus: int
):
    settings = [f"resources.train.{override}" for override in overrides]
    resources = load_config(None, [f"resources.autoscaling={nodes}", *settings]).resources
    assert placement.num_workers("train", resources) == workers
    assert placement.cpus_per_worker("train", resources) == cpus


def test_a_partitioned_engine_needs_one_gpu_for_each_part():
    with pytest.raises(MeowError) as refused:
        require("memo", "resources.memo.tensor_parallel_size=2", "resources.memo.gpus_per_actor=1")
    assert str(refused.value) == (
        "`resources.memo.gpus_per_actor`: an engine needs one GPU for each of its 2 parts (got 1). "
        "Raise it, or lower `resources.memo.tensor_parallel_size`."
    )


def test_stages_with_actors_or_workers_name_their_resources():
    sections = {stage.name: stage.resources for stage in STAGES if stage.resources}
    assert sections == {
        "memorize": "memorize",
        "invert": "invert",
        "paraphrases": "invert",
        "neighbours": "memo",
        "memo": "memo",
        "guesses": "invert",
        "reference": "memo",
        "fila": "train",
        "train": "train",
        "remain": "memo",
        "evaluate": "evaluate",
        "audit": "audit",
    }
