"""A table processed in batches by a pool of engine actors, with Ray Data's checkpointing."""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from meow_ray.config import EngineResources, Resources
from meow_ray.core import storage, tables, timeline
from meow_ray.core.tables import Query
from meow_ray.distributed import cluster, placement, progress
from meow_ray.distributed.failures import plain_user_errors
from meow_ray.distributed.figures import Figure, Figures
from meow_ray.engines import Engine
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef

ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""The environment of every engine actor."""
PART_ROWS = 8192
"""Rows per file of a stage's input."""
MAX_BLOCKS, MAX_BLOCKS_PER_ACTOR = 512, 32
"""The number of blocks into which the rows are cut is at most the larger of these two limits."""


Step = Callable[[Any, pa.Table], pa.Table]
"""Takes a tokenizer and a batch; returns the batch with new columns and with the same rows."""


class Loader(Protocol):
    """Describes what an actor loads, such as an `EngineSpec`."""

    needs_gpu: ClassVar[bool]
    """Whether it runs on GPUs where the cluster has any."""

    def load(self) -> Any:
        """Loads it in this process."""
        ...


@dataclass(frozen=True)
class BatchWork:
    """The steps that a stage takes with each batch of rows."""

    generate: Callable[[Any, pa.Table], pa.Table]
    """Runs in an actor; it gets what the actor has loaded."""
    prepare: Step | None = None
    """Runs before `generate` in a CPU task."""
    finish: Step | None = None
    """Runs after `generate` in a CPU task."""
    model: ModelRef | None = None
    """The model whose tokenizer `prepare` and `finish` get."""
    observe: Callable[[pa.Table], Figures] | None = None
    """Returns the figures to show of a batch that has taken all steps."""

    def in_actor(self) -> "BatchWork":
        """Returns the same work with all steps in the actor."""
        return BatchWork(self._all_steps, observe=self.observe)

    def _all_steps(self, engine: Engine, batch: pa.Table) -> pa.Table:
        if self.prepare:
            batch = self.prepare(engine.tokenizer, batch)
        batch = self.generate(engine, batch)
        return self.finish(engine.tokenizer, batch) if self.finish else batch


def map_rows(
    rows: Query | pa.Table,
    key: str,
    spec: Loader,
    work: BatchWork,
    folder: str,
    name: str,
    all_resources: Resources,
) -> Query:
    """Processes rows in CPU tasks and a pool of engine actors; returns the query of the results.

    Finished rows are committed below `folder`; another run with the same folder processes only the
    rows that are left, and loads no engine if none is. The caller's process holds no rows.

    Args:
        rows: the input, the longest work first; `key` is a string column without duplicates.
        key: the name of that column, which the output keeps.
        spec: what an actor loads.
        work: what is done with each batch.
        folder: URI of a folder whose name changes if and only if the results would.
        name: the stage, which is also its section of `all_resources`.
        all_resources: the configuration's resources.
    """
    ledger = _Ledger(folder, key)
    cluster.connect()
    total, finished = cluster.call(ledger.begin, rows)
    timeline.mark("rows written")
    if finished < total:
        num_left = total - finished
        with progress.show_progress(name, num_left) as board:
            # in a task, because Ray Data's bookkeeping grows with blocks and hours, and because a
            # task that dies is started again; in a process of its own, because Ray Data keeps its
            # actors, and their GPUs, after a mistake
            stream = partial(_process, ledger, num_left, spec, work, name, all_resources, board)
            cluster.call(stream, cpus=0, own_process=True)
        finished = cluster.call(ledger.count_finished)
    assert finished == total, f"{finished} of {total} rows came back"
    return ledger.finished()


# --- finished rows ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ledger:
    """The files of a stage's work: its input rows, the results of blocks, and their commits."""

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
        """Writes the input, if it is not complete; counts its rows and finished rows."""
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
        """Returns the URIs of the input's files."""
        names = storage.list_files(self.rows)
        return [storage.join(self.rows, name) for name in names if name.endswith(".parquet")]

    def finished(self) -> Query:
        """Returns the committed results, each row once.

        A block that was interrupted between result and commit is written again, so that a row may
        be in two files.
        """
        commits = {name.removesuffix(".parquet") for name in storage.list_files(self.commits)}
        files = [
            storage.join(self.results, name)
            for name in storage.list_files(self.results)
            if name.removesuffix(".parquet").rpartition("-")[0] in commits
        ]
        return Query(f"SELECT DISTINCT ON ({self.key}) * FROM results", {"results": files})

    def count_finished(self) -> int:
        """Returns the number of rows with committed results."""
        finished = self.finished()
        if not finished.sources["results"]:
            return 0
        count = Query(f"SELECT count(*) AS n FROM ({finished.sql})", finished.sources)
        return int(count.rows()[0]["n"])


# --- actors and tasks ---------------------------------------------------------------------------


class EngineActor:
    """An actor that loads an engine once and sends batches through it."""

    engine: Any = None
    """What the spec loads; None if that failed by a mistake of the user."""
    mistake: MeowError | None = None
    """The mistake, which the first batch raises: Ray replaces an actor that fails to start."""

    def __init__(self, spec: Loader, work: BatchWork, board: Any) -> None:
        timeline.mark("worker started")
        self.work = work
        self.board = board
        atexit.register(_end_soon)
        try:
            with plain_user_errors():
                self.engine = spec.load()
        except MeowError as error:
            self.mistake = error
        timeline.mark("worker ready")
        warning = getattr(self.engine, "warning", None)
        if warning:
            board.warn.remote(warning)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Processes one batch; ends the process if its engine has died, so that Ray replaces it."""
        if self.mistake:
            raise self.mistake
        generated_before = getattr(self.engine, "generated", 0)
        try:
            with plain_user_errors():
                out = self.work.generate(self.engine, batch)
        except Exception as error:
            if type(error).__name__ == "EngineDeadError":
                os._exit(1)
            raise
        figures: Figures = {}
        if self.work.observe and not self.work.finish:
            figures |= self.work.observe(out)
        generated = getattr(self.engine, "generated", 0) - generated_before
        figures["tokens"] = Figure.total(generated)
        self.board.add.remote(batch.num_rows, figures)
        timeline.mark_first("first result")
        return out


def _end_soon(seconds: int = 5) -> None:
    """Ends this process by a signal; threads of compute libraries could keep it alive otherwise."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def _prepare(batch: pa.Table, work: BatchWork) -> pa.Table:
    assert work.prepare
    with plain_user_errors():
        return work.prepare(refs.load_tokenizer(work.model), batch)


def _finish(batch: pa.Table, work: BatchWork, board: Any) -> pa.Table:
    assert work.finish
    with plain_user_errors():
        out = work.finish(refs.load_tokenizer(work.model), batch)
    if work.observe:
        board.add.remote(0, work.observe(out))
    return out


# --- the stream ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _BlockSizes:
    """Rows of a batch, which an actor gets at once, and of a block, which is committed at once."""

    batch: int
    block: int


def _block_sizes(num_rows: int, batch_size: int, max_actors: int) -> _BlockSizes:
    """Returns sizes with at least as many batches as actors, and with a bounded number of blocks.

    The bound is there because the driver keeps some kilobytes of bookkeeping for each block.
    """
    batch = max(1, min(batch_size, _ceil_div(num_rows, max_actors)))
    max_blocks = max(MAX_BLOCKS, MAX_BLOCKS_PER_ACTOR * max_actors)
    batches_per_block = _ceil_div(num_rows, batch * max_blocks)
    return _BlockSizes(batch=batch, block=batch * batches_per_block)


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _process(
    ledger: _Ledger,
    num_left: int,
    spec: Loader,
    work: BatchWork,
    name: str,
    all_resources: Resources,
    board: Any,
) -> None:
    """Streams the rows that are left through the steps of the work, and commits block by block."""
    timeline.mark("stream started")
    resources: EngineResources = getattr(all_resources, name)
    gpus = placement.gpus_per_actor(name, all_resources) if spec.needs_gpu else 0
    if resources.cpu_tasks is False or (resources.cpu_tasks == "auto" and not gpus):
        work = work.in_actor()
    sizes = _block_sizes(num_left, resources.batch_size, resources.actors[1])
    context = _configure_ray_data(ledger)
    try:
        data = _read(ledger, sizes)
        if work.prepare:
            data = _map_in_tasks(data, _prepare, work)
        data = _map_in_actors(data, spec, work, board, sizes.batch, resources, gpus)
        if work.finish:
            data = _map_in_tasks(data, _finish, work, board)
        results_fs, results = storage.filesystem(ledger.results)
        data.write_parquet(results, filesystem=results_fs)
    finally:
        context.checkpoint_config = None


def _configure_ray_data(ledger: _Ledger) -> Any:
    """Makes Ray Data quiet and lets it record commits in the ledger; returns its context."""
    import ray
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # otherwise Ray Data puts a user's mistake into an error that loses it on the way here
    context.raise_original_map_exception = True
    # version 2 reads with actors that nothing restarts when their node dies
    context.use_datasource_v2 = False
    fs, commits = storage.filesystem(ledger.commits)
    context.checkpoint_config = CheckpointConfig(
        ledger.key, commits, override_filesystem=fs, delete_checkpoint_on_success=False
    )
    return context


def _read(ledger: _Ledger, sizes: _BlockSizes) -> Any:
    """Returns the input as a Ray dataset in blocks; without them, whole files would be blocks."""
    import ray

    fs, _ = storage.filesystem(ledger.rows)
    paths = [storage.filesystem(part)[1] for part in ledger.parts()]
    data = ray.data.read_parquet(paths, filesystem=fs)
    return data.repartition(target_num_rows_per_block=sizes.block)


def _map_in_tasks(data: Any, step: Callable[..., pa.Table], *arguments: Any) -> Any:
    """Maps whole blocks in CPU tasks."""
    return data.map_batches(
        step, fn_args=arguments, batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )


def _map_in_actors(
    data: Any,
    spec: Loader,
    work: BatchWork,
    board: Any,
    batch_size: int,
    resources: EngineResources,
    gpus: int,
) -> Any:
    """Maps batches in a pool of actors, each with an engine."""
    import ray

    least, most = resources.actors
    return data.map_batches(
        EngineActor,
        fn_constructor_args=(spec, work, board),
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=resources.cpus_per_actor,
        num_gpus=gpus,
        label_selector=resources.node_labels,
        runtime_env={"env_vars": actor_env(resources, gpus)},
    )


# --- the environment of actors ------------------------------------------------------------------


def actor_env(resources: EngineResources, gpus: int) -> dict[str, str]:
    """Returns the environment of an engine actor with this number of GPUs."""
    if gpus:
        return ENV
    import ray

    cores = max(
        (node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]), default=1
    )
    return cpu_env(resources, int(cores))


def cpu_env(resources: EngineResources, cores: int) -> dict[str, str]:
    """Returns the environment of an actor with a CPU engine on a node with this number of cores."""
    threads = str(resources.threads or max(1, cores // resources.actors[1]))
    env = ENV | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,
        "KMP_BLOCKTIME": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(resources.kv_cache_gib))),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # vLLM would compile its sampler in each actor, which costs more than it saves
        "TORCHDYNAMO_DISABLE": "1",
    }
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if openmp.exists():
        env["LD_PRELOAD"] = str(openmp)
    return env
