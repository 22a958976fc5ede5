"""What the cluster can hold: actors and workers of each stage against its nodes."""

import json
from collections import Counter
from collections.abc import Mapping

from meow_ray.config import EngineResources, Resources, TrainResources
from meow_ray.errors import MeowError


def capacity(resources: Resources, labels: Mapping[str, str]) -> list[tuple[float, float]]:
    """Returns CPUs and GPUs of each node with such labels: of those there, or if any are declared, of those to come."""
    import ray

    if resources.autoscaling:
        kinds = [kind for kind in resources.autoscaling if labels.items() <= kind.labels.items()]
        return [(kind.cpus, kind.gpus) for kind in kinds for _ in range(kind.max_nodes)]
    nodes = [
        node for node in ray.nodes() if node["Alive"] and labels.items() <= node["Labels"].items()
    ]
    return [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes]


def has_gpus(resources: Resources, labels: Mapping[str, str]) -> bool:
    """Tells whether nodes with such labels have GPUs."""
    return any(gpus for _, gpus in capacity(resources, labels))


def gpus_per_actor(name: str, resources: Resources) -> int:
    """Returns the GPUs of one engine actor of a stage."""
    own: EngineResources = getattr(resources, name)
    gpus = own.gpus_per_actor
    if gpus == "auto":
        gpus = own.tensor_parallel_size if has_gpus(resources, own.node_labels) else 0
    if gpus < own.tensor_parallel_size and (gpus or own.tensor_parallel_size > 1):
        raise MeowError(
            f"`gpus_per_actor` is {gpus} and `tensor_parallel_size` {own.tensor_parallel_size}: "
            "an engine needs a GPU for each part of its weights."
        )
    return gpus


def num_workers(name: str, resources: Resources) -> int:
    """Returns the number of ZeRO workers of a stage: one a GPU; on CPU two, if there are two CPUs."""
    own: TrainResources = getattr(resources, name)
    nodes = capacity(resources, own.node_labels)
    gpus = int(sum(gpus for _, gpus in nodes))
    return own.workers(gpus or min(2, int(sum(cpus for cpus, _ in nodes) // own.cpus_per_worker)))


def least_workers(name: str, resources: Resources) -> int:
    """Returns the number of ZeRO workers that a stage can do with."""
    own: TrainResources = getattr(resources, name)
    workers = num_workers(name, resources)
    return min(own.min_workers or workers, workers)


def require(name: str, resources: Resources, *, on_gpu: bool = True) -> None:
    """Checks that the cluster can ever hold the least actors or workers of a section of the resources.

    Args:
        name: the section.
        resources: the configuration's resources.
        on_gpu: False: its actors use no GPU, whatever there is.

    Raises:
        MeowError: says what is asked for, what is there, and which key to change.
    """
    own: EngineResources | TrainResources = getattr(resources, name)
    if isinstance(own, TrainResources):
        count, cpus, spare_cpus = least_workers(name, resources), own.cpus_per_worker, 0
        gpus = int(has_gpus(resources, own.node_labels))
    else:
        # Ray Data reads, filters and writes with tasks of one CPU beside the actors
        count, cpus, spare_cpus = own.actors[0], own.cpus_per_actor, 1
        gpus = gpus_per_actor(name, resources) if on_gpu else 0
    nodes = capacity(resources, own.node_labels)
    slots = [
        min(have // cpus if cpus else count, there // gpus if gpus else count)
        for have, there in nodes
    ]
    all_cpus = sum(have for have, _ in capacity(resources, {}))
    if sum(slots) >= count and all_cpus >= count * cpus + spare_cpus:
        return
    kinds = Counter(f"{have:g} CPUs and {there:g} GPUs" for have, there in nodes)
    have = "; ".join(f"{number} x {kind}" for kind, number in kinds.items()) or "no such node"
    where = f" on nodes labelled {json.dumps(dict(own.node_labels))}" if own.node_labels else ""
    beside = f" and {spare_cpus} CPU beside them" if spare_cpus else ""
    may = "may have at most (resources.autoscaling)" if resources.autoscaling else "has"
    hint = (
        ""
        if resources.autoscaling
        else ", or name in resources.autoscaling what the cluster adds on demand"
    )
    raise MeowError(
        f"`resources.{name}` asks for {count} x ({cpus:g} CPUs, {gpus} GPUs, each on one node){where}{beside}; "
        f"the cluster {may}: {have}. Lower the key or add nodes{hint}."
    )
