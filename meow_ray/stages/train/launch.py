"""Fine-tuning under Ray Train: launch, report, restore."""

from pathlib import Path
from typing import Any

from meow_ray.config import Resources, TrainResources
from meow_ray.core import manifest, storage
from meow_ray.distributed import cluster, placement, progress
from meow_ray.distributed.figures import Figure
from meow_ray.stages.train import loop, zero
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.loop import Hooks
from meow_ray.stages.train.tracking import Tracker, TrackerSpec

CPU_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776",
}
"""glibc keeps what is freed: the page faults of activations and gradients that come and go are a sixth of a step."""


def fit(
    job: Job, work: str, name: str, all_resources: Resources, tracker: TrackerSpec
) -> dict[str, Any]:
    """Runs a fine-tuning job on ZeRO workers and returns the figures for the manifest.

    Checkpoints live below `work`: the same folder resumes where a killed run stopped, with another number of workers
    too, and a worker that dies is replaced and goes on from the last of them.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster.connect()
    resources: TrainResources = getattr(all_resources, name)
    data = job.load()  # before any worker starts: a mistake in the data is not worth a retry
    workers = placement.num_workers(name, all_resources)
    on_gpu = placement.has_gpus(all_resources, resources.node_labels)
    zero.settings(job.spec, resources, job.accumulation(workers), on_gpu=on_gpu, own=job.deepspeed)
    zero.check_quantization(job.spec, on_gpu=on_gpu)
    tracker.check()
    least = placement.least_workers(name, all_resources)
    storage.make_folder(work)
    fs, path = storage.filesystem(work)
    with progress.show_progress(name, data.num_steps) as board:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job, "board": board, "tracker": tracker},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers if least == workers else (least, workers),
                use_gpu=on_gpu,
                resources_per_worker={
                    "CPU": resources.cpus_per_worker,
                    **({"GPU": 1} if on_gpu else {}),
                },
                label_selector=resources.node_labels or None,
            ),
            run_config=RunConfig(
                # a checkpoint of another stage, or of states on another device, cannot be converted
                name=f"train-zero{resources.zero_stage}-{resources.offload}",
                storage_path=path,
                storage_filesystem=fs,
                failure_config=FailureConfig(max_failures=resources.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                worker_runtime_env={"env_vars": {} if on_gpu else CPU_ENV},
            ),
        )
        trainer.fit()
        pace = ray.get(
            board.pace.options(max_task_retries=-1).remote()
        )  # its node may just have died
    history = storage.read_json(storage.join(job.out, manifest.HISTORY_FILE))
    return {
        "pairs": data.pairs.num_rows,
        "steps": data.num_steps,
        "workers": workers,
        "zero_stage": resources.zero_stage,
        "device": "cuda" if on_gpu else "cpu",
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "tokens": sum(record["tokens"] for record in history),
        "seconds_per_step": pace,
    }


def _worker(config: dict[str, Any]) -> None:
    import ray.train

    context, board, tracker = ray.train.get_context(), config["board"], Tracker(config["tracker"])
    leads = context.get_world_rank() == 0

    def save(folder: Path, metrics: dict[str, Any]) -> None:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        if leads:
            tracker.flush()

    def progress(record: dict[str, Any]) -> None:
        if leads:
            figures = {name: Figure.mean(record[name], 1) for name in ("loss", "epoch")}
            board.set.remote(record["step"], figures)
            tracker.log(record)

    def start(resume: Path | None) -> None:
        ranks = context.get_world_rank(), context.get_local_rank(), context.get_world_size()
        loop.run(config["job"], Hooks(*ranks, resume, save, progress))
        if leads:
            tracker.close()

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        start(None)
        return
    with checkpoint.as_directory() as folder:
        start(Path(folder))
