"""Costs of MEMO and of its faster settings.

Run `python -m benchmarks.memo` with `speed`, `windows`, `overhead` or `bounds`.
"""

import tempfile
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer

from benchmarks import overhead as stage_overhead
from benchmarks import sides
from benchmarks.common import fresh, report
from benchmarks.host import SMALL_MODEL
from benchmarks.memo_bounds import bounds
from benchmarks.memo_case import (
    BATCH_SIZE,
    FACTS,
    TOP_K,
    BatchSize,
    Dtype,
    EngineOption,
    FactsOption,
    MaxModelLen,
    MaxNewTokens,
    ModelOption,
    NumFacts,
    Output,
    TargetTemplate,
    Template,
    Window,
    engine_env,
    engine_spec,
    settings_of,
)
from benchmarks.sides import Case
from meow_ray.config import Config, Memo
from meow_ray.errors import MeowError
from meow_ray.models import refs

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.command()(bounds)


@app.command()
def speed(
    model: ModelOption = SMALL_MODEL,
    facts: FactsOption = FACTS,
    num_facts: NumFacts = None,
    window: Window = "character",
    max_new_tokens: MaxNewTokens = "200",
    template: Template = "raw",
    target_template: TargetTemplate = "chat",
    sample: Annotated[
        int, typer.Option(help="Windows for the reference, at least; whole answers are taken.")
    ] = 40,
    whole_facts: Annotated[
        bool, typer.Option(help="Sample whole facts, to compare what is selected.")
    ] = False,
    engine: EngineOption = "vllm",
    dtype: Dtype = "float32",
    max_model_len: MaxModelLen = None,
    batch_size: BatchSize = BATCH_SIZE,
    repeat: Annotated[
        int, typer.Option(help="Rounds; each runs every side once, times are medians.")
    ] = 1,
    pipeline: Annotated[
        bool, typer.Option(help="Run the stage through Ray too, on half of the facts and all.")
    ] = False,
    output: Output = None,
) -> None:
    """Time a plain loop, the bare engine and our steps on the same windows, a process each."""
    spec = Memo(window=window, max_new_tokens=max_new_tokens, template=template)
    rows = sides.candidates(facts, num_facts)
    case = Case(
        sides.facts_of(rows),
        engine_spec(model, engine, dtype, max_model_len),
        spec,
        target_template,
        batch_size,
    )
    if pipeline and len(case.facts) < 2:
        raise MeowError("--pipeline compares half of the facts with all: it needs two at least.")
    env = engine_env()
    ours, bare, plain, staged = [], [], [], []
    for _ in range(repeat):
        ours.append(fresh(sides.our_steps, case, env=env))
        bare.append(fresh(sides.bare_engine, case, env=env))
        sizes = {key: len(answer.texts) for key, answer in ours[0].answers.items()}
        chosen = _spread(sizes, sample, whole_facts)
        plain.append(fresh(sides.plain_loop, case, chosen))
        if pipeline:
            staged.append([sides.ray_stage(case, part) for part in (_first_half(rows), rows)])
    found, loop = ours[0], plain[0]
    count = len(case.facts)
    seconds = {name: median(side.seconds[name] for side in ours) for name in found.seconds}
    total, bare_seconds = sum(seconds.values()), median(side.seconds for side in bare)
    window_tokens = sum(answer.window_tokens for answer in found.answers.values())
    loop_seconds = median(side.seconds for side in plain)
    extrapolated = loop_seconds / loop.tokens * window_tokens
    texts = [
        pair
        for key, said in zip(chosen, loop.texts, strict=True)
        for pair in zip(said, found.answers[key].texts, strict=True)
    ]
    mine = sides.scores(found.answers)
    theirs = {key: value for key, value in zip(chosen, loop.memo, strict=True) if value is not None}
    figures: dict[str, Any] = {
        "facts": count,
        "answers": len(found.answers),
        "windows": sum(sizes.values()),
        "distinct_prompts": bare[0].prompts,
        "window_tokens": window_tokens,
        "reference": {
            "windows": len(texts),
            "tokens": loop.tokens,
            "seconds": loop_seconds,
            "rouge_seconds": median(side.rouge_seconds for side in plain),
            "tokens_per_second": loop.tokens / loop_seconds,
            "extrapolated_seconds": extrapolated,
            "how": "seconds per generated token of the sample, times window_tokens of all windows",
            "seconds_per_fact": extrapolated / count,
            "peak_rss_mib": max(side.peak_rss_mib for side in plain),
        },
        "bare_engine": {
            "tokens": bare[0].tokens,
            "seconds": bare_seconds,
            "prompts_per_second": bare[0].prompts / bare_seconds,
            "tokens_per_second": bare[0].tokens / bare_seconds,
            "seconds_per_fact": bare_seconds / count,
            "peak_rss_mib": max(side.peak_rss_mib for side in bare),
        },
        "ours": {
            "prompts": found.prompts,
            "tokens": found.tokens,
            "forced_tokens": found.forced_tokens,
            "seconds": total,
            **{f"{name}_seconds": value for name, value in seconds.items()},
            "distinct_prompts_per_second": bare[0].prompts / total,
            "seconds_per_fact": total / count,
            "peak_rss_mib": max(side.peak_rss_mib for side in ours),
        },
        "times_faster_than_reference": extrapolated / total,
        "throughput_over_bare_engine": bare_seconds / total,
        "generate_throughput_over_bare_engine": bare_seconds / seconds["generate"],
        "agreement": {
            "continuations": len(texts),
            "continuations_equal": sum(a == b for a, b in texts) / len(texts),
            **sides.compare(theirs, {key: mine[key] for key in theirs}, TOP_K),
        },
        "rounds": {
            "reference_seconds": [side.seconds for side in plain],
            "bare_engine_seconds": [side.seconds for side in bare],
            "ours_seconds": [sum(side.seconds.values()) for side in ours],
        },
    }
    if pipeline:
        half, whole = (sorted(staged, key=lambda pair: pair[1].seconds - pair[0].seconds))[
            len(staged) // 2
        ]
        marginal = (whole.seconds - half.seconds) / (whole.prompts - half.prompts)
        figures["pipeline"] = {
            "how": "through Ray on half of the facts and on all; the difference excludes the start",
            "half_seconds": half.seconds,
            "seconds": whole.seconds,
            "prompts": whole.prompts,
            "net_seconds_per_prompt": marginal,
            "net_seconds_per_fact": marginal * whole.prompts / count,
            "over_steps_in_one_process": marginal / (total / found.prompts),
            "peak_pss_mib": max(run.peak_pss_mib for pair in staged for run in pair),
        }
    settings = settings_of(case, facts) | {
        "sample": sample,
        "whole_facts": whole_facts,
        "repeat": repeat,
    }
    report("memo-speed", settings, figures, output)


@app.command()
def windows(
    model: ModelOption = SMALL_MODEL,
    facts: FactsOption = FACTS,
    num_facts: NumFacts = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="The limit that is compared with label.")
    ] = 200,
    template: Template = "raw",
    target_template: TargetTemplate = "chat",
    engine: EngineOption = "vllm",
    dtype: Dtype = "float32",
    max_model_len: MaxModelLen = None,
    batch_size: BatchSize = BATCH_SIZE,
    output: Output = None,
) -> None:
    """Compare MEMO of character and token windows, and of a fixed limit and the label's."""
    specs = {
        (window, limit): Memo(window=window, max_new_tokens=limit, template=template)
        for window in ("character", "token")
        for limit in (max_new_tokens, "label")
    }
    rows = sides.candidates(facts, num_facts)
    case = Case(
        sides.facts_of(rows),
        engine_spec(model, engine, dtype, max_model_len),
        specs["character", max_new_tokens],
        target_template,
        batch_size,
    )
    found = dict(
        zip(specs, fresh(sides.variants, case, list(specs.values()), env=engine_env()), strict=True)
    )
    scores = {key: sides.scores(side.answers) for key, side in found.items()}

    def both(first: tuple[str, Any], second: tuple[str, Any]) -> dict[str, Any]:
        shared = scores[first].keys() & scores[second].keys()
        a, b = ({key: scores[side][key] for key in sorted(shared)} for side in (first, second))
        return sides.compare(a, b, TOP_K)

    figures = {
        "facts": len(case.facts),
        "answers": len(found["character", max_new_tokens].answers),
        "work": {
            f"{window}_{limit}": {
                "windows": sum(len(answer.texts) for answer in side.answers.values()),
                "prompts": side.prompts,
                "tokens": side.tokens,
                "forced_tokens": side.forced_tokens,
            }
            for (window, limit), side in found.items()
        },
        f"character_{max_new_tokens}_against_token_{max_new_tokens}": both(
            ("character", max_new_tokens), ("token", max_new_tokens)
        ),
        f"character_{max_new_tokens}_against_character_label": both(
            ("character", max_new_tokens), ("character", "label")
        ),
        f"token_{max_new_tokens}_against_token_label": both(
            ("token", max_new_tokens), ("token", "label")
        ),
        f"character_{max_new_tokens}_against_token_label": both(
            ("character", max_new_tokens), ("token", "label")
        ),
    }
    report("memo-windows", settings_of(case, facts) | {"window": "both"}, figures, output)


@app.command()
def overhead(
    model: ModelOption = SMALL_MODEL,
    sizes: Annotated[
        str, typer.Option(help="Rows of the memo table, growing, with commas.")
    ] = "10000,100000,1000000",
    window: Window = "character",
    batch_size: BatchSize = BATCH_SIZE,
    cpu_tasks: Annotated[
        str, typer.Option(help="auto, true or false, as resources.memo.cpu_tasks.")
    ] = "auto",
    output: Output = None,
) -> None:
    """Run the stage `memo` through Ray with an engine that answers at once."""
    ref = refs.pin(model, None, "--model")
    runs = []
    for size in sorted(map(int, sizes.split(","))):
        with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
            path = Path(folder, "candidates.parquet")
            fresh(stage_overhead.write_candidates, path, size // stage_overhead.ANSWERS)
            config = Config.model_validate(
                {
                    "memo": {"window": window},
                    "resources": {"memo": {"batch_size": batch_size, "cpu_tasks": cpu_tasks}},
                    "storage": {"root": str(Path(folder, "root"))},
                }
            )
            runs.append(fresh(stage_overhead.drive, config, path, ref))
        print(f"{runs[-1].rows} rows: {runs[-1].seconds:.1f} s", flush=True)
    pairs = list(pairwise(runs))
    marginal = [(b.seconds - a.seconds) / (b.rows - a.rows) for a, b in pairs]
    figures = {
        "runs": {
            str(run.rows): asdict(run) | {"rows_per_second": run.rows / run.seconds} for run in runs
        },
        "seconds_per_further_row": {
            f"{a.rows} to {b.rows}": value for (a, b), value in zip(pairs, marginal, strict=True)
        },
        "seconds_per_further_row_last_over_first": marginal[-1] / marginal[0] if marginal else None,
        "driver_peak_pss_last_over_first": runs[-1].driver_peak_pss_mib
        / runs[0].driver_peak_pss_mib,
    }
    settings = {
        "model": Path(model).name,
        "window": window,
        "batch_size": batch_size,
        "cpu_tasks": cpu_tasks,
    }
    report("memo-overhead", settings, figures, output)


def _spread(
    sizes: dict[tuple[int, int], int], wanted: int, whole_facts: bool
) -> list[tuple[int, int]]:
    """Returns answers, spread evenly, that have at least so many windows together.

    Any run of multiples of the golden section, modulo 1, is spread evenly and favours no position
    within a fact.
    """
    units = sorted({key[:1] if whole_facts else key for key in sizes})
    order = sorted(range(len(units)), key=lambda i: i * 0.6180339887498949 % 1)
    chosen: list[tuple[int, int]] = []
    for i in order:
        if sum(sizes[key] for key in chosen) >= wanted:
            break
        chosen += [key for key in sorted(sizes) if key[: len(units[i])] == units[i]]
    return sorted(chosen)


def _first_half(rows: pa.Table) -> pa.Table:
    ids = list(dict.fromkeys(rows["fact_id"].to_pylist()))
    return rows.filter(pc.is_in(rows["fact_id"], value_set=pa.array(ids[: len(ids) // 2])))


if __name__ == "__main__":
    try:
        app()
    except MeowError as error:
        raise SystemExit(f"Error: {error}") from None
