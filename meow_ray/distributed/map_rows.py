"""A table through an actor pool that holds an engine, with Ray Data's checkpointing."""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from meow_ray.config import EngineResources, Resources
from meow_ray.core import storage, tables
from meow_ray.core.tables import Query
from meow_ray.distributed import cluster, placement, progress
from meow_ray.distributed.progress import Figures
from meow_ray.engines import Engine
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef

ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
PART_ROWS = 8192
"""Rows of one file of a stage's input."""
MOST_BLOCKS = 512
"""Blocks that work is cut into; more for more than sixteen actors."""


Step = Callable[[Any, pa.Table], pa.Table]
"""Adds columns to a batch with the model's tokenizer; keeps the rows and the key column."""


class Loader(Protocol):
    """Says what an actor loads: an `EngineSpec`, for one."""

    needs_gpu: ClassVar[bool]
    """It runs on GPUs where there are any."""

    def load(self) -> Any:
        """Loads it in this process."""
        ...


@dataclass(frozen=True)
class Work:
    """What a stage does with a batch of rows."""

    generate: Callable[[Any, pa.Table], pa.Table]
    """Runs in an actor, with what the actor has loaded."""
    prepare: Step | None = None
    """Runs before it in a CPU task."""
    finish: Step | None = None
    """Runs after it in a CPU task."""
    model: ModelRef | None = None
    """Whose tokenizer `prepare` and `finish` get."""
    observe: Callable[[pa.Table], Figures] | None = None
    """What is shown of a batch that took all steps; see `progress.Figures`."""

    def in_one(self, engine: Engine, batch: pa.Table) -> pa.Table:
        """Takes all steps in the actor."""
        batch = self.prepare(engine.tokenizer, batch) if self.prepare else batch
        batch = self.generate(engine, batch)
        return self.finish(engine.tokenizer, batch) if self.finish else batch


@dataclass(frozen=True)
class _Ledger:
    """What is done of a stage's work, below a folder: the rows, the results of batches, and the commits of those."""

    folder: str
    key: str

    @property
    def rows(self) -> str:
        return storage.join(self.folder, "input")

    @property
    def results(self) -> str:
        return storage.join(self.folder, "output")

    @property
    def commits(self) -> str:
        return storage.join(self.folder, "commits")

    def begin(self, rows: Query | pa.Table) -> tuple[int, int]:
        """Writes the rows, unless they are there whole; returns how many there are and how many are finished."""
        ready = storage.join(self.rows, "READY.json")
        if not storage.exists(ready):
            storage.remove(self.rows)
            query = rows if isinstance(rows, Query) else Query("SELECT * FROM rows", {"rows": rows})
            tables.write_parts(query, self.rows, PART_ROWS)
            storage.write_json(ready, {})
        for folder in (self.results, self.commits):
            storage.make_folder(folder)
        return tables.count_rows(self.parts()), self.count_finished()

    def parts(self) -> list[str]:
        names = storage.list_files(self.rows)
        return [storage.join(self.rows, name) for name in names if name.endswith(".parquet")]

    def finished(self) -> Query:
        """Returns the results whose commit is there, each row once: one that was cut off may stand in two files."""
        known = {name.removesuffix(".parquet") for name in storage.list_files(self.commits)}
        files = [
            storage.join(self.results, name)
            for name in storage.list_files(self.results)
            if name.removesuffix(".parquet").rpartition("-")[0] in known
        ]
        return Query(f"SELECT DISTINCT ON ({self.key}) * FROM results", {"results": files})

    def count_finished(self) -> int:
        finished = self.finished()
        if not finished.sources["results"]:
            return 0
        return int(
            Query(f"SELECT count(*) AS n FROM ({finished.sql})", finished.sources).rows()[0]["n"]
        )


def _end_soon(seconds: int = 5) -> None:
    """Ends this process by a signal: threads of compute libraries can keep it alive after Ray has left it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


class EngineActor:
    """Loads an engine once and sends batches through it."""

    def __init__(self, spec: Loader, work: Work, board: Any) -> None:
        self.engine, self.work, self.board = spec.load(), work, board
        atexit.register(_end_soon)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Processes one batch; leaves the process if the engine has died, so that Ray starts a new one."""
        before = getattr(self.engine, "generated", 0)
        try:
            out = self.work.generate(self.engine, batch)
        except Exception as error:
            if type(error).__name__ == "EngineDeadError":
                os._exit(1)
            raise
        figures = self.work.observe(out) if self.work.observe and not self.work.finish else {}
        figures["tokens"] = (getattr(self.engine, "generated", 0) - before, 0)
        self.board.add.remote(batch.num_rows, figures)
        return out


def _prepare(batch: pa.Table, work: Work) -> pa.Table:
    assert work.prepare
    return work.prepare(refs.load_tokenizer(work.model), batch)


def _finish(batch: pa.Table, work: Work, board: Any) -> pa.Table:
    assert work.finish
    out = work.finish(refs.load_tokenizer(work.model), batch)
    if work.observe:
        board.add.remote(0, work.observe(out))
    return out


def map_rows(
    rows: Query | pa.Table,
    key: str,
    spec: Loader,
    work: Work,
    folder: str,
    name: str,
    all_resources: Resources,
) -> Query:
    """Sends rows through CPU tasks and a pool of engine actors; returns the query of the results.

    Rows that are finished are committed below `folder`; a run with the same folder does only the others. The
    engine is not loaded when nothing is left. The caller's process holds no rows.

    Args:
        rows: the input, the longest work first; `key` is a string column that is unique in it.
        key: name of that column, kept in the output.
        spec: what an actor loads.
        work: what is done with a batch.
        folder: URI of a folder that is stable under everything that changes the results.
        name: the stage, which is also its section of `all_resources`.
        all_resources: the configuration's resources.
    """
    ledger = _Ledger(folder, key)
    cluster.connect()
    total, done = cluster.call(ledger.begin, rows)
    if done < total:
        with progress.progress(name, total - done) as board:
            # in a task: Ray Data's bookkeeping grows with blocks and hours, and a task that dies is started again
            cluster.call(
                _stream, ledger, total - done, spec, work, name, all_resources, board, cpus=0
            )
        done = cluster.call(ledger.count_finished)
    assert done == total, f"{done} of {total} rows came back"
    return ledger.finished()


def _stream(
    ledger: _Ledger,
    todo: int,
    spec: Loader,
    work: Work,
    name: str,
    all_resources: Resources,
    board: Any,
) -> None:
    import ray
    from ray.data.checkpoint import CheckpointConfig

    resources: EngineResources = getattr(all_resources, name)
    gpus = placement.gpus_per_actor(name, all_resources) if spec.needs_gpu else 0
    least, most = resources.actors
    if resources.cpu_tasks is False or (resources.cpu_tasks == "auto" and not gpus):
        work = Work(work.in_one, observe=work.observe)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = (
        False  # it reads with actors that nothing starts again when their node dies
    )
    commits_fs, commits = storage.filesystem(ledger.commits)
    context.checkpoint_config = CheckpointConfig(
        ledger.key, commits, override_filesystem=commits_fs, delete_checkpoint_on_success=False
    )
    batch = max(
        1, min(resources.batch_size, -(-todo // most))
    )  # as many batches as actors at least
    # a block is what is committed at once; the driver keeps some kilobytes of figures of each
    block = batch * -(-todo // (batch * max(MOST_BLOCKS, 32 * most)))
    rows_fs, _ = storage.filesystem(ledger.rows)
    results_fs, results = storage.filesystem(ledger.results)

    def on_cpu(data: Any, step: Callable[..., pa.Table], *arguments: Any) -> Any:
        options = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
        return data.map_batches(step, fn_args=arguments, **options)

    try:
        data = ray.data.read_parquet(
            [storage.filesystem(part)[1] for part in ledger.parts()], filesystem=rows_fs
        )
        # without the cut, whole files would travel as one block
        data = data.repartition(target_num_rows_per_block=block)
        data = on_cpu(data, _prepare, work) if work.prepare else data
        data = data.map_batches(
            EngineActor,
            fn_constructor_args=(spec, work, board),
            batch_size=batch,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
            num_cpus=resources.cpus_per_actor,
            num_gpus=gpus,
            label_selector=resources.node_labels,
            runtime_env={"env_vars": actor_env(resources, gpus)},
        )
        data = on_cpu(data, _finish, work, board) if work.finish else data
        data.write_parquet(results, filesystem=results_fs)
    finally:
        context.checkpoint_config = None


def actor_env(resources: EngineResources, gpus: int) -> dict[str, str]:
    """Returns the environment of an engine actor."""
    if gpus:
        return ENV
    import ray

    cores = max(
        (node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]), default=1
    )
    return cpu_env(resources, int(cores))


def cpu_env(resources: EngineResources, cores: int) -> dict[str, str]:
    """Returns what vLLM's CPU build runs well with on a node of so many cores."""
    threads = str(resources.threads or max(1, cores // resources.actors[1]))
    env = (
        ENV
        | {
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "KMP_BLOCKTIME": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(resources.kv_cache_gib))),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCHDYNAMO_DISABLE": "1",  # vLLM would compile its sampler in every actor, which costs more than it saves
        }
    )
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    return env | ({"LD_PRELOAD": str(openmp)} if openmp.exists() else {})
