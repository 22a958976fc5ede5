"""Costs of fine-tuning: `python -m benchmarks.training speed|memory|pairs`.

All sides train the same model on the same global batches of TOFU questions, in TOFU's template, and
inverted facts, each in a process of its own. Tokens are those of the pairs, without padding. The
first step of a side allocates memory and does not count.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import Manager
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer

from benchmarks.common import fresh, report, together
from benchmarks.host import SHARED_DATA, SMALL_MODEL
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
from meow_ray.stages.train.pairs import pairs_of
from meow_ray.stages.train.presets import PRESETS

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

Model = Annotated[str, typer.Option(help="Model folder or .gguf file [SmolLM2-135M-Instruct].")]
Batch = Annotated[int, typer.Option(help="Pairs per optimiser step.")]
Micro = Annotated[int, typer.Option(help="Pairs per forward pass.")]
Output = Annotated[
    Path | None, typer.Option(help="JSON file; the default is below benchmarks/results.")
]
Side = Callable[[Case, Turn], Measured]
Group = dict[str, tuple[Side, Case]]
"""Sides that take turns, by name."""


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
    """Time ours, a plain PyTorch loop, transformers' Trainer, and the paper's padding to 200.

    The sides of a group take turns, one step each, so that a slow phase of the machine affects all.
    All have the environment that our workers get on CPU.
    """
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder, Manager() as manager:
        spec = Train(batch_size=batch_size, epochs=1, learning_rate=1e-5, warmup_ratio=0)
        packed = _job(model, pairs, spec, TrainResources(micro_batch_size=micro_batch_size), folder)
        padded = replace(packed, resources=packed.resources.model_copy(update={"packing": False}))
        groups: list[Group] = [
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
            measured |= _in_turns(group, manager)
            for name in group:
                print(f"{name}: {measured[name].tokens_per_second:.1f} tokens/s", flush=True)
    settings = {"pairs": pairs, "batch_size": batch_size, "micro_batch_size": micro_batch_size}
    report("training_speed", settings, _speed_figures(measured), output)


def _in_turns(group: Group, manager: Any) -> dict[str, Measured]:
    """Runs the sides of a group, each in a process of its own, one step at a time in a ring."""
    semaphores = [manager.Semaphore(int(position == 0)) for position in range(len(group))]
    next_semaphores = semaphores[1:] + semaphores[:1]
    calls = [
        (side, (case, Turn(mine, after)), CPU_ENV)
        for (side, case), mine, after in zip(
            group.values(), semaphores, next_semaphores, strict=True
        )
    ]
    return dict(zip(group, together(calls), strict=True))


def _speed_figures(measured: dict[str, Measured]) -> dict[str, Any]:
    """Returns the figures of `speed` by the measurements of all sides."""
    layouts = ("padded", "packed")
    ours_over_paper = {name: measured[f"ours_{name}"].over(measured["paper"]) for name in layouts}
    ours_over_plain = {
        name: measured[f"ours_{name}"].over(measured[f"plain_{name}"]) for name in layouts
    }
    differences = {
        name: _difference(side.losses, measured["plain_padded"].losses)
        for name, side in measured.items()
        if name != "trainer"
    }
    return {
        "tokens_per_second": {name: side.tokens_per_second for name, side in measured.items()},
        "peak_rss_mib": {name: side.peak_rss_mib for name, side in measured.items()},
        "ours_over_paper": ours_over_paper,
        "ours_over_plain": ours_over_plain,
        "ours_padded_over_trainer": measured["ours_padded"].over(measured["trainer"]),
        "largest_relative_difference_of_losses": differences,
        "step_seconds": {name: side.step_seconds for name, side in measured.items()},
    }


@app.command()
def memory(
    model: Model = SMALL_MODEL,
    batch_size: Batch = 8,
    micro_batch_size: Micro = 4,
    output: Output = None,
) -> None:
    """Measure the peak memory of one of two workers, by ZeRO stage, full and with LoRA."""
    peaks: dict[str, Any] = {}
    for name, lora in (("full", None), ("lora", Lora())):
        for stage in (1, 2, 3):
            spec = Train(batch_size=batch_size, epochs=1, learning_rate=1e-5, lora=lora)
            resources = TrainResources(zero_stage=stage, micro_batch_size=micro_batch_size)
            with tempfile.TemporaryDirectory() as folder:
                job = _job(model, 2 * batch_size, spec, resources, folder)
                peak = {"worker_peak_rss_mib": fresh(two_workers, job, env=CPU_ENV)}
            peaks[f"{name}_zero{stage}"] = peak
            print(f"{name}, ZeRO {stage}: {peak}", flush=True)
    settings = {"batch_size": batch_size, "micro_batch_size": micro_batch_size}
    report("training_memory", settings, peaks, output)


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
        seconds = time.perf_counter() - began
        held = job.load().pairs
    figures = {
        "tokens_per_pair": pc.sum(pc.list_value_length(held["input_ids"])).as_py() / count,
        "tokenised_pairs_per_second": count / seconds,
        "bytes_per_pair": held.nbytes / count,
    }
    report("training_pairs", {"pairs": count}, figures, output)


def _job(model: str, count: int, spec: Train, resources: TrainResources, folder: str) -> Job:
    """Writes the pairs, repeated if they are too few; returns a job that trains on them."""
    path = SHARED_DATA / "meow" / "inverted_forget01.json"
    table = own_candidates.complete(read_records(str(path)), path.name)
    rows = table.take([i % table.num_rows for i in range(count)])
    rows = rows.select(["fact_id", "question", "inverted_answer"])
    rows = rows.rename_columns(["fact_id", "question", "answer"])
    rows = rows.append_column("rank", pa.array(range(count), pa.int32()))
    ref = refs.pin(model, None, "--model")
    prompter = Prompter(refs.load_tokenizer(ref), "tofu")
    job_folder = Path(tempfile.mkdtemp(dir=folder))
    pairs_path = str(job_folder / "pairs.parquet")
    inverted = pairs_of(("inverted",), None, rows)
    batches.write_token_pairs(inverted, prompter, spec.max_length, pairs_path)
    return Job(
        model=ref,
        pairs=pairs_path,
        spec=spec,
        objective=PRESETS["meow"],
        resources=resources,
        out=str(job_folder / "out"),
    )


def _difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """Returns the largest relative difference of two sides' losses over all steps."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True))


if __name__ == "__main__":
    app()
