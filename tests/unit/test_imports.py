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


def test_the_libraries_that_a_driver_imports_print_nothing():
    # without a GPU, DeepSpeed warns on the terminal, also when transformers or peft import it
    script = (
        "import importlib, sys\n"
        "import meow_ray\n"
        "for name in meow_ray.__all__:\n"
        "    getattr(meow_ray, name)\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\n"
        "sys.modules['deepspeed'].accelerator.get_accelerator()\n"
    )
    names = ("ray.data", "ray.train.torch", "transformers.integrations", "accelerate", "peft")
    estimators = ("deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2")
    done = subprocess.run(
        [sys.executable, "-c", script, *names, *estimators],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
