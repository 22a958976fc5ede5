"""What the stage `evaluate` costs with a tiny model: `python -m benchmarks.evaluation grow` and `kill`."""

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
from benchmarks.common import SMALL_MODEL, fresh, peak_rss_mib, report
from benchmarks.overhead import Run
from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.schema import SCHEMAS
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.evaluate import stage

MODELS = ("target", "model")
"""Both are asked, so that a fact gives two examples."""
FORGET = 10
"""Forget facts; the others are the retain set."""


app = typer.Typer(add_completion=False)
MaxNewTokens = Annotated[int, typer.Option(help="Longest reply.")]
Output = Annotated[
    Path | None, typer.Option(help="JSON file [benchmarks/results/evaluation_COMMAND.json].")
]


@app.command()
def grow(
    sizes: Annotated[
        str, typer.Option(help="Examples, growing, with commas.")
    ] = "1000,10000,100000",
    max_new_tokens: MaxNewTokens = 8,
    output: Output = None,
) -> None:
    """Runs the stage through Ray at several sizes; prints time a further example and the driver's memory."""
    runs = []
    for size in sorted(map(int, sizes.split(","))):
        with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
            fresh(write_inputs, Path(folder), size // len(MODELS))
            runs.append(fresh(drive, Path(folder), max_new_tokens))
        print(f"{runs[-1].rows} examples: {runs[-1].seconds:.1f} s", flush=True)
    pairs = list(pairwise(runs))
    figures = {
        "runs": {
            str(run.rows): asdict(run) | {"examples_per_second": run.rows / run.seconds}
            for run in runs
        },
        "seconds_per_further_example": {
            f"{a.rows} to {b.rows}": (b.seconds - a.seconds) / (b.rows - a.rows) for a, b in pairs
        },
        "driver_peak_pss_last_over_first": runs[-1].driver_peak_pss_mib
        / runs[0].driver_peak_pss_mib,
    }
    report("evaluation_grow", {"max_new_tokens": max_new_tokens}, figures, output)


@app.command()
def kill(
    examples: Annotated[
        int, typer.Option(help="Examples, of which the driver does half.")
    ] = 100_000,
    max_new_tokens: MaxNewTokens = 8,
    output: Output = None,
) -> None:
    """Kills the stage's driver when half of its examples are done, and runs it again: the other half is left."""
    with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
        fresh(write_inputs, Path(folder), examples // len(MODELS))
        start = time.perf_counter()
        with suppress(BrokenProcessPool):
            fresh(drive_half, Path(folder), max_new_tokens, examples // 2)
        seconds, kept = time.perf_counter() - start, committed(Path(folder))
        print(f"killed after {kept} examples and {seconds:.1f} s", flush=True)
        rest = fresh(drive, Path(folder), max_new_tokens)
    figures = {
        "examples_kept": kept,
        "seconds_until_killed": seconds,
        "examples": rest.rows,
        "seconds_for_the_others": rest.seconds,
        "seconds_an_example_after_over_before": rest.seconds
        / (rest.rows - kept)
        / (seconds / kept),
    }
    report("evaluation_kill", {"max_new_tokens": max_new_tokens}, figures, output)


def write_inputs(folder: Path, facts: int) -> None:
    """Writes facts and two random models of two layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = [
        {
            "fact_id": f"{i:016x}",
            "split": "forget" if i < FORGET else "retain",
            "question": f"What is thing number {i}?",
            "answer": f"Thing number {i} is a stone from hill {i % 97}.",
        }
        for i in range(facts)
    ]
    storage.write_table(
        pa.Table.from_pylist(rows, schema=SCHEMAS["facts"]), str(folder / "facts.parquet")
    )
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
    """Runs the stage as its driver, on facts that are not loaded before it."""
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
    files = [str(folder / "facts.parquet")]
    inputs = {name: Artifact(name, "", "none") for name in ("text", "task_folder", "retain_model")}
    inputs["sets"] = Artifact("sets", "", "none", value={})
    inputs["facts"] = Artifact("facts", files[0], storage.content_digest(files[0]), value=files)
    inputs["selected"] = Artifact("selected", "", "none", value=SCHEMAS["selected"].empty_table())
    for name in MODELS:
        uri = str(folder / name)
        ref = ModelRef(uri, storage.content_digest(uri))
        inputs[name] = Artifact(name, uri, ref.digest, value=ref)
    manifest, seconds, pss = overhead.measured(stage.EVALUATE, config, inputs)
    return Run(manifest.summary["examples"], seconds, pss, peak_rss_mib())


def drive_half(folder: Path, max_new_tokens: int, examples: int) -> None:
    """As `drive`, but kills its own process once so many examples are finished."""

    def watch() -> None:
        done = 0
        while done < examples:
            time.sleep(1)
            with suppress(FileNotFoundError):  # a pending commit was renamed while it was counted
                done = committed(folder)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    drive(folder, max_new_tokens)
    raise RuntimeError("the stage ended before its driver was killed")


def committed(folder: Path) -> int:
    """Returns the number of examples that are finished, of all models."""
    files = [str(path) for path in folder.glob("root/work/*/commits/*.parquet")]
    return ds.dataset(files, format="parquet").count_rows() if files else 0


if __name__ == "__main__":
    app()
