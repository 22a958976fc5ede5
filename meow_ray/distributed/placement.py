"""Placement: whether the nodes of the cluster can hold the actors and workers of each stage."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meow_ray.config import EngineResources, Resources, TrainResources
from meow_ray.errors import MeowError

Node = tuple[float, float]
"""CPUs and GPUs of a node."""


def capacity(resources: Resources, labels: Mapping[str, str]) -> list[Node]:
    """Returns CPUs and GPUs of each node with the given labels.

    If `resources.autoscaling` is set, these are the nodes that the cluster may grow to, else the
    nodes that it has now.
    """
    import ray

    if resources.autoscaling:
        kinds = [kind for kind in resources.autoscaling if labels.items() <= kind.labels.items()]
        return [(kind.cpus, kind.gpus) for kind in kinds for _ in range(kind.max_nodes)]
    nodes = [
        node for node in ray.nodes() if node["Alive"] and labels.items() <= node["Labels"].items()
    ]
    return [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes]


def has_gpus(resources: Resources, labels: Mapping[str, str]) -> bool:
    """Returns whether any node with the given labels has a GPU."""
    return any(gpus for _, gpus in capacity(resources, labels))


def gpus_per_actor(name: str, resources: Resources) -> int:
    """Returns the number of GPUs of one engine actor of a stage.

    Raises:
        MeowError: the actor has fewer GPUs than parts of its engine's weights.
    """
    section: EngineResources = getattr(resources, name)
    parts = section.tensor_parallel_size
    gpus = section.gpus_per_actor
    if gpus == "auto":
        gpus = parts if has_gpus(resources, section.node_labels) else 0
    if gpus < parts and (gpus or parts > 1):
        raise MeowError(
            f"`resources.{name}.gpus_per_actor`: an engine needs one GPU for each of its {parts} "
            f"parts (got {gpus}). Raise it, or lower `resources.{name}.tensor_parallel_size`."
        )
    return gpus


def num_workers(name: str, resources: Resources) -> int:
    """Returns the number of ZeRO workers of a stage.

    `auto` is one worker per GPU. On CPU it is one worker per node with enough CPUs: one process
    with all cores of a node takes less time per step than several that share them.
    """
    section: TrainResources = getattr(resources, name)
    nodes = capacity(resources, section.node_labels)
    total_gpus = int(sum(gpus for _, gpus in nodes))
    if total_gpus:
        return section.workers(total_gpus)
    needed = section.cpus_per_worker
    if needed == "auto":
        needed = _most_useful_size(nodes)
    return section.workers(sum(cpus >= needed for cpus, _ in nodes))


def cpus_per_worker(name: str, resources: Resources) -> float:
    """Returns the number of CPUs that Ray reserves for one ZeRO worker of a stage.

    `auto` is 1 beside a GPU. On CPU it is the largest whole number with which the nodes hold all
    workers, or 1 if no number is small enough.
    """
    section: TrainResources = getattr(resources, name)
    if section.cpus_per_worker != "auto":
        return section.cpus_per_worker
    nodes = capacity(resources, section.node_labels)
    if any(gpus for _, gpus in nodes):
        return 1
    if section.num_workers == "auto":
        largest = _most_useful_size(nodes)
    else:
        largest = max((cpus for cpus, _ in nodes), default=1)
    workers = num_workers(name, resources)
    sizes = range(int(largest), 0, -1)
    return next((size for size in sizes if _num_held(nodes, size) >= workers), 1)


def _most_useful_size(nodes: Sequence[Node]) -> float:
    """Returns the CPUs of a worker with which one worker per node computes on most CPUs in all.

    Nodes with fewer CPUs get no worker: all workers of a step wait for the slowest.
    """
    sizes = {cpus for cpus, _ in nodes if cpus >= 1}
    return max(
        sizes, key=lambda size: (size * sum(cpus >= size for cpus, _ in nodes), size), default=1
    )


def _num_held(nodes: Sequence[Node], size: float) -> int:
    """Returns how many workers of some CPUs the nodes hold."""
    return sum(int(cpus // size) for cpus, _ in nodes)


def least_workers(name: str, resources: Resources) -> int:
    """Returns the smallest number of ZeRO workers with which a stage may run."""
    section: TrainResources = getattr(resources, name)
    workers = num_workers(name, resources)
    return min(section.min_workers or workers, workers)


@dataclass(frozen=True)
class _Demand:
    """The actors or workers that a stage needs at least, each of them on one node."""

    count: int
    cpus: float
    gpus: int
    extra_cpus: int = 0
    """CPUs that the stage needs next to its actors, on any node."""


def require(name: str, resources: Resources, *, on_gpu: bool = True) -> None:
    """Checks that the cluster can hold the least number of actors or workers of a stage.

    Args:
        name: the section of the resources.
        resources: the configuration's resources.
        on_gpu: False if the stage's actors use no GPU even where there are GPUs.

    Raises:
        MeowError: the cluster can never hold them; names the demand, the nodes and the key.
    """
    section: EngineResources | TrainResources = getattr(resources, name)
    demand = _demand(name, resources, on_gpu)
    nodes = capacity(resources, section.node_labels)
    cluster_cpus = sum(cpus for cpus, _ in capacity(resources, {}))
    enough_slots = sum(_slots(node, demand) for node in nodes) >= demand.count
    if enough_slots and cluster_cpus >= demand.count * demand.cpus + demand.extra_cpus:
        return
    raise MeowError(_refusal(name, resources, demand, section.node_labels, nodes))


def _demand(name: str, resources: Resources, on_gpu: bool) -> _Demand:
    section: EngineResources | TrainResources = getattr(resources, name)
    if isinstance(section, TrainResources):
        return _Demand(
            count=least_workers(name, resources),
            cpus=cpus_per_worker(name, resources),
            gpus=int(has_gpus(resources, section.node_labels)),
        )
    return _Demand(
        count=section.actors[0],
        cpus=section.cpus_per_actor,
        gpus=gpus_per_actor(name, resources) if on_gpu else 0,
        extra_cpus=1,  # Ray Data reads, filters and writes in tasks of one CPU
    )


def _slots(node: Node, demand: _Demand) -> float:
    """Returns how many of the demanded actors or workers a node can hold."""
    cpus, gpus = node
    by_cpus = cpus // demand.cpus if demand.cpus else demand.count
    by_gpus = gpus // demand.gpus if demand.gpus else demand.count
    return min(by_cpus, by_gpus)


def _refusal(
    name: str,
    resources: Resources,
    demand: _Demand,
    labels: Mapping[str, str],
    nodes: list[Node],
) -> str:
    needed = f"{demand.count} x ({demand.cpus:g} CPUs, {demand.gpus} GPUs, each on one node)"
    if labels:
        needed += f" on nodes labelled {json.dumps(dict(labels))}"
    if demand.extra_cpus:
        needed += f" and {demand.extra_cpus} CPU for tasks"
    kinds = Counter(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in nodes)
    available = "; ".join(f"{number} x {kind}" for kind, number in kinds.items()) or "no such node"
    if resources.autoscaling:
        limit = f"the cluster can grow to at most: {available}"
        remedy = "Lower the key, or add nodes to `resources.autoscaling`."
    else:
        limit = f"the cluster has: {available}"
        remedy = (
            "Lower the key, add nodes, or list in `resources.autoscaling` what the cluster adds."
        )
    return f"`resources.{name}`: it needs {needed}, but {limit}. {remedy}"
