"""Commands that run no stage: show, plan, tofu, compare, trajectory, config."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Annotated, cast, get_args

import typer

from meow_ray.cli import program, show, show_plan, show_prompt
from meow_ray.cli.options import (
    AsJson,
    ConfigOption,
    Inputs,
    Overrides,
    app,
    named_inputs,
    named_runs,
)
from meow_ray.config import Config
from meow_ray.config.files import explain
from meow_ray.core import schema
from meow_ray.core.formatting import format_number
from meow_ray.errors import MeowError
from meow_ray.pipeline.api import aggregate_tofu
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.pipeline.rounds import parts_of_run
from meow_ray.planning import memory, workload
from meow_ray.stages.report import compare, trajectory

SHOWN = {
    "candidates": show.show_candidates,
    "neighbours": show.show_pairs,
    "twins": show.show_pairs,
    "memo": show.show_memo,
}
"""The artifacts that `meow show` prints, and the functions that print them."""


@app.command("show")
def show_stage(
    name: Annotated[
        str, typer.Argument(help=f"The artifact: {', '.join(SHOWN)}; or prompt, a rendered pair.")
    ],
    overrides: Overrides = None,
    config: ConfigOption = None,
    as_json: AsJson = False,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="List the rejected candidates.")
    ] = False,
    text: Annotated[
        bool,
        typer.Option(
            "--text",
            help="Print text of facts: of rejected candidates, or with prompt of the first fact.",
        ),
    ] = False,
    fact: Annotated[
        str | None,
        typer.Option(help="With prompt: the id of the fact to print.", show_default=False),
    ] = None,
    inputs: Inputs = None,
) -> None:
    """Show the figures of a finished stage, or a prompt with its tokens."""
    if name != "prompt" and name not in SHOWN:
        known = ", ".join([*SHOWN, "prompt"])
        raise MeowError(f"meow show {name}: unknown artifact. Choose from {known}.")
    if fact and name != "prompt":
        raise MeowError(f"meow show {name}: --fact works with prompt only.")
    if rejected and name != "candidates":
        raise MeowError(f"meow show {name}: --rejected works with candidates only.")
    pipeline = Pipeline(load_config(config, overrides or []), named_inputs(inputs))
    if name == "prompt":
        _show_prompt(pipeline, text, fact, as_json)
        return
    is_made = name in {step.artifact for step in pipeline.stages} or name in pipeline.overrides
    artifact = pipeline.artifact(name) if is_made else None
    summary = show.summary_of(artifact, name)
    assert artifact is not None
    if name == "candidates":
        memo = pipeline.state(pipeline.producers["memo"]).artifact
        summary["memo_gap"] = memo.manifest.summary["gap"] if memo and memo.manifest else None
    rows = show.rejected_rows(artifact, text) if rejected else None
    if as_json:
        figures = summary if rows is None else summary | {"rejected": rows}
        print(json.dumps(figures, indent=2, ensure_ascii=False))
    elif rows is not None:
        show.show_rejected(show.console(), rows)
    else:
        SHOWN[name](show.console(), artifact, summary)


def _show_prompt(pipeline: Pipeline, text: bool, fact: str | None, as_json: bool) -> None:
    with program.libraries_to_log(), redirect_stdout(sys.stderr):
        pair = show_prompt.rendered_pair(pipeline, text=text, fact_id=fact)
    if as_json:
        print(json.dumps(pair, indent=2, ensure_ascii=False))
        return
    show_prompt.show_pair(show.console(), pair, is_example=not (text or fact))


@app.command()
def plan(
    overrides: Overrides = None,
    config: ConfigOption = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            help="Memory of one GPU in GiB; the default is that of the GPU on this machine.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="Number of GPUs, one ZeRO worker each; the default is "
            "resources.train.num_workers, or the GPUs on this machine.",
            show_default=False,
        ),
    ] = None,
    gpus_per_node: Annotated[
        int, typer.Option(help="Number of GPUs that share the CPU memory of a node.", min=1)
    ] = 8,
    facts: Annotated[
        int | None,
        typer.Option(
            help="Number of facts to forget, if not that of ingest.forget.",
            min=1,
            show_default=False,
        ),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            help="Read throughputs from this JSON file, as --probe --json prints them.",
            show_default=False,
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure throughputs on this cluster first.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, in bytes and seconds.")
    ] = False,
) -> None:
    """Estimate memory, and with `ingest.forget` the work, time and storage of a run."""
    settings = load_config(config, overrides or [])
    if probe and rates:
        raise MeowError("--probe and --rates are mutually exclusive. Use one of them.")
    with program.libraries_to_log(), redirect_stdout(sys.stderr):
        workers, memory_of_gpu = memory.hardware(settings, gpus, gpu_memory)
        memory_plan = memory.plan_memory(settings, workers, memory_of_gpu, gpus_per_node)
        run_plan = None
        if settings.ingest.forget:
            run_plan = workload.plan_run(settings, facts, rates, gpus or 0, probe)
    if as_json:
        run = run_plan.as_row() if run_plan else None
        print(json.dumps(asdict(memory_plan) | {"run": run}, indent=2))
        return
    show_plan.show_memory(show.console(), memory_plan)
    if run_plan:
        show_plan.show_work(show.console(), run_plan)


@app.command("tofu")
def tofu_figures(
    log: Annotated[
        str,
        typer.Argument(
            help="eval_log_aggregated.json of TOFU, or TOFU_EVAL.json of open-unlearning."
        ),
    ],
    retain_model: Annotated[
        str | None,
        typer.Option(
            "--retain-model",
            "--reference",
            help="The same file of the retain model, which never saw the forget set.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Aggregate per-example results as TOFU's code does: model utility and forget quality."""
    figures = aggregate_tofu(log, retain_model)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    table = show.plain_table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, format_number(value))
    show.console().print(table)
    if retain_model is None:
        print("Forget quality needs --retain-model, the results of the retain model.")


@app.command("compare")
def compare_metrics(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs as ROOT or NAME=ROOT: a storage root, or a folder of metrics. "
            "Several runs of one NAME are seeds."
        ),
    ],
    kind: Annotated[str, typer.Option("--format", help="markdown, csv or latex.")] = "markdown",
    model: Annotated[
        str, typer.Option(help=f"Whose figures: {', '.join(schema.EVALUATED_MODELS)}.")
    ] = "after",
) -> None:
    """Put the metrics of runs next to each other; seeds become mean and deviation."""
    formats = get_args(compare.Format)
    for option, value, choices in (
        ("--format", kind, formats),
        ("--model", model, schema.EVALUATED_MODELS),
    ):
        if value not in choices:
            raise MeowError(f"{option} {value}: unknown. Choose from {', '.join(choices)}.")
    metrics = [(name, compare.metrics_of(root, model)) for name, root in named_runs(runs)]
    print(compare.format_table(compare.metrics_by_run(metrics, model), cast(compare.Format, kind)))


@app.command("trajectory")
def show_trajectory(
    runs: Annotated[
        list[str],
        typer.Argument(help="Evaluated runs in the order of their requests, as ROOT or NAME=ROOT."),
    ],
    group: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FIGURE,FIGURE: figures whose mean change is shown, as SUITE or "
            "SUITE/METRIC. Repeat it for several groups."
        ),
    ] = None,
) -> None:
    """Show how abilities change over a chain of requests, from the first model on."""
    groups = {}
    for option in group or []:
        name, _, figures = option.partition("=")
        if not name or not figures:
            raise MeowError(f"--group {option}: write NAME=FIGURE,FIGURE.")
        groups[name] = figures.split(",")
    print(trajectory.format_table(trajectory.trajectory(named_runs(runs), groups)))


@app.command("config")
def show_config(
    overrides: Overrides = None,
    config: ConfigOption = None,
    explain_keys: Annotated[
        bool,
        typer.Option("--explain", help="List all keys with type, default, unit and meaning."),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check data, models and connections as well, as a run does."),
    ] = False,
    inputs: Inputs = None,
) -> None:
    """Check a configuration and print it whole, or explain every key."""
    if check:
        _check_whole(load_config(config, overrides or []), named_inputs(inputs))
        return
    if not explain_keys:
        print(load_config(config, overrides or []).model_dump_json(indent=2))
        return
    for key, kind, default, unit, meaning in explain():
        unit_text = f", {unit}" if unit else ""
        print(f"{key}  ({kind}{unit_text})  default {default}\n    {meaning}")


def _check_whole(settings: Config, inputs: dict[str, str]) -> None:
    """Finds the mistakes that a run with this configuration would find at its start."""
    first = next(iter(parts_of_run(settings, inputs)))
    with program.libraries_to_log():
        first.pipeline.preflight(first.ahead)
    print("No mistakes were found.")
