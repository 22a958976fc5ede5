"""Fine-tuning under Ray Train: launch, report, restore."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray import finetune, ray_cluster, storage
from meow_ray.config import Resources, TrainResources
from meow_ray.finetune import Hooks, Job

CPU_ENV = {"TOKENIZERS_PARALLELISM": "false", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Huge pages: the page faults of activations that come and go were a third of a step on CPU."""


def fit(job: Job, work: str, name: str, all_resources: Resources) -> dict[str, Any]:
    """Runs a fine-tuning job on ZeRO workers and returns the figures for the manifest.

    Checkpoints live below `work`: the same folder resumes where a killed run stopped, and a worker that dies is
    replaced and goes on from the last of them.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray_cluster.connect()
    resources: TrainResources = getattr(all_resources, name)
    pairs = finetune.encode(job)  # before any worker starts: a mistake in the data is not worth a retry
    on_gpu, workers = ray_cluster.has_gpus(), ray_cluster.num_workers(resources)
    ray_cluster.require(workers, resources.cpus_per_worker, int(on_gpu), f"resources.{name}", all_resources)
    storage.make_folder(work)
    fs, path = storage.filesystem(work)
    steps = finetune.num_steps(len(pairs), job.spec)
    with ray_cluster.progress(name, steps) as board:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job, "board": board},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=on_gpu,
                resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if on_gpu else {})},
            ),
            run_config=RunConfig(
                name=f"train-zero{job.zero_stage}-{workers}",  # DeepSpeed cannot load another layout's checkpoint
                storage_path=path,
                storage_filesystem=fs,
                failure_config=FailureConfig(max_failures=resources.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                worker_runtime_env={"env_vars": {} if on_gpu else CPU_ENV},
            ),
        )
        trainer.fit()
    history = storage.read_json(storage.join(job.out, finetune.HISTORY))
    return {
        "pairs": len(pairs),
        "steps": steps,
        "workers": workers,
        "zero_stage": job.zero_stage,
        "device": "cuda" if on_gpu else "cpu",
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "tokens": sum(record["tokens"] for record in history),
    }


def _worker(config: dict[str, Any]) -> None:
    import ray.train

    context, board = ray.train.get_context(), config["board"]
    rank = context.get_world_rank()

    def save(folder: Path, metrics: dict[str, Any]) -> None:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def progress(step: int, figures: dict[str, str]) -> None:
        if rank == 0:
            board.at.remote(step, **figures)

    def start(resume: Path | None) -> None:
        finetune.run(config["job"], Hooks(rank, context.get_world_size(), resume, save, progress))

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        start(None)
        return
    with TemporaryDirectory() as folder:
        start(Path(checkpoint.to_directory(folder)))
