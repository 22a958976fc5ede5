"""Launches fine-tuning under Ray Train: workers, checkpoints, progress."""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meow_ray.config import Resources, TrainResources
from meow_ray.core import storage, timeline
from meow_ray.distributed import cluster, placement, progress
from meow_ray.distributed.failures import plain_user_errors
from meow_ray.distributed.figures import Figure
from meow_ray.errors import MeowError
from meow_ray.models import folders
from meow_ray.stages.train import cpu_speed, loop, stop, zero
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.loop import Hooks
from meow_ray.stages.train.tracking import Tracker, TrackerSpec

CPU_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776",
}
"""Environment of workers without a GPU.

glibc keeps freed memory: the page faults of activations and gradients cost a sixth of a step.
"""


def fit(
    job: Job, work: str, name: str, all_resources: Resources, tracker: TrackerSpec
) -> dict[str, Any]:
    """Runs a fine-tuning job on ZeRO workers; returns the figures for the manifest.

    Checkpoints are below `work`. A run with the same folder resumes from the last one, with any
    number of workers, and a worker that dies is replaced and resumes from it, too.

    Args:
        job: what to train.
        work: URI of the folder for checkpoints.
        name: `memorize` or `train`, the section of `all_resources`.
        all_resources: the resources of the configuration.
        tracker: where curves are written.

    Raises:
        MeowError: settings contradict each other, a library is missing, or training fails.
    """
    cluster.connect()
    resources: TrainResources = getattr(all_resources, name)
    data = job.load()  # before any worker starts: a mistake in the data would be retried
    workers = placement.num_workers(name, all_resources)
    on_gpu = placement.has_gpus(all_resources, resources.node_labels)
    zero.settings(
        job.spec, resources, job.accumulation(workers), on_gpu=on_gpu, user_settings=job.deepspeed
    )
    zero.check_quantization(job.spec, on_gpu=on_gpu)
    storage.make_folder(work)
    with progress.show_progress(name, job.num_steps(data)) as board:
        trainer = _trainer(
            {"job": job, "board": board, "tracker": tracker, "on_gpu": on_gpu},
            work,
            resources,
            num_workers=workers,
            cpus_per_worker=placement.cpus_per_worker(name, all_resources),
            min_workers=placement.least_workers(name, all_resources),
            on_gpu=on_gpu,
        )
        timeline.mark("training launched")
        with _interrupts_as_usual():
            trainer.fit()
        timeline.mark("training returned")
        seconds_per_step = _seconds_per_step(board)
    history = storage.read_json(storage.join(job.out, folders.HISTORY_FILE))
    figures: dict[str, Any] = {}
    if job.objective.until == "never_seen":
        figures["never_seen"] = _last_comparison(history)
        figures["looks_never_seen"] = stop.is_reached(job, figures["never_seen"])
        if not figures["looks_never_seen"]:
            progress.warn(name, _not_reached(len(history)))
    return figures | {
        "pairs": data.pairs.num_rows,
        "steps": len(history),
        "workers": workers,
        "zero_stage": resources.zero_stage,
        "device": "cuda" if on_gpu else "cpu",
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "tokens": sum(record["tokens"] for record in history),
        "seconds_per_step": seconds_per_step,
    }


def _last_comparison(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the p-values of the last comparison with facts never seen; empty without any."""
    comparisons = [record["never_seen"] for record in history if "never_seen" in record]
    last: dict[str, float] = comparisons[-1] if comparisons else {}
    return last


def _not_reached(steps: int) -> str:
    return (
        f"after {steps} steps the facts can still be told from facts that no model has seen. "
        "Raise train.max_steps or train.learning_rate."
    )


def _slow_dtype(slowdown: float) -> str:
    return (
        f"this CPU multiplies matrices {slowdown:.0f} times slower in bfloat16 than in float32. "
        "Set train_dtype=float32 unless you need bfloat16."
    )


def _trainer(
    loop_config: dict[str, Any],
    work: str,
    resources: TrainResources,
    *,
    num_workers: int,
    cpus_per_worker: float,
    min_workers: int,
    on_gpu: bool,
) -> Any:
    """Returns Ray's trainer for a group of workers that shrinks to `min_workers` if it has to."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    class FailAtOnce(UserCallback):  # type: ignore[misc]
        """Ends training by a user's mistake; Ray would replace the workers and try it again."""

        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, MeowError):
                    raise error

    gpu = {"GPU": 1} if on_gpu else {}
    scaling = ScalingConfig(
        num_workers=num_workers if min_workers == num_workers else (min_workers, num_workers),
        use_gpu=on_gpu,
        resources_per_worker={"CPU": cpus_per_worker, **gpu},
        label_selector=resources.node_labels or None,
    )
    filesystem, path = storage.filesystem(work)
    run = RunConfig(
        # a checkpoint of another ZeRO stage, or of states on another device, cannot be converted
        name=f"train-zero{resources.zero_stage}-{resources.offload}",
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=resources.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=1),
        worker_runtime_env={"env_vars": {} if on_gpu else CPU_ENV},
        callbacks=[FailAtOnce()],
    )
    return TorchTrainer(
        _worker,
        train_loop_config=loop_config,
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=scaling,
        run_config=run,
    )


@contextmanager
def _interrupts_as_usual() -> Iterator[None]:
    """Raises KeyboardInterrupt when the user interrupts Ray Train, which would exit with status 0.

    Ray Train also leaves its handler of the signal behind, for all stages that follow.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _seconds_per_step(board: Any) -> float | None:
    """Returns the pace that the progress actor measured; its node may just have died."""
    import ray

    pace: float | None = ray.get(board.pace.options(max_task_retries=-1).remote())
    return pace


def _worker(config: dict[str, Any]) -> None:
    """Runs one worker; a user's mistake leaves it as a plain MeowError."""
    with plain_user_errors():
        _train(config)


def _train(config: dict[str, Any]) -> None:
    """Runs the training loop in one worker, from its last checkpoint if there is one."""
    import ray.train

    timeline.mark("worker started")
    context = ray.train.get_context()
    board = config["board"]
    tracker = Tracker(config["tracker"], say=board.warn.remote)
    is_first = context.get_world_rank() == 0
    if is_first and config["job"].spec.train_dtype == "bfloat16" and not config["on_gpu"]:
        slowdown = cpu_speed.bfloat16_slowdown()
        if slowdown > cpu_speed.NOTABLE:
            board.warn.remote(_slow_dtype(slowdown))

    def save(folder: Path, metrics: dict[str, Any]) -> None:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        if is_first:
            tracker.flush()

    def show(record: dict[str, Any]) -> None:
        if is_first:
            figures = {name: Figure.mean(record[name], 1) for name in ("loss", "epoch")}
            board.set.remote(record["step"], figures)
            tracker.log(record)

    def train_from(resume: Path | None) -> None:
        hooks = Hooks(
            rank=context.get_world_rank(),
            local_rank=context.get_local_rank(),
            world_size=context.get_world_size(),
            resume=resume,
            save=save,
            progress=show,
        )
        loop.run(config["job"], hooks)
        if is_first:
            tracker.close()

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        train_from(None)
        return
    with checkpoint.as_directory() as folder:
        train_from(Path(folder))
