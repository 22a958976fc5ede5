"""A table through an actor pool that holds an engine, with Ray Data's checkpointing."""

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from meow_ray import models, ray_cluster, storage, tables
from meow_ray.config import EngineResources, Resources
from meow_ray.engines import Engine, EngineSpec
from meow_ray.tables import Query

ENV = {"TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
PART_ROWS = 8192
"""Rows of one file of a stage's input."""


@dataclass(frozen=True)
class Work:
    """What a stage does with a batch of rows; every step keeps the rows and the key column."""

    generate: Callable[[Engine, pa.Table], pa.Table]
    """Runs in an actor, with the engine."""
    prepare: Callable[[Any, int, pa.Table], pa.Table] | None = None
    """Runs before it in a CPU task, with the model's tokenizer and context length."""
    finish: Callable[[Any, pa.Table], pa.Table] | None = None
    """Runs after it in a CPU task, with the model's tokenizer."""

    def in_one(self) -> "Work":
        """Returns the same work with all steps in the actor."""
        return Work(partial(_in_one, self))


def _in_one(work: Work, engine: Engine, batch: pa.Table) -> pa.Table:
    if work.prepare:
        batch = work.prepare(engine.tokenizer, engine.max_model_len, batch)
    batch = work.generate(engine, batch)
    return work.finish(engine.tokenizer, batch) if work.finish else batch


class EngineActor:
    """Loads an engine once and sends batches through it."""

    def __init__(self, spec: EngineSpec, generate: Callable[[Engine, pa.Table], pa.Table], board: Any) -> None:
        self.engine, self.generate, self.board = spec.load(), generate, board
        # threads of compute libraries can keep a process from ending after Ray has left it
        atexit.register(os._exit, 0)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Processes one batch; leaves the process if the engine has died, so that Ray starts a new one."""
        try:
            out = self.generate(self.engine, batch)
        except Exception as error:
            if type(error).__name__ == "EngineDeadError":
                os._exit(1)
            raise
        self.board.add.remote(batch.num_rows)
        return out


def _prepare(batch: pa.Table, spec: EngineSpec, work: Work) -> pa.Table:
    assert work.prepare is not None
    length = models.context_length(spec.model, spec.max_model_len)
    return work.prepare(models.load_tokenizer(spec.model), length, batch)


def _finish(batch: pa.Table, spec: EngineSpec, work: Work) -> pa.Table:
    assert work.finish is not None
    return work.finish(models.load_tokenizer(spec.model), batch)


def map_rows(
    rows: Query | pa.Table, key: str, spec: EngineSpec, work: Work, folder: str, name: str, all_resources: Resources
) -> list[str]:
    """Sends rows through CPU tasks and a pool of engine actors; returns the URIs of the Parquet files of results.

    Rows that are finished are committed below `folder`; a run with the same folder does only the others. The
    engine is not loaded when nothing is left. The caller's process holds no rows. A row that was cut off in its
    commit may stand in two files, with equal values: see `once`.

    Args:
        rows: the input, the longest work first; `key` is a string column that is unique in it.
        key: name of that column, kept in the output.
        spec: the model and its engine.
        work: what is done with a batch.
        folder: URI of a folder that is stable under everything that changes the results.
        name: the stage, which is also its section of `all_resources`.
        all_resources: the configuration's resources.
    """
    source, output, commits = (storage.join(folder, part) for part in ("input", "output", "commits"))
    ray_cluster.connect()
    total, done = ray_cluster.call(_begin, rows, key, source, output, commits)
    if done < total:
        _stream(source, output, commits, key, spec, work, name, all_resources, total, total - done)
        done = ray_cluster.call(_count_finished, output, commits, key)
    assert done == total, f"{done} of {total} rows came back"
    return committed(output, commits)


def once(files: Sequence[str], key: str, columns: str = "*") -> Query:
    """Returns the results of `map_rows`, each row once."""
    return Query(f"SELECT DISTINCT ON ({key}) {columns} FROM found", {"found": files})


def committed(output: str, commits: str) -> list[str]:
    """Returns the files whose commit is there; one without may have been cut off."""
    known = {name.removesuffix(".parquet") for name in storage.list_files(commits)}
    files = [name for name in storage.list_files(output) if name.removesuffix(".parquet").rpartition("-")[0] in known]
    return [storage.join(output, name) for name in files]


def _begin(rows: Query | pa.Table, key: str, source: str, output: str, commits: str) -> tuple[int, int]:
    """Writes the input, unless it is there whole; returns how many rows there are and how many are finished."""
    ready = storage.join(source, "READY.json")
    if not storage.exists(ready):
        storage.remove(source)
        query = rows if isinstance(rows, Query) else Query("SELECT * FROM rows", {"rows": rows})
        tables.write_parts(query, source, PART_ROWS)
        storage.write_json(ready, {})
    for folder in (output, commits):
        storage.make_folder(folder)
    return tables.count_rows(_parts(source)), _count_finished(output, commits, key)


def _count_finished(output: str, commits: str, key: str) -> int:
    files = committed(output, commits)
    if not files:
        return 0
    return int(Query(f"SELECT count(DISTINCT {key}) AS n FROM found", {"found": files}).rows()[0]["n"])


def _parts(source: str) -> list[str]:
    return [storage.join(source, name) for name in storage.list_files(source) if name.endswith(".parquet")]


def _stream(
    source: str,
    output: str,
    commits: str,
    key: str,
    spec: EngineSpec,
    work: Work,
    name: str,
    all_resources: Resources,
    total: int,
    todo: int,
) -> None:
    import ray
    from ray.data.checkpoint import CheckpointConfig

    resources: EngineResources = getattr(all_resources, name)
    gpus, (least, most) = ray_cluster.gpus_per_actor(resources), resources.actors
    # Ray Data reads, filters and writes with tasks of one CPU beside the actors
    ray_cluster.require(least, resources.cpus_per_actor, gpus, f"resources.{name}", all_resources, spare_cpus=1)
    if resources.cpu_tasks is False or (resources.cpu_tasks == "auto" and not gpus):
        work = work.in_one()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    commit_fs, commit_path = storage.filesystem(commits)
    context.checkpoint_config = CheckpointConfig(
        key, commit_path, override_filesystem=commit_fs, delete_checkpoint_on_success=False
    )
    batch = max(1, min(resources.batch_size, -(-todo // most)))  # as many batches as actors at least
    fs, _ = storage.filesystem(source)
    paths = [storage.filesystem(part)[1] for part in _parts(source)]
    try:
        with ray_cluster.progress(name, todo) as board:
            # a block is what is committed at once: without the cut, whole files would travel as one
            data = ray.data.read_parquet(paths, filesystem=fs).repartition(target_num_rows_per_block=batch)
            if work.prepare:
                data = data.map_batches(
                    _prepare, fn_args=(spec, work), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
                )
            data = data.map_batches(
                EngineActor,
                fn_constructor_args=(spec, work.generate, board),
                batch_size=batch,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
                num_cpus=resources.cpus_per_actor,
                num_gpus=gpus,
                runtime_env={"env_vars": actor_env(resources, gpus)},
            )
            if work.finish:
                data = data.map_batches(
                    _finish, fn_args=(spec, work), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
                )
            output_fs, output_path = storage.filesystem(output)
            data.write_parquet(output_path, filesystem=output_fs)
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
    threads = str(resources.threads or max(1, cores // resources.actors[1]))
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
