"""What the commands share that make a model from finished runs: `meow soup` and `meow merge`."""

from collections.abc import Callable
from typing import Any, TypeVar

from meow_ray.config import Config, Resources
from meow_ray.core import storage
from meow_ray.distributed import cluster, map_rows, placement
from meow_ray.errors import MeowError
from meow_ray.stages.train import objectives

T = TypeVar("T")

_SECTION = "evaluate"
"""The section of the resources for the tasks that make and ask models."""


def check_new(uri: str) -> None:
    """Refuses a folder that holds files, because the model would be mixed with them.

    Raises:
        MeowError: it does.
    """
    if storage.exists(uri) and storage.list_names(uri):
        raise MeowError(
            f"--out {storage.display(uri)}: there are files already. Name a new folder."
        )


def stop_level(config: Config) -> float:
    """Returns the p-value that the comparisons of facts and twins have to exceed."""
    return objectives.configured(config.train).stop_level


def connect(resources: Resources) -> None:
    """Joins or starts a cluster.

    Raises:
        MeowError: no node can hold an actor of `evaluate`.
    """
    cluster.connect()
    placement.require(_SECTION, resources)


def call(resources: Resources, function: Callable[..., T], *arguments: Any) -> T:
    """Runs a function in a task with the CPUs and GPUs of an actor of `evaluate`."""
    gpus = placement.gpus_per_actor(_SECTION, resources)
    return cluster.call(
        function,
        *arguments,
        cpus=resources.evaluate.cpus_per_actor,
        gpus=gpus,
        labels=resources.evaluate.node_labels,
        env=map_rows.actor_env(resources.evaluate, gpus),
    )
