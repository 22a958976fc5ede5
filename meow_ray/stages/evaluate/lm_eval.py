"""Tasks of lm-evaluation-harness on a model of the pipeline."""

import importlib.util
import math
from typing import Any

from meow_ray.config import LmEval
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError

SUITE = "lm_eval"


def check(spec: LmEval) -> None:
    """Raises MeowError if tasks are asked for and the harness is not installed."""
    if spec.tasks and importlib.util.find_spec("lm_eval") is None:
        raise MeowError(
            "`evaluate.lm_eval.tasks` needs the package lm_eval: pip install 'meow_ray[lm-eval]'."
        )


def run(
    engine: EngineSpec, spec: LmEval, task_folder: str | None, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """Scores a model; returns rows of `metrics` without its name, one a task and metric, with 1.96 standard errors.

    Args:
        engine: the model, with its dtype and context length.
        spec: the tasks.
        task_folder: folder with further task files.
        batch_size: requests of one forward pass.
        seed: seed of whatever a task draws.

    Raises:
        MeowError: the harness knows no such task, or a figure of one is no number.
    """
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_folder)
    unknown = [name for name in spec.tasks if name not in manager.all_tasks]
    if unknown:
        raise MeowError(
            f"`evaluate.lm_eval.tasks`: the harness knows no task {', '.join(unknown)}."
        )
    arguments: dict[str, Any] = {
        "pretrained": str(engine.model.folder),
        "dtype": engine.dtype,
        "trust_remote_code": engine.model.trust_remote_code,
    }
    if spec.backend == "vllm":
        arguments |= {
            "max_model_len": engine.max_model_len,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
        }
    else:
        arguments["max_length"] = engine.max_model_len
    found = lm_eval.simple_evaluate(
        model=spec.backend,
        model_args=arguments,
        tasks=list(spec.tasks),
        num_fewshot=spec.num_fewshot,
        limit=spec.limit,
        batch_size=batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=1000,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return _rows(found)


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns rows of `metrics` without the model, from what the harness reports."""
    out = []
    for task, figures in found["results"].items():
        for key, value in figures.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise MeowError(
                    f"`evaluate.lm_eval.tasks`: {task} gave a {metric} that is no number."
                )
            error = figures.get(f"{metric}_stderr,{kind}")
            half = 1.96 * error if isinstance(error, int | float) and math.isfinite(error) else None
            name = f"{task}/{metric}" if kind == "none" else f"{task}/{metric} ({kind})"
            row = {"suite": SUITE, "metric": name, "value": float(value)}
            row |= {
                "low": None if half is None else value - half,
                "high": None if half is None else value + half,
            }
            count = (
                found.get("n-samples", {})
                .get(task, {})
                .get("effective", figures.get("sample_len", 0))
            )
            out.append(row | {"num_examples": count})  # a group of tasks has the sum in sample_len
    return out
