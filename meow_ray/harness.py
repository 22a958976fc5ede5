"""Tasks of lm-evaluation-harness on a model of the pipeline, in a task of the cluster."""

import importlib.util
from typing import Any

from meow_ray import ray_cluster, storage
from meow_ray.config import Evaluate, LmEval, Resources
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError

SUITE = "lm_eval"
RESULTS = "lm_eval.json"


def score(
    engine: EngineSpec, spec: Evaluate, task_folder: str | None, folder: str, model: str, resources: Resources
) -> list[dict[str, Any]]:
    """Returns rows of `metrics` for the configured tasks, one a task and metric; the interval is 1.96 standard errors.

    Args:
        engine: the model, with its dtype and context length.
        spec: the tasks, `evaluate.lm_eval`.
        task_folder: folder with further task files.
        folder: URI of the work of this model; results there are used, not made again.
        model: what the model is called in the table.
        resources: the configuration's resources.

    Raises:
        MeowError: the harness is not installed, or knows no such task.
    """
    import ray

    if not spec.lm_eval.tasks:
        return []
    if importlib.util.find_spec("lm_eval") is None:
        raise MeowError("`evaluate.lm_eval.tasks` needs the package lm_eval: pip install 'meow_ray[lm-eval]'.")
    done = storage.join(folder, RESULTS)
    if not storage.exists(done):
        gpus = ray_cluster.gpus_per_actor(resources.evaluate)
        task = ray.remote(num_gpus=gpus, num_cpus=1, max_retries=1)(_run)
        batch = resources.evaluate.batch_size
        storage.write_json(done, ray.get(task.remote(engine, spec.lm_eval, task_folder, batch, spec.seed)))
    return [row | {"model": model} for row in storage.read_json(done)]


def _run(engine: EngineSpec, spec: LmEval, task_folder: str | None, batch_size: int, seed: int) -> list[dict[str, Any]]:
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_folder)
    unknown = [name for name in spec.tasks if name not in manager.all_tasks]
    if unknown:
        raise MeowError(f"`evaluate.lm_eval.tasks`: the harness knows no task {', '.join(unknown)}.")
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
            error = figures.get(f"{metric}_stderr,{kind}")
            half = 1.96 * error if isinstance(error, int | float) else None
            name = f"{task}/{metric}" if kind == "none" else f"{task}/{metric} ({kind})"
            row = {"suite": SUITE, "metric": name, "value": float(value)}
            row |= {"low": None if half is None else value - half, "high": None if half is None else value + half}
            out.append(row | {"num_examples": found.get("n-samples", {}).get(task, {}).get("effective", 0)})
    return out
