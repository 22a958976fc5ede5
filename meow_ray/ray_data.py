"""A table through an actor pool that holds an engine, with Ray Data's checkpointing."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray import engines, ray_cluster, storage
from meow_ray.config import EngineResources, Resources
from meow_ray.engines import Engine, EngineSpec

Work = Callable[[Engine, pa.Table], pa.Table]
"""Turns a batch of rows into as many rows, with the engine; keeps the key column."""


ENV = {"TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}


class EngineActor:
    """Loads an engine once and sends batches through it."""

    def __init__(self, spec: EngineSpec, work: Work, board: Any) -> None:
        self.engine, self.work, self.board = engines.build(spec), work, board

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Processes one batch; leaves the process if the engine has died, so that Ray starts a new one."""
        try:
            out = self.work(self.engine, batch)
        except Exception as error:
            if type(error).__name__ == "EngineDeadError":
                os._exit(1)
            raise
        self.board.add.remote(batch.num_rows)
        return out


def map_rows(
    rows: pa.Table, key: str, spec: EngineSpec, work: Work, folder: str, name: str, all_resources: Resources
) -> pa.Table:
    """Sends a table through a pool of engine actors and returns the results sorted by key.

    Rows that are finished are committed below `folder`; a run with the same folder does only the others. The
    engine is not loaded when nothing is left.

    Args:
        rows: the input; `key` is a string column that is unique in it.
        key: name of that column, kept in the output.
        spec: the model and its engine.
        work: what an actor does with a batch.
        folder: URI of a folder that is stable under everything that changes the results.
        name: the stage, which is also its section of `all_resources`.
        all_resources: the configuration's resources.
    """
    source, output, commits = (storage.join(folder, part) for part in ("input", "output", "commits"))
    finished = _finished(output, commits, key)
    todo = rows.filter(pc.invert(pc.is_in(rows[key], value_set=finished[key]))) if finished else rows
    if todo.num_rows:
        storage.write_table(rows, storage.join(source, "rows.parquet"))
        storage.make_folder(output)
        _stream(source, output, commits, key, spec, work, name, all_resources, todo.num_rows)
        finished = _finished(output, commits, key)
    assert finished is not None
    order = finished.append_column("__row", pa.array(range(finished.num_rows), pa.int64())).group_by(key)
    first = order.aggregate([("__row", "min")]).sort_by(key)  # a row that was cut off in its commit comes twice
    result = finished.take(first["__row_min"])
    assert result.num_rows == rows.num_rows, f"{result.num_rows} of {rows.num_rows} rows came back"
    return result


def _finished(output: str, commits: str, key: str) -> pa.Table | None:
    """Returns the rows of the files whose commit is there; a file without one may have been cut off."""
    committed = {name.removesuffix(".parquet") for name in storage.list_files(commits)}
    names = [
        name for name in storage.list_files(output) if name.removesuffix(".parquet").rpartition("-")[0] in committed
    ]
    table = storage.read_table([storage.join(output, name) for name in names]) if names else None
    return table if table is not None and table.num_rows else None


def _stream(
    source: str,
    output: str,
    commits: str,
    key: str,
    spec: EngineSpec,
    work: Work,
    name: str,
    all_resources: Resources,
    todo: int,
) -> None:
    import ray
    from ray.data.checkpoint import CheckpointConfig

    ray_cluster.connect()
    resources: EngineResources = getattr(all_resources, name)
    gpus, actors = ray_cluster.gpus_per_actor(resources), resources.num_actors
    # Ray Data reads, filters and writes with tasks of one CPU beside the actors
    ray_cluster.require(actors, resources.cpus_per_actor, gpus, f"resources.{name}", all_resources, spare_cpus=1)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    fs, path = storage.filesystem(source)
    storage.make_folder(commits)
    commit_fs, commit_path = storage.filesystem(commits)
    context.checkpoint_config = CheckpointConfig(
        key, commit_path, override_filesystem=commit_fs, delete_checkpoint_on_success=False
    )
    batch = min(resources.batch_size, -(-todo // actors))  # as many batches as actors at least
    blocks = -(-todo // batch)
    try:
        with ray_cluster.progress(name, todo) as board:
            data = ray.data.read_parquet(path, filesystem=fs, override_num_blocks=blocks)
            mapped = data.map_batches(
                EngineActor,
                fn_constructor_args=(spec, work, board),
                batch_size=batch,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_cpus=resources.cpus_per_actor,
                num_gpus=gpus,
                runtime_env={"env_vars": actor_env(resources, gpus)},
            )
            output_fs, output_path = storage.filesystem(output)
            mapped.write_parquet(output_path, filesystem=output_fs)
    finally:
        context.checkpoint_config = None


def actor_env(resources: EngineResources, gpus: int) -> dict[str, str]:
    """Returns the environment of an engine actor."""
    if gpus:
        return ENV
    import ray

    cores = max((node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]), default=1)
    return cpu_env(resources, int(cores))


def cpu_env(resources: EngineResources, cores: int) -> dict[str, str]:
    """Returns what vLLM's CPU build runs well with on a node of so many cores."""
    threads = str(resources.threads or max(1, cores // resources.num_actors))
    env = ENV | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,
        "KMP_BLOCKTIME": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(resources.kv_cache_gib))),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCHDYNAMO_DISABLE": "1",  # vLLM would compile its sampler in every actor, which costs more than it saves
    }
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    return env | ({"LD_PRELOAD": str(openmp)} if openmp.exists() else {})
