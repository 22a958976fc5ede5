"""What choosing by MEMO costs on big tables: `python -m benchmarks.selection`."""

import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from benchmarks.common import MIB, fresh, published, report, sampled
from benchmarks.host import PROJECT
from meow_ray.config import Select
from meow_ray.core.manifest import MAIN
from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER

ANSWERS = 5
"""Rows of one fact: the true answer and four candidates."""
QUESTION, TEXT = 80, 150
"""Mean lengths, in characters."""
GROUP_FACTS = 1 << 13


def write_memo(path: Path, facts: int, seed: int = 0) -> None:
    """Writes a synthetic table `memo` in random order, with some equal and some null scores."""
    rng = np.random.default_rng(seed)
    with pq.ParquetWriter(path, SCHEMAS["memo"], compression="zstd") as writer:
        for start in range(0, facts, GROUP_FACTS):
            count = min(GROUP_FACTS, facts - start)
            fact = pa.array(np.repeat(np.arange(count), ANSWERS))
            rows = count * ANSWERS
            # odd multiplier: a permutation of the 64-bit numbers, so that ids are distinct
            numbers = np.arange(start, start + count, dtype=np.uint64) * np.uint64(
                0x9E3779B97F4A7C15
            )
            scores = np.round(rng.beta(2, 4, (4, rows)), 2)
            short = rng.random(rows) < 0.01
            columns = [
                pa.array([f"{number:016x}" for number in numbers.tolist()]).take(fact),
                pa.array(
                    np.tile(np.arange(TRUE_ANSWER, ANSWERS + TRUE_ANSWER, dtype=np.int32), count)
                ),
                _texts(rng, count, QUESTION).take(fact),
                _texts(rng, rows, TEXT),
                *(pa.array(values, mask=short) for values in (scores[0], *scores)),
                pa.array(np.where(short, 0, 30).astype(np.int32)),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMAS["memo"]))


def _texts(rng: np.random.Generator, count: int, length: int) -> pa.StringArray:
    lengths = rng.integers(length // 2, length * 3 // 2, count)
    letters = rng.integers(ord("a"), ord("z") + 1, lengths.sum(), dtype=np.uint8)
    letters[rng.random(len(letters)) < 1 / 6] = ord(" ")
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters))


@dataclass
class Run:
    """What one run took."""

    rows: int
    """Candidates, the true answers not counted."""
    seconds: float
    """Of the process, from start to end."""
    inner_seconds: float
    """Seconds: the stage's by its manifest, the plain sort's with reading and writing."""
    peak_pss_mib: float
    """The process and its descendants together, sampled every 0.2 s."""


def run_stage(memo: Path, root: Path) -> Run:
    """Runs `pipelines/stage.py select`."""
    command = [
        sys.executable,
        "pipelines/stage.py",
        "select",
        f"--input=memo={memo}",
        f"storage.root={root}",
    ]
    seconds, peak, _ = _timed(command)
    return Run(_candidates(memo), seconds, published(root, "selected")[1].seconds, peak)


def run_reference(memo: Path, out: Path) -> Run:
    """Runs `sort_in_memory` in a process of its own."""
    code = (
        "import sys; from benchmarks.selection import sort_in_memory; "
        "print(sort_in_memory(*sys.argv[1:]))"
    )
    seconds, peak, printed = _timed([sys.executable, "-c", code, str(memo), str(out)])
    return Run(_candidates(memo), seconds, float(printed), peak)


def sort_in_memory(memo: str, out: str) -> float:
    """Selects with pyarrow, the whole table in memory; returns all its seconds."""
    start, spec = time.perf_counter(), Select()
    table = pq.read_table(memo)
    table = table.filter((pc.field("candidate_id") != TRUE_ANSWER) & pc.field("memo").is_valid())
    table = table.sort_by(
        [("fact_id", "ascending"), ("memo", "descending"), ("candidate_id", "ascending")]
    )
    facts = table["fact_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.flatnonzero(np.diff(facts, prepend=-1))
    rank = np.arange(len(facts)) - np.repeat(first, np.diff(first, append=len(facts)))
    table = table.append_column("rank", pa.array(rank.astype(np.int32))).filter(
        pa.array(rank < spec.top_k)
    )
    table = table.rename_columns({"text": "answer"}).select(SCHEMAS["selected"].names)
    pq.write_table(table, out, compression="zstd")
    return time.perf_counter() - start


def _timed(command: list[str]) -> tuple[float, float, str]:
    """Returns the seconds of a process, the peak PSS of its tree, and what it printed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    with sampled(process.pid, tree=True) as memory:
        printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[1:3])} ended with status {process.returncode}.")
    return time.perf_counter() - start, memory.peak_pss_mib, printed


def _candidates(memo: Path) -> int:
    return int(pq.read_metadata(memo).num_rows) // ANSWERS * (ANSWERS - 1)


def main(
    sizes: Annotated[
        str, typer.Option(help="Facts of each table, with commas.")
    ] = "10000,100000,1000000",
    reference_size: Annotated[
        int, typer.Option(help="The size that is also sorted in memory.")
    ] = 100_000,
    output: Annotated[
        Path | None, typer.Option(help="JSON file [benchmarks/results/selection.json].")
    ] = None,
) -> None:
    """Runs the real `select` stage on synthetic memo tables, and a sort in memory against it."""
    runs, reference, same = {}, None, None
    for size in sorted(map(int, sizes.split(","))):
        with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
            memo, root, out = (
                Path(folder, "memo.parquet"),
                Path(folder, "root"),
                Path(folder, "reference.parquet"),
            )
            fresh(write_memo, memo, size)
            run = run_stage(memo, root)
            runs[str(size)] = asdict(run) | {
                "rows_per_second": run.rows / run.seconds,
                "table_mib": memo.stat().st_size / MIB,
            }
            print(f"{size} facts: {run.seconds:.1f} s", flush=True)
            if size == reference_size:
                reference = run_reference(memo, out)
                same = fresh(_equal, root, out)
                if not same:
                    raise SystemExit("The stage and the sort in memory select differently.")
    figures: dict[str, Any] = {"stage": runs}
    if reference is not None:
        stage = runs[str(reference_size)]
        figures |= {
            "reference": asdict(reference) | {"facts": reference_size},
            "results_identical": same,
            "inner_seconds_over_reference": stage["inner_seconds"] / reference.inner_seconds,
            "peak_pss_over_reference": stage["peak_pss_mib"] / reference.peak_pss_mib,
        }
    settings = {"answers_per_fact": ANSWERS, "question_length": QUESTION, "text_length": TEXT}
    report("selection", settings | Select().spec(), figures, output)


def _equal(root: Path, out: Path) -> bool:
    return bool(pq.read_table(published(root, "selected")[0] / MAIN).equals(pq.read_table(out)))


if __name__ == "__main__":
    typer.run(main)
