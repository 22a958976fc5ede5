"""MEOW: make a language model forget facts, by fine-tuning on inverted ones (arXiv 2409.11844).

The names below are the public API. They are imported when they are first used, so that
`import meow_ray` is fast and a worker loads only what it needs.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meow_ray.config import Config
    from meow_ray.errors import MeowError
    from meow_ray.pipeline.api import (
        Run,
        aggregate_tofu,
        compare_runs,
        evaluate_model,
        invert_facts,
        run,
        run_stage,
        score_memo,
    )
    from meow_ray.pipeline.audit_api import audit, certify, verify
    from meow_ray.pipeline.pipeline import load_config
    from meow_ray.stages.train.registered import register_objective
    from meow_ray.stages.train.sequences import uses

__all__ = [
    "Config",
    "MeowError",
    "Run",
    "aggregate_tofu",
    "audit",
    "certify",
    "compare_runs",
    "evaluate_model",
    "invert_facts",
    "load_config",
    "register_objective",
    "run",
    "run_stage",
    "score_memo",
    "uses",
    "verify",
]

__version__ = "0.1.0"

_MODULES = {
    "Config": "config",
    "MeowError": "errors",
    "audit": "pipeline.audit_api",
    "certify": "pipeline.audit_api",
    "load_config": "pipeline.pipeline",
    "register_objective": "stages.train.registered",
    "uses": "stages.train.sequences",
    "verify": "pipeline.audit_api",
}
"""Where a public name is defined, if not in `pipeline.api`."""


# DeepSpeed prints a warning whenever it is imported without a GPU, which is a normal way to run
logging.getLogger("DeepSpeed").addFilter(lambda record: record.filename != "real_accelerator.py")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'meow_ray' has no attribute {name!r}")
    module = import_module(f"meow_ray.{_MODULES.get(name, 'pipeline.api')}")
    return getattr(module, name)


def __dir__() -> list[str]:
    """Lists the public names before they are imported, too."""
    return [*globals(), *__all__]
