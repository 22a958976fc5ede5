"""A TMPDIR that is too long for sockets, as that of a batch system may be."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import PROJECT

CODE = """
from meow_ray.core import sockets
from meow_ray.distributed import cluster

cluster.connect()
print(cluster.call(abs, -7), sockets._own_folder(), flush=True)
"""


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_tasks_run_below_a_short_folder_that_is_deleted(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(long))
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result, folder = done.stdout.split()
    assert result == "7"
    assert folder.startswith("/tmp/meow-")
    assert not Path(folder).exists()
    assert list(long.rglob("*sock*")) == []
