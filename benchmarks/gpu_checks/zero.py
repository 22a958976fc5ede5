"""Training by the loop of the stage `train` under DeepSpeed ZeRO, without Ray."""

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu_checks import flops, models
from benchmarks.gpu_checks.models import GIB
from benchmarks.gpu_checks.values import Measurement, Setting

STEPS = 6


def zero(setting: Setting) -> Iterator[Measurement]:
    """Trains a random model with ZeRO 1, 2 and 3, one worker on each GPU.

    The settings are those of `train.train_dtype: bfloat16`: bfloat16 weights, and float32 weights
    and gradients in the optimiser. A step has 16 packed pairs of 256 tokens per worker (reduced: 4
    of 16).

    - tokens/s of all workers, median over all steps but the first. Its share is the model FLOPs
      utilisation; see `flops`.
    - peak memory, GiB: the highest that torch has allocated on one GPU (on a GPU only).

    With one worker, the loop runs ZeRO 2 as ZeRO 1, since there is nothing to divide.
    """
    import torch

    from meow_ray.config import TrainResources

    workers = max(1, torch.cuda.device_count())
    shape = models.shape_to_train(setting)
    sizes = flops.sizes_of(models.build(shape, "meta", "float32"))
    count, length = (4, 16) if setting.reduced else (16, 256)
    for stage in (1, 2, 3):
        resources = TrainResources(zero_stage=stage, micro_batch_size=count)
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            job = _job(setting, resources, count * workers, length, folder)
            found = _run(job, workers, folder)
        seconds = median(found[0]["seconds"])
        tokens = count * workers * length
        predicted = count * workers * (length - length // 2)
        work = flops.training_flops(sizes, [length] * (count * workers), predicted)
        share = work / seconds / (workers * setting.limits.flops) if setting.limits else None
        name = f"ZeRO {stage}, {workers} GPU" if setting.device == "cuda" else f"ZeRO {stage}"
        yield Measurement(name, tokens / seconds, "tokens/s", share, "model FLOPs utilisation")
        if setting.device == "cuda":
            peak = max(rank["peak"] for rank in found) / GIB
            yield Measurement(f"{name}, peak memory", peak, "GiB")


def _job(setting: Setting, resources: Any, batch_size: int, length: int, folder: str) -> Any:
    """Returns a job of `STEPS` steps on random pairs."""
    import pyarrow as pa

    from meow_ray.config import Train
    from meow_ray.core import storage
    from meow_ray.stages.train.batches import TOKENS
    from meow_ray.stages.train.job import Job
    from meow_ray.stages.train.presets import PRESETS

    shape = models.shape_to_train(setting)
    rows = [
        {
            "item": number,
            "wording": 0,
            "fact": number,
            "fact_id": str(number),
            "role": "inverted",
            "input_ids": tokens,
            "prompt": length // 2,
        }
        for number, tokens in enumerate(
            models.random_tokens(STEPS * batch_size, length, shape.vocab)
        )
    ]
    pairs = str(Path(folder, "pairs.parquet"))
    storage.write_table(pa.Table.from_pylist(rows, TOKENS), pairs)
    spec = Train(
        batch_size=batch_size, epochs=1, learning_rate=1e-5, warmup_ratio=0, train_dtype="bfloat16"
    )
    return Job(
        model=models.saved(setting, shape, "float32"),
        pairs=pairs,
        spec=spec,
        objective=PRESETS["meow"],
        resources=resources,
        out=str(Path(folder, "out")),
    )


def _run(job: Any, workers: int, folder: str) -> list[dict[str, Any]]:
    """Trains with a process for each worker; returns what each has measured."""
    from torch.multiprocessing.spawn import spawn

    spawn(_worker, (job, workers, _free_port(), folder), nprocs=workers)  # type: ignore[no-untyped-call]
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(workers)]


def _worker(rank: int, job: Any, workers: int, port: int, folder: str) -> None:
    """Trains as one worker, and writes its times and its peak memory."""
    import torch

    from meow_ray.stages.train import loop

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
    }
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    ends: list[float] = []
    hooks = loop.Hooks(
        rank=rank,
        local_rank=rank,
        world_size=workers,
        resume=None,
        save=lambda folder, metrics: None,
        progress=lambda record: ends.append(time.perf_counter()),
    )
    loop.run(job, hooks)
    seconds = [end - start for start, end in pairwise(ends)]
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    Path(folder, f"{rank}.json").write_text(json.dumps({"seconds": seconds, "peak": peak}))
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
