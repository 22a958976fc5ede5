"""A storage root that is not the same on all nodes is refused; a shared one is left as it was."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meow_ray.distributed import cluster as clusters
from meow_ray.distributed import shared_root
from meow_ray.errors import MeowError
from tests.support.runs import BIN

HIDING = 'mount -t tmpfs tmpfs "$1" && exec "$2" start --address="$3" --num-cpus=1 --block'
"""Starts a node that sees an empty folder where the other nodes see the folder `$1`."""


@pytest.fixture(scope="module")
def joined(cluster: Any) -> Iterator[Any]:
    """The cluster of three nodes, which this process joins; a node waits 2 s for a file, not 30."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        patch.setattr(shared_root, "NFS_DELAY", 2)
        clusters.connect()
        yield cluster
        clusters.leave()


def test_a_folder_that_all_nodes_see_is_accepted_and_left_empty(joined: Any, tmp_path: Path):
    shared_root.check(str(tmp_path / "root"))
    assert list((tmp_path / "root").iterdir()) == []


def test_an_object_store_needs_no_probe(joined: Any):
    shared_root.check("s3://a-bucket-that-does-not-exist/root")


@pytest.fixture
def hiding(joined: Any, tmp_path: Path) -> Iterator[Path]:
    """A folder that one more node does not see."""
    import ray

    folder = tmp_path / "local"
    folder.mkdir()
    can_mount = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if subprocess.run(can_mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a file system in a namespace of its own")
    command = ["unshare", "-m", "sh", "-c", HIDING, "sh", str(folder), str(BIN / "ray")]
    with (tmp_path / "log").open("w") as log:
        node = subprocess.Popen(
            [*command, joined.address], env=dict(os.environ), stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 120
            while sum(item["Alive"] for item in ray.nodes()) < 4:
                assert node.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
            yield folder
        finally:
            node.terminate()
            node.wait(60)


def test_a_folder_on_the_disk_of_one_node_is_refused(hiding: Path):
    with pytest.raises(MeowError) as caught:
        shared_root.check(str(hiding))
    assert str(caught.value) == (
        f"`storage.root`: {hiding} is on the disk of one node; 1 of the cluster's 4 nodes do not "
        "see its files. Set it to a location that all nodes can reach, such as s3://BUCKET/FOLDER "
        "or a path on NFS."
    )
    assert list(hiding.iterdir()) == []
