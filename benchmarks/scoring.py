"""Teacher-forced scoring by each engine: `python -m benchmarks.scoring`.

Both engines score the same answers of TOFU in turn, each in a process of its own, with the
environment that the pipeline gives its actors. vLLM returns log-probabilities of the prompt;
transformers runs one forward pass over batches of similar length.
"""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks.common import fresh, report, stopwatch
from benchmarks.host import SHARED_DATA, SMALL_MODEL
from benchmarks.memo_case import Dtype, ModelOption, Output, engine_env, engine_spec
from benchmarks.sides import warm_up
from meow_ray.engines import EngineSpec
from meow_ray.models.prompts import Prompter
from meow_ray.stages.ingest.readers import read_records
from meow_ray.stages.train.steps import Row, encode_rows

ENGINES = ("vllm", "transformers")
FACTS = SHARED_DATA / "tofu" / "forget05_perturbed.jsonl"

app = typer.Typer(add_completion=False)


class Scored(NamedTuple):
    """What one engine said of all answers."""

    seconds: float
    tokens: int
    """Tokens of prompts and answers."""
    log_probs: list[list[float]]
    """`[answer][token]`."""


@app.command()
def compare(
    model: ModelOption = SMALL_MODEL,
    facts: Annotated[Path, typer.Option(help="File with question and answer.")] = FACTS,
    num_facts: Annotated[int, typer.Option(help="Score the first so many facts.")] = 200,
    dtype: Dtype = "float32",
    repeat: Annotated[int, typer.Option(help="Rounds; each runs both engines once.")] = 3,
    output: Output = None,
) -> None:
    """Time both engines on the same answers, and compare what they say of each token."""
    rows = [row for _, row in islice(read_records(str(facts)), num_facts)]
    specs = {engine: engine_spec(model, engine, dtype, None) for engine in ENGINES}
    rounds = [
        {engine: fresh(score, specs[engine], rows, env=engine_env()) for engine in ENGINES}
        for _ in range(repeat)
    ]
    settings = {
        "model": Path(model).name,
        "facts": facts.name,
        "answers": len(rows),
        "dtype": dtype,
        "repeat": repeat,
    }
    report("scoring", settings, figures(rounds), output)


def score(spec: EngineSpec, rows: Sequence[Row]) -> Scored:
    """Scores all answers with one engine."""
    engine = spec.load()
    prompts, answers = encode_rows(Prompter(engine.tokenizer, "chat"), rows)
    warm_up(engine)
    seconds: dict[str, float] = {}
    with stopwatch(seconds, "score"):
        results = engine.teacher_force(prompts, answers)
    return Scored(
        seconds["score"],
        sum(map(len, prompts)) + sum(map(len, answers)),
        [list(result.log_probs) for result in results],
    )


def figures(rounds: list[dict[str, Scored]]) -> dict[str, Any]:
    """Returns rates, the ratio of both engines in each round, and the largest difference."""
    rates = {
        engine: [sides[engine].tokens / sides[engine].seconds for sides in rounds]
        for engine in ENGINES
    }
    vllm, transformers = (rates[engine] for engine in ENGINES)
    ratios = [ours / other for ours, other in zip(vllm, transformers, strict=True)]
    first = rounds[0]
    return {
        **{f"{engine}_tokens_per_second": median(rates[engine]) for engine in ENGINES},
        "vllm_over_transformers": median(ratios),
        "largest_difference": largest_difference(*(first[engine].log_probs for engine in ENGINES)),
        "rounds": {"vllm_over_transformers": ratios, **rates},
    }


def largest_difference(ours: list[list[float]], others: list[list[float]]) -> float:
    """Returns the largest difference between two log-probabilities of the same token."""
    return max(
        abs(x - y)
        for own, other in zip(ours, others, strict=True)
        for x, y in zip(own, other, strict=True)
        if not math.isnan(x)
    )


if __name__ == "__main__":
    app()
