"""Whether results survive at a storage root: not in a job's package, nor on one node's disk."""

import os
import time
from uuid import uuid4

from meow_ray.core import storage
from meow_ray.distributed import cluster
from meow_ray.errors import MeowError

PACKAGES = "/runtime_resources/"
"""Part of the paths at which Ray unpacks the files of a job, which it deletes after the job."""
PROBE_TIMEOUT = 60
"""The most seconds in which the nodes answer."""
NFS_DELAY = 30
"""The most seconds until a shared file system shows a new file on all nodes."""


def check(root: str, key: str = "`storage.root`") -> None:
    """Checks that all nodes of the cluster see a storage root, and that it outlives the job.

    Args:
        root: the absolute URI of the root.
        key: names the setting in errors.

    Raises:
        MeowError: the root is in the package of a job, or on the disk of one node of several.
    """
    check_outlives_job(root, key)
    if storage.is_local(root) and cluster.to_join() is not None:
        cluster.connect()
        _check_all_nodes(root, key)


def check_outlives_job(uri: str, key: str) -> None:
    """Checks that a URI is not within the unpacked package of a job.

    Raises:
        MeowError: it is.
    """
    if storage.is_local(uri) and PACKAGES in f"{os.path.realpath(storage.absolute(uri))}/":
        raise MeowError(
            f"{key}: {uri} is in the files of this job, which Ray deletes after the job. Set it to "
            "a location that all nodes can reach, such as s3://BUCKET/FOLDER or a path on NFS."
        )


def _check_all_nodes(root: str, key: str) -> None:
    """Writes a small file below the root, and looks for it on every other node."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = [
        node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")
    ]
    if not others:
        return
    probe = storage.join(root, f".probe-{uuid4().hex}")
    storage.write_bytes(probe, b"")
    try:
        lacking = _nodes_without(probe, others)
    finally:
        storage.remove(probe)
    if lacking:
        raise MeowError(
            f"{key}: {root} is on the disk of one node; {lacking} of the cluster's "
            f"{len(others) + 1} nodes do not see its files. Set it to a location that all nodes "
            "can reach, such as s3://BUCKET/FOLDER or a path on NFS."
        )


def _nodes_without(probe: str, nodes: list[dict[str, object]]) -> int:
    """Returns how many nodes do not see a file; a node that does not answer is not counted."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    answers = [
        look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(probe, NFS_DELAY)
        for node in nodes
    ]
    answered, silent = ray.wait(answers, num_returns=len(answers), timeout=PROBE_TIMEOUT)
    for answer in silent:
        ray.cancel(answer, force=True)
    lacking = 0
    for answer in answered:
        try:
            lacking += not ray.get(answer)
        except ray.exceptions.RayError:
            continue  # the node has just died, or cannot start a process
    return lacking


def _sees(path: str, seconds: float) -> bool:
    """Returns whether this node sees a file, at the latest after some seconds."""
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
