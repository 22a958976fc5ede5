"""What `meow plan --probe` says of the demo, against a run of it: `python -m benchmarks.plan`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common import report, run_script
from benchmarks.host import PROJECT
from meow_ray.pipeline.pipeline import Pipeline, load_config

CONFIG = PROJECT / "pipelines" / "configs" / "demo.yaml"


def main(
    output: Annotated[
        Path | None, typer.Option(help="JSON file [benchmarks/results/plan.json].")
    ] = None,
) -> None:
    """Plan the demo by a probe, run it without a cache, print planned over taken per stage."""
    with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
        root = f"storage.root={folder}"
        command = [
            str(Path(sys.executable).parent / "meow"),
            "plan",
            f"--config={CONFIG}",
            "--probe",
            "--json",
            root,
        ]
        done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
        planned = json.loads(done.stdout)["run"]
        run_script("meow.py", f"--config={CONFIG}", root)
        pipeline = Pipeline(load_config(CONFIG, [root]))
        took = {
            stage.name: found.manifest.seconds
            for stage in pipeline.stages
            if (found := pipeline.artifact(stage.artifact)) and found.manifest
        }
    stages = {
        stage["stage"]: {"planned": stage["seconds"], "took": took[stage["stage"]]}
        for stage in planned["stages"]
    }
    for times in (
        *stages.values(),
        total := {name: sum(t[name] for t in stages.values()) for name in ("planned", "took")},
    ):
        times["planned_over_took"] = times["planned"] / times["took"]
    report(
        "plan",
        {"config": CONFIG.name},
        {"rates": planned["rates"], "stages": stages, "total": total},
        output,
    )


if __name__ == "__main__":
    typer.run(main)
