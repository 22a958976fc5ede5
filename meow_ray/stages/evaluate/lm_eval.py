"""Tasks of lm-evaluation-harness on a model of the pipeline."""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

from meow_ray.config import LmEval
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.models import uld

REMOVE_TASKS = "Remove `evaluate.lm_eval.tasks`."
"""What to do if the harness cannot load a model."""
SUITE = "lm_eval"
"""The suite of the harness's metrics."""


def check_installed(spec: LmEval) -> None:
    """Raises MeowError if tasks are configured and the harness is not installed."""
    if spec.tasks and importlib.util.find_spec("lm_eval") is None:
        raise MeowError(
            "`evaluate.lm_eval.tasks`: the package lm_eval is not installed. "
            "Run pip install 'meow_ray[lm-eval]'."
        )


def run_tasks(
    engine: EngineSpec, spec: LmEval, task_folder: str | None, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """Runs the tasks on a model; returns rows of `metrics` without the column `model`.

    There is one row per task and metric, with an interval of 1.96 standard errors.

    Args:
        engine: the model, with its dtype and context length.
        spec: the tasks.
        task_folder: folder with the user's task files.
        batch_size: number of requests per forward pass.
        seed: seed of all random choices of a task.

    Raises:
        MeowError: the model is a ULD model, the data of a task cannot be read, or a figure is NaN
            or infinite.
    """
    uld.check_one_model(engine.model, "lm-evaluation-harness loads one model", REMOVE_TASKS)
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_folder)
    try:
        report = lm_eval.simple_evaluate(
            model=spec.backend,
            model_args=_model_arguments(engine, spec.backend),
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
    except OSError as error:  # of the hub's and the harness's libraries
        raise MeowError(
            f"`evaluate.lm_eval.tasks`: the data of a task cannot be read ({error}). Connect to "
            "the hub, or remove the task."
        ) from None
    return rows_of_report(report)


def _model_arguments(engine: EngineSpec, backend: str) -> dict[str, Any]:
    """Returns what the harness's model of a backend is made with."""
    arguments: dict[str, Any] = {
        "pretrained": str(engine.model.folder),
        "dtype": engine.dtype,
        "trust_remote_code": engine.model.trust_remote_code,
    }
    if backend == "vllm":
        return arguments | {
            "max_model_len": engine.max_model_len,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
        }
    return arguments | {"max_length": engine.max_model_len}


def rows_of_report(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns rows of `metrics` without the column `model`, from the harness's report.

    The report has, by task, figures under keys such as `acc,none` (metric and filter).

    Raises:
        MeowError: a figure is NaN or infinite.
    """
    rows = []
    for task, figures in report["results"].items():
        for key, value in figures.items():
            metric, _, filter_name = key.partition(",")
            is_figure = filter_name and isinstance(value, int | float)
            if not is_figure or metric.endswith("_stderr"):
                continue
            if not math.isfinite(value):
                raise MeowError(
                    f"`evaluate.lm_eval.tasks`: {metric} of {task} is not a number ({value})."
                )
            name = f"{task}/{metric}"
            if filter_name != "none":
                name += f" ({filter_name})"
            low, high = _bounds(value, figures.get(f"{metric}_stderr,{filter_name}"))
            row = {"suite": SUITE, "metric": name, "value": float(value), "low": low, "high": high}
            rows.append(row | {"num_examples": _num_examples(report, task)})
    return rows


def _bounds(value: float, error: Any) -> tuple[float, float] | tuple[None, None]:
    """Returns the bounds of 1.96 standard errors; None if the harness gives no error."""
    if not isinstance(error, int | float) or not math.isfinite(error):
        return None, None
    return value - 1.96 * error, value + 1.96 * error


def _num_examples(report: Mapping[str, Any], task: str) -> int:
    """Returns the number of examples of a task; of a group of tasks, the sum (`sample_len`)."""
    total = report["results"][task].get("sample_len", 0)
    count: int = report.get("n-samples", {}).get(task, {}).get("effective", total)
    return count
