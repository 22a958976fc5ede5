"""Measures the cost of the stage `evaluate` with a tiny model.

Run `python -m benchmarks.evaluation grow` or `python -m benchmarks.evaluation kill`.
"""

import os
import signal
import tempfile
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.dataset as ds
import typer

from benchmarks import overhead
from benchmarks.common import fresh, report
from benchmarks.host import SMALL_MODEL, peak_rss_mib
from benchmarks.overhead import Run
from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.schema import SCHEMAS
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.evaluate.stage import EVALUATE
from meow_ray.stages.inputs import engine_spec

MODELS = ("target", "model")
"""The models that the stage evaluates, so that each fact gives two examples."""
FORGET = 10
"""Number of facts in the forget set; the others are the retain set."""

app = typer.Typer(add_completion=False)
MaxNewTokens = Annotated[int, typer.Option(help="Longest reply.")]
Output = Annotated[
    Path | None, typer.Option(help="JSON file [benchmarks/results/evaluation_COMMAND.json].")
]


@app.command()
def grow(
    sizes: Annotated[
        str, typer.Option(help="Numbers of examples, separated by commas.")
    ] = "1000,10000,100000",
    max_new_tokens: MaxNewTokens = 8,
    output: Output = None,
) -> None:
    """Runs the stage on several sizes; prints time per added example and the driver's memory."""
    runs = []
    for size in sorted(map(int, sizes.split(","))):
        with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
            fresh(write_inputs, Path(folder), size // len(MODELS))
            runs.append(fresh(drive, Path(folder), max_new_tokens))
        print(f"{runs[-1].rows} examples: {runs[-1].seconds:.1f} s", flush=True)
    seconds_per_added_example = {
        f"{smaller.rows} to {larger.rows}": (larger.seconds - smaller.seconds)
        / (larger.rows - smaller.rows)
        for smaller, larger in pairwise(runs)
    }
    first, last = runs[0], runs[-1]
    figures = {
        "runs": {
            str(run.rows): asdict(run) | {"examples_per_second": run.rows / run.seconds}
            for run in runs
        },
        "seconds_per_further_example": seconds_per_added_example,
        "driver_peak_pss_last_over_first": last.driver_peak_pss_mib / first.driver_peak_pss_mib,
    }
    report("evaluation_grow", {"max_new_tokens": max_new_tokens}, figures, output)


@app.command()
def kill(
    examples: Annotated[
        int, typer.Option(help="Number of examples; the driver is killed after half.")
    ] = 100_000,
    max_new_tokens: MaxNewTokens = 8,
    output: Output = None,
) -> None:
    """Kills the stage's driver when half of the examples are done, and resumes the stage."""
    with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
        fresh(write_inputs, Path(folder), examples // len(MODELS))
        start = time.perf_counter()
        with suppress(BrokenProcessPool):
            fresh(drive_half, Path(folder), max_new_tokens, examples // 2)
        seconds_before = time.perf_counter() - start
        finished = count_finished(Path(folder))
        print(f"killed after {finished} examples and {seconds_before:.1f} s", flush=True)
        resumed = fresh(drive, Path(folder), max_new_tokens)
    per_example_before = seconds_before / finished
    per_example_after = resumed.seconds / (resumed.rows - finished)
    figures = {
        "examples_kept": finished,
        "seconds_until_killed": seconds_before,
        "examples": resumed.rows,
        "seconds_for_the_others": resumed.seconds,
        "seconds_an_example_after_over_before": per_example_after / per_example_before,
    }
    report("evaluation_kill", {"max_new_tokens": max_new_tokens}, figures, output)


def write_inputs(folder: Path, facts: int) -> None:
    """Writes facts, and two random models of two layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = [
        {
            "fact_id": f"{number:016x}",
            "split": "forget" if number < FORGET else "retain",
            "question": f"What is thing number {number}?",
            "answer": f"Thing number {number} is a stone from hill {number % 97}.",
        }
        for number in range(facts)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])
    storage.write_table(table, str(folder / "facts.parquet"))
    tokenizer = refs.load_tokenizer(refs.pin(SMALL_MODEL, None, "--model"))
    for seed, name in enumerate(MODELS):
        torch.manual_seed(seed)
        shape = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            dtype="float32",
        )
        LlamaForCausalLM(shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def drive(folder: Path, max_new_tokens: int) -> Run:
    """Runs the stage as its driver; the facts are not loaded before the measurement."""
    config = Config.model_validate(
        {
            "target": {"engine": "transformers", "template": "{{ question }}\n"},
            "memo": {"window": "token", "template": "target", "max_new_tokens": "label"},
            "evaluate": {
                "max_new_tokens": max_new_tokens,
                "memo_sample": FORGET,
                "bootstrap_resamples": 100,
            },
            "storage": {"root": str(folder / "root")},
        }
    )
    inputs = _stage_inputs(folder)
    manifest, seconds, pss = overhead.measured(EVALUATE, config, inputs, engine_spec)
    return Run(manifest.summary["examples"], seconds, pss, peak_rss_mib())


def _stage_inputs(folder: Path) -> dict[str, Artifact]:
    facts = str(folder / "facts.parquet")
    no_selection = SCHEMAS["selected"].empty_table()
    inputs = {name: Artifact(name, "", "none") for name in ("text", "task_folder", "retain_model")}
    inputs["sets"] = Artifact("sets", "", "none", value={})
    inputs["facts"] = Artifact("facts", facts, storage.content_digest(facts), value=[facts])
    inputs["selected"] = Artifact("selected", "", "none", value=no_selection)
    for name in MODELS:
        uri = str(folder / name)
        ref = ModelRef(uri, storage.content_digest(uri))
        inputs[name] = Artifact(name, uri, ref.digest, value=ref)
    return inputs


def drive_half(folder: Path, max_new_tokens: int, examples: int) -> None:
    """Runs the stage like `drive`, and kills its own process when `examples` are finished."""

    def watch() -> None:
        finished = 0
        while finished < examples:
            time.sleep(1)
            with suppress(FileNotFoundError):  # a commit was renamed while it was counted
                finished = count_finished(folder)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    drive(folder, max_new_tokens)
    raise RuntimeError("the stage ended before its driver was killed")


def count_finished(folder: Path) -> int:
    """Returns the number of examples that are finished, over all models."""
    files = [str(path) for path in folder.glob("root/work/*/commits/*.parquet")]
    return ds.dataset(files, format="parquet").count_rows() if files else 0


if __name__ == "__main__":
    app()
