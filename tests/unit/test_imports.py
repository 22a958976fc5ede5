import ast
import subprocess
import sys
from pathlib import Path

import pytest

import meow_ray

PACKAGE = Path(meow_ray.__file__).parent
HEAVY = ("ray", "vllm", "deepspeed", "transformers")
SHELL = ("distributed/", "stages/train/launch.py")
"""What may import Ray."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


CORE = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not str(path.relative_to(PACKAGE)).startswith(SHELL)
]


def test_the_core_imports_none_of_the_heavy_four():
    script = (
        "import importlib, json, sys\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"    found |= {{heavy: name for heavy in {HEAVY} if heavy in sys.modules and heavy not in found}}\n"
        "print(json.dumps(found))\n"
    )
    names = [module_name(path) for path in CORE]
    assert {
        "meow_ray.config",
        "meow_ray.pipeline.pipeline",
        "meow_ray.stages.train.loop",
        "meow_ray.engines.vllm",
    } <= set(names)
    done = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{}", "heavy module: the first of ours that brings it"


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_only_the_shell_imports_ray_even_inside_functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.split(".")[0] == "ray"], (
            f"{path.name}, line {node.lineno}"
        )
