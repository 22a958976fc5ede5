"""Costs of fine-tuning: `python -m benchmarks.training speed|memory|pairs`.

All sides train the same model on the same global batches of TOFU questions, in TOFU's template, and
inverted facts, each in a process of its own. Tokens are those of the pairs, without padding. The
first step of a side allocates memory and does not count.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import Manager
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer

from benchmarks.common import SHARED_DATA, SMALL_MODEL, fresh, report, together
from benchmarks.training_sides import (
    PAPER_WIDTH,
    Case,
    Measured,
    Turn,
    ours,
    plain,
    trainer,
    two_workers,
)
from meow_ray.config import Lora, Train, TrainResources
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.stages.ingest.readers import read_records
from meow_ray.stages.invert import own_candidates
from meow_ray.stages.train import batches
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.launch import CPU_ENV
from meow_ray.stages.train.objectives import PRESETS
from meow_ray.stages.train.pairs import pairs_of

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

Model = Annotated[str, typer.Option(help="Model folder or .gguf file [SmolLM2-135M-Instruct].")]
Batch = Annotated[int, typer.Option(help="Pairs of an optimiser step.")]
Micro = Annotated[int, typer.Option(help="Pairs of a forward pass.")]
Output = Annotated[
    Path | None, typer.Option(help="JSON file; the default is below benchmarks/results.")
]
Side = Callable[[Case, Turn], Measured]


@app.command()
def speed(
    model: Model = SMALL_MODEL,
    pairs: Annotated[
        int, typer.Option(help="Pairs of TOFU forget01 with the authors' inverted facts.")
    ] = 128,
    batch_size: Batch = 32,
    micro_batch_size: Micro = 8,
    output: Output = None,
) -> None:
    """Times ours, a plain PyTorch loop, transformers' Trainer, and the paper's padding to 200.

    The sides of a group take turns, one step each, so that a slow phase of the machine affects all.
    All have the environment that our workers get on CPU.
    """
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder, Manager() as manager:
        spec = Train(batch_size=batch_size, epochs=1, learning_rate=1e-5, warmup_ratio=0)
        packed = _job(model, pairs, spec, TrainResources(micro_batch_size=micro_batch_size), folder)
        padded = Job(
            **{**vars(packed), "resources": packed.resources.model_copy(update={"packing": False})}
        )
        groups: list[dict[str, tuple[Side, Case]]] = [
            {
                "paper": (plain, Case(padded, PAPER_WIDTH)),
                "plain_packed": (plain, Case(packed)),
                "ours_packed": (ours, Case(packed)),
            },
            {
                "trainer": (trainer, Case(padded)),
                "plain_padded": (plain, Case(padded)),
                "ours_padded": (ours, Case(padded)),
            },
        ]
        for group in groups:
            turns = [manager.Semaphore(int(i == 0)) for i in range(len(group))]
            ring = [
                Turn(mine, after) for mine, after in zip(turns, turns[1:] + turns[:1], strict=True)
            ]
            calls = [
                (side, (case, turn), CPU_ENV)
                for (side, case), turn in zip(group.values(), ring, strict=True)
            ]
            found |= zip(group, together(calls), strict=True)
            print(
                *(f"{name}: {found[name].tokens_per_second:.1f} tokens/s" for name in group),
                sep="\n",
                flush=True,
            )
    rates = {name: one.tokens_per_second for name, one in found.items()}
    figures = {
        "tokens_per_second": rates,
        "peak_rss_mib": {name: one.peak_rss_mib for name, one in found.items()},
        "ours_over_paper": {
            name: found[f"ours_{name}"].over(found["paper"]) for name in ("padded", "packed")
        },
        "ours_over_plain": {
            name: found[f"ours_{name}"].over(found[f"plain_{name}"])
            for name in ("padded", "packed")
        },
        "ours_padded_over_trainer": found["ours_padded"].over(found["trainer"]),
        "largest_relative_difference_of_losses": {
            name: _difference(one.losses, found["plain_padded"].losses)
            for name, one in found.items()
            if name != "trainer"
        },
        "step_seconds": {name: one.step_seconds for name, one in found.items()},
    }
    settings = {"pairs": pairs, "batch_size": batch_size, "micro_batch_size": micro_batch_size}
    report("training_speed", settings, figures, output)


@app.command()
def memory(
    model: Model = SMALL_MODEL,
    batch_size: Batch = 8,
    micro_batch_size: Micro = 4,
    output: Output = None,
) -> None:
    """Measure the peak memory of one of two workers, by ZeRO stage, full and with LoRA."""
    figures = {}
    for name, lora in (("full", None), ("lora", Lora())):
        for stage in (1, 2, 3):
            spec = Train(batch_size=batch_size, epochs=1, learning_rate=1e-5, lora=lora)
            resources = TrainResources(zero_stage=stage, micro_batch_size=micro_batch_size)
            with tempfile.TemporaryDirectory() as folder:
                job = _job(model, 2 * batch_size, spec, resources, folder)
                figures[f"{name}_zero{stage}"] = {
                    "worker_peak_rss_mib": fresh(two_workers, job, env=CPU_ENV)
                }
            print(f"{name}, ZeRO {stage}: {figures[f'{name}_zero{stage}']}", flush=True)
    report(
        "training_memory",
        {"batch_size": batch_size, "micro_batch_size": micro_batch_size},
        figures,
        output,
    )


@app.command()
def pairs(
    model: Model = SMALL_MODEL,
    count: Annotated[int, typer.Option(help="Pairs that a worker holds.")] = 400_000,
    output: Output = None,
) -> None:
    """Measure the driver's pace of tokenising pairs, and their memory in driver and workers."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        job = _job(model, count, Train(), TrainResources(), folder)
        seconds, found = time.perf_counter() - began, job.load().pairs
    figures = {
        "tokens_per_pair": pc.sum(pc.list_value_length(found["input_ids"])).as_py() / count,
        "tokenised_pairs_per_second": count / seconds,
        "bytes_per_pair": found.nbytes / count,
    }
    report("training_pairs", {"pairs": count}, figures, output)


def _job(model: str, pairs: int, spec: Train, resources: TrainResources, folder: str) -> Job:
    """Writes the pairs, repeated if there are too few; returns the job that trains on them."""
    path = SHARED_DATA / "meow" / "inverted_forget01.json"
    table = own_candidates.complete(read_records(str(path)), path.name)
    rows = table.take([i % table.num_rows for i in range(pairs)]).select(
        ["fact_id", "question", "inverted_answer"]
    )
    rows = rows.rename_columns(["fact_id", "question", "answer"])
    rows = rows.append_column("rank", pa.array(range(pairs), pa.int32()))
    place, ref = Path(tempfile.mkdtemp(dir=folder)), refs.pin(model, None, "--model")
    prompter = Prompter(refs.load_tokenizer(ref), "tofu")
    batches.write_token_pairs(
        pairs_of(("inverted",), None, rows), prompter, spec.max_length, str(place / "pairs.parquet")
    )
    return Job(
        ref, str(place / "pairs.parquet"), spec, PRESETS["meow"], resources, str(place / "out")
    )


def _difference(losses: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True))


if __name__ == "__main__":
    app()
