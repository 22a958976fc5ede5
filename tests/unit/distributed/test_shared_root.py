"""Storage roots that would be lost with the job."""

from pathlib import Path

import pytest

from meow_ray.distributed import cluster, shared_root
from meow_ray.errors import MeowError

PACKAGE = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_12ab"


@pytest.mark.parametrize("root", [f"{PACKAGE}/runs/meow", PACKAGE, f"file://{PACKAGE}/runs"])
def test_a_root_in_the_package_of_a_job_is_refused_without_a_cluster(root: str):
    with pytest.raises(MeowError) as caught:
        shared_root.check(root)
    assert str(caught.value) == (
        f"`storage.root`: {root} is in the files of this job, which Ray deletes after the job. Set "
        "it to a location that all nodes can reach, such as s3://BUCKET/FOLDER or a path on NFS."
    )


def test_a_relative_root_is_judged_by_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_12ab"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    with pytest.raises(MeowError, match="`--output`: runs/meow is in the files of this job"):
        shared_root.check_outlives_job("runs/meow", "`--output`")
    shared_root.check_outlives_job(str(tmp_path / "runs"), "`--output`")


def test_a_run_that_starts_its_own_cluster_needs_no_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster, "to_join", lambda: None)
    shared_root.check(str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()
