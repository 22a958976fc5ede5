"""The pure parts of `map_rows`: sizes of batches, the ledger, the environment of actors."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import EngineResources
from meow_ray.distributed import map_rows
from meow_ray.distributed.map_rows import BatchWork, _block_sizes, _Ledger


@given(
    num_rows=st.integers(1, 10**7),
    batch_size=st.integers(1, 1000),
    max_actors=st.integers(1, 300),
)
def test_blocks_are_whole_batches_and_not_too_many(num_rows: int, batch_size: int, max_actors: int):
    sizes = _block_sizes(num_rows, batch_size, max_actors)
    assert 1 <= sizes.batch <= batch_size
    assert sizes.block % sizes.batch == 0
    assert -(-num_rows // sizes.block) <= max(512, 32 * max_actors)


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "max_actors", "batch", "block"),
    [
        (10, 64, 2, 5, 5),  # one batch for each actor
        (1, 64, 4, 1, 1),
        (1000, 64, 2, 64, 64),
        (65536, 64, 1, 64, 128),  # at most 512 blocks
        (65536, 64, 32, 64, 64),  # at most 32 blocks per actor
    ],
)
def test_batches_and_blocks_by_example(
    num_rows: int, batch_size: int, max_actors: int, batch: int, block: int
):
    sizes = _block_sizes(num_rows, batch_size, max_actors)
    assert (sizes.batch, sizes.block) == (batch, block)


# --- the ledger ---------------------------------------------------------------------------------


def rows(*ids: str) -> pa.Table:
    return pa.table({"id": list(ids), "length": [len(name) for name in ids]})


def write_result(ledger: _Ledger, name: str, *ids: str, committed: bool) -> None:
    """Writes a block's result as Ray Data does, with or without its commit."""
    pq.write_table(rows(*ids), f"{ledger.results}/{name}-000000.parquet")
    if committed:
        pq.write_table(rows(*ids).select(["id"]), f"{ledger.commits}/{name}.parquet")


def test_a_ledger_counts_only_committed_rows(tmp_path: Path):
    ledger = _Ledger(str(tmp_path), "id")
    assert ledger.begin(rows("a", "bb", "ccc")) == (3, 0)
    write_result(ledger, "first", "a", committed=True)
    write_result(ledger, "second", "bb", committed=False)
    assert ledger.count_finished() == 1
    assert ledger.finished().rows() == [{"id": "a", "length": 1}]


def test_a_row_in_two_results_counts_once(tmp_path: Path):
    ledger = _Ledger(str(tmp_path), "id")
    ledger.begin(rows("a", "bb"))
    write_result(ledger, "first", "a", committed=True)
    write_result(ledger, "second", "a", "bb", committed=True)
    assert ledger.count_finished() == 2


def test_a_complete_input_is_not_written_again(tmp_path: Path):
    ledger = _Ledger(str(tmp_path), "id")
    ledger.begin(rows("a", "bb"))
    assert ledger.begin(rows("another")) == (2, 0)


def test_an_incomplete_input_is_written_again(tmp_path: Path):
    ledger = _Ledger(str(tmp_path), "id")
    ledger.begin(rows("a", "bb"))
    Path(ledger.rows, "READY.json").unlink()
    assert ledger.begin(rows("another")) == (1, 0)


# --- steps --------------------------------------------------------------------------------------


class Engine:
    """An engine whose tokenizer is a word."""

    tokenizer = "T"


def append(word: str) -> Any:
    """Returns a step that appends a word to each text."""

    def step(tokenizer: Any, batch: pa.Table) -> pa.Table:
        name = tokenizer if isinstance(tokenizer, str) else "E"
        return pa.table({"text": [f"{t}-{name}{word}" for t in batch["text"].to_pylist()]})

    return step


def test_in_an_actor_all_steps_run_in_order():
    work = BatchWork(generate=append("g"), prepare=append("p"), finish=append("f"))
    whole = work.in_actor()
    assert whole.prepare is None
    assert whole.finish is None
    out = whole.generate(Engine(), pa.table({"text": ["x"]}))
    assert out["text"].to_pylist() == ["x-Tp-Eg-Tf"]


def test_work_without_other_steps_only_generates():
    out = BatchWork(generate=append("g")).in_actor().generate(Engine(), pa.table({"text": ["x"]}))
    assert out["text"].to_pylist() == ["x-Eg"]


# --- the environment ----------------------------------------------------------------------------


def test_cores_are_shared_by_the_most_actors():
    resources = EngineResources(num_actors=(1, 4), kv_cache_gib=0.3)
    environment = map_rows.cpu_env(resources, cores=16)
    assert environment["OMP_NUM_THREADS"] == environment["RAYON_NUM_THREADS"] == "4"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert map_rows.cpu_env(resources, cores=2)["OMP_NUM_THREADS"] == "1"


def test_configured_threads_take_precedence():
    assert map_rows.cpu_env(EngineResources(threads=3), cores=16)["OMP_NUM_THREADS"] == "3"


def test_an_actor_on_a_gpu_has_no_settings_for_cpu():
    assert map_rows.actor_env(EngineResources(), gpus=1) == map_rows.ENV
