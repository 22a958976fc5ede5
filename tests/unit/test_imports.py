"""Importing the package loads no heavy library; import-linter checks who may import what."""

import json
import subprocess
import sys
from pathlib import Path

import meow_ray

PACKAGE = Path(meow_ray.__file__).parent
HEAVY = ("ray", "vllm", "deepspeed", "transformers")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_module_imports_a_heavy_library_when_it_is_imported():
    script = (
        "import importlib, json, sys\n"
        "loaded = {}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"    new = [heavy for heavy in {HEAVY} if heavy in sys.modules and heavy not in loaded]\n"
        "    loaded |= dict.fromkeys(new, name)\n"
        "print(json.dumps(loaded))\n"
    )
    names = [module_name(path) for path in sorted(PACKAGE.rglob("*.py"))]
    expected = {"meow_ray.config", "meow_ray.stages.train.loop", "meow_ray.engines.vllm"}
    assert expected <= set(names)
    done = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}, "heavy library: the first module that loads it"


def test_deepspeed_prints_nothing_when_it_is_imported_after_the_package():
    script = "import meow_ray, deepspeed; deepspeed.accelerator.get_accelerator()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
