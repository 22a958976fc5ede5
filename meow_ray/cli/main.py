"""The command `meow`, and what the scripts in `pipelines/` call."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.table import Table

from meow_ray.cli import program, show
from meow_ray.config.files import explain
from meow_ray.core import schema, storage
from meow_ray.core.manifest import MAIN, Artifact, leftovers
from meow_ray.core.stage import State
from meow_ray.distributed import cluster, progress
from meow_ray.errors import MeowError
from meow_ray.pipeline import rounds
from meow_ray.pipeline.events import Event
from meow_ray.pipeline.graph import STAGES
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.pipeline.rounds import Part
from meow_ray.planning import memory, workload
from meow_ray.stages.evaluate import tofu, tofu_logs
from meow_ray.stages.report import compare

SHOWN = {"candidates": show.show_candidates, "memo": show.show_memo}
"""The artifacts that `meow show` knows, and who prints them."""

app = typer.Typer(
    help="Make a language model forget facts (MEOW), on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML configuration file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides, such as select.top_k=2.", show_default=False)
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="NAME=URI: an artifact made elsewhere (Parquet, or a model folder).",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Run the stages even if they are cached.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")]
Verify = Annotated[bool, typer.Option("--verify", help="Hash all files anew.")]
AsEvents = Annotated[
    bool, typer.Option("--json", help="Print events for machines, a JSON object a line.")
]


@app.command()
def run(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigOption = None,
    only: Annotated[str | None, typer.Option(help="Run this stage alone.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="First stage; those before it must be cached.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Last stage.")] = None,
    inputs: Inputs = None,
    force: Force = False,
    dry_run: DryRun = False,
    verify: Verify = False,
    as_json: AsEvents = False,
) -> None:
    """Runs the pipeline; stages that are cached are not run again."""
    settings = load_config(config, overrides or [])
    found: Iterable[Part]
    if not (only or start or until):
        found = rounds.parts_of_run(settings, _pairs(inputs), verify=verify, **_seams(context))
    elif settings.pipeline.rounds > 1:
        raise MeowError(
            "--only, --from and --until choose from one round: set pipeline.rounds=1 with them."
        )
    else:
        pipeline = Pipeline(settings, _pairs(inputs), verify=verify, **_seams(context))
        found = [Part("", pipeline, pipeline.selection(only, start, until))]
    if dry_run:
        show.show_states(
            _console(),
            [(part.label, part.pipeline.state(stage)) for part in found for stage in part.stages],
        )
        return
    done: list[State] = []
    with _events_alone() if as_json else nullcontext():
        for part in found:
            done += _run(part, force, as_json)
    if not as_json:
        _print_outcome(done)


@app.command("stage")
def run_stage(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(s.name for s in STAGES)}.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    inputs: Inputs = None,
    output: Annotated[
        str | None, typer.Option(help="URI that gets a copy of the artifact.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    verify: Verify = False,
) -> None:
    """Runs one stage, on cached inputs or on your own."""
    settings = load_config(config, overrides or [])
    pipeline = Pipeline(settings, _pairs(inputs), verify=verify, **_seams(context))
    chosen = pipeline.selection(name, None, None)
    if dry_run:
        show.show_states(_console(), [("", pipeline.state(stage)) for stage in chosen])
        return
    state = _run(Part("", pipeline, chosen), force)[0]
    assert state.artifact is not None
    print(_copy(state.artifact, output) if output else state.artifact.uri)


@app.command()
def memorize(
    overrides: Overrides = None,
    config: ConfigOption = None,
    output: Annotated[
        str | None, typer.Option(help="URI that gets a copy of the model folder.")
    ] = None,
    force: Force = False,
) -> None:
    """Fine-tunes a base model on facts, to make a target or a reference model."""
    settings = load_config(config, overrides or [])
    if settings.memorize is None:
        raise MeowError(
            "The configuration has no section `memorize`; it needs memorize.model and memorize.data."
        )
    pipeline = Pipeline(settings)
    state = _run(Part("", pipeline, pipeline.selection("memorize", None, None)), force)[0]
    assert state.artifact is not None
    print(_copy(state.artifact, output) if output else state.artifact.uri)


@app.command()
def status(
    overrides: Overrides = None,
    config: ConfigOption = None,
    inputs: Inputs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Verify = False,
) -> None:
    """Shows for each stage whether it is cached, stale and why, or missing."""
    found = rounds.parts_of_run(load_config(config, overrides or []), _pairs(inputs), verify=verify)
    states = [(part.label, part.pipeline.state(stage)) for part in found for stage in part.stages]
    if as_json:
        rows = [state.as_row() for _, state in states]
        print(
            json.dumps(
                [
                    row | {"stage": f"{label}{row['stage']}"}
                    for (label, _), row in zip(states, rows, strict=True)
                ],
                indent=2,
            )
        )
    else:
        show.show_states(_console(), states)


@app.command("show")
def show_stage(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(SHOWN)}.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="List the rejected candidates.")
    ] = False,
    text: Annotated[
        bool, typer.Option("--text", help="With --rejected: print their text too.")
    ] = False,
) -> None:
    """Shows the figures of a finished stage."""
    pipeline = Pipeline(load_config(config, overrides or []))
    if name not in SHOWN:
        raise MeowError(f"meow show {name}: there is {', '.join(SHOWN)}.")
    if rejected and name != "candidates":
        raise MeowError("--rejected goes with `meow show candidates`.")
    artifact = pipeline.state(pipeline.producers[name]).artifact
    summary = show.summary_of(artifact, name)
    assert artifact is not None
    if name == "candidates":
        scored = pipeline.state(pipeline.producers["memo"]).artifact
        summary |= {
            "memo_gap": scored.manifest.summary["gap"] if scored and scored.manifest else None
        }
    rows = show.rejected_rows(artifact, text) if rejected else None
    if as_json:
        print(
            json.dumps(
                summary if rows is None else summary | {"rejected": rows},
                indent=2,
                ensure_ascii=False,
            )
        )
    elif rows is not None:
        show.show_rejected(_console(), rows)
    else:
        SHOWN[name](_console(), artifact, summary)


@app.command("plan")
def plan_training(
    overrides: Overrides = None,
    config: ConfigOption = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="GiB of one GPU; default what the GPU here has.", show_default=False),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs, a ZeRO worker on each; default resources.train.num_workers, or those here.",
            show_default=False,
        ),
    ] = None,
    gpus_per_node: Annotated[
        int, typer.Option(help="GPUs that share a node's CPU memory.", min=1)
    ] = 8,
    facts: Annotated[
        int | None,
        typer.Option(
            help="Facts to forget, all like those of ingest.forget.", min=1, show_default=False
        ),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            help="JSON file of throughputs, as --probe --json prints them.", show_default=False
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure throughputs on this cluster first.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, in bytes and seconds.")
    ] = False,
) -> None:
    """Estimates what training and engines take in memory, and with facts what stages ask for, how long, and leave."""
    settings = load_config(config, overrides or [])
    if probe and rates:
        raise MeowError("--probe measures what --rates gives: take one of them.")
    with program.libraries_to_log(), redirect_stdout(sys.stderr):
        memory_plan = memory.plan_memory(
            settings, *memory.hardware(settings, gpus, gpu_memory), gpus_per_node
        )
        found = (
            workload.plan_run(settings, facts, rates, gpus or 0, probe)
            if settings.ingest.forget
            else None
        )
    if as_json:
        print(
            json.dumps(asdict(memory_plan) | {"run": found.as_row() if found else None}, indent=2)
        )
        return
    show.show_plan(_console(), memory_plan)
    if found:
        show.show_work(_console(), found)


@app.command("tofu")
def aggregate_tofu(
    log: Annotated[
        str,
        typer.Argument(
            help="eval_log_aggregated.json of TOFU, or TOFU_EVAL.json of open-unlearning."
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="The same of the model that never saw the forget set.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Aggregates per-example logs as TOFU does: model utility, and with a reference forget quality."""
    results = tofu_logs.read_log(storage.absolute(log))
    against = tofu_logs.read_log(storage.absolute(reference)) if reference else None
    if against is not None:
        for name, found in ((log, results), (reference, against)):
            if "forget" not in found:
                raise MeowError(f"{name}: it has no forget set, which forget quality compares.")
        own = results["forget"]
        tofu.check_reference(len(own), own.answers, against["forget"], str(reference))
    figures = tofu.figures(results, against)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    table = Table("figure", "value", box=None, header_style="bold")
    for name, value in figures.items():
        table.add_row(name, compare.number(value))
    _console().print(table)
    if against is None:
        print(
            "No forget quality: it needs --reference, the log of a model that never saw the forget set."
        )


@app.command("compare")
def compare_runs(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="RUN or NAME=RUN: a storage root, or a folder of metrics. One NAME several times: seeds."
        ),
    ],
    kind: Annotated[str, typer.Option("--format", help="markdown, csv or latex.")] = "markdown",
    model: Annotated[
        str, typer.Option(help=f"Whose figures: {', '.join(schema.EVALUATED_MODELS)}.")
    ] = "after",
) -> None:
    """Puts the metrics of runs side by side; several seeds of a run become mean and standard deviation."""
    if kind not in get_args(compare.Format):
        raise MeowError(f"--format {kind}: there is {', '.join(get_args(compare.Format))}.")
    if model not in schema.EVALUATED_MODELS:
        raise MeowError(f"--model {model}: there is {', '.join(schema.EVALUATED_MODELS)}.")
    named = [run.split("=", 1) if "=" in run.partition("/")[0] else (run, run) for run in runs]
    found = [(name, compare.metrics_of(place)) for name, place in named]
    print(compare.write(compare.table(found, model), cast(compare.Format, kind)))


@app.command("config")
def show_config(
    overrides: Overrides = None,
    config: ConfigOption = None,
    explain_keys: Annotated[
        bool, typer.Option("--explain", help="Every key with type, default, unit, meaning.")
    ] = False,
) -> None:
    """Checks a configuration and prints it whole, or explains every key."""
    if not explain_keys:
        print(load_config(config, overrides or []).model_dump_json(indent=2))
        return
    for key, kind, default, unit, meaning in explain():
        print(f"{key}  ({kind}{f', {unit}' if unit else ''})  default {default}\n    {meaning}")


@app.command()
def clean(
    overrides: Overrides = None,
    config: ConfigOption = None,
    facts: Annotated[
        bool,
        typer.Option(
            "--facts",
            help="Delete the artifacts that hold the facts' text too; the model and the report stay.",
        ),
    ] = False,
) -> None:
    """Deletes work that was cut off or kept for reuse below the storage root; not while a run is going on."""
    root = storage.absolute(load_config(config, overrides or []).storage.root)
    names = ["work", *(schema.SCHEMAS if facts else ())]
    doomed = [storage.join(root, name) for name in names]
    for artifact in {stage.artifact for stage in STAGES} - set(names):
        doomed += leftovers(root, artifact)
    for uri in doomed:
        if storage.exists(uri):
            storage.remove(uri)
            print(f"deleted {storage.display(uri)}")


def main(command: Callable[..., Any] | None = None, **options: Any) -> None:
    """Runs the command line; a user's mistake prints one paragraph and exits with status 2.

    Args:
        command: the only command of a script; None offers all of them.
        **options: options of `Pipeline` that no command sets: `stages`, `engine_spec`.
    """
    program.main(app, command, options)


def _seams(context: typer.Context) -> dict[str, Any]:
    """Returns what `main` was given for pipelines."""
    return context.obj or {}


def _pairs(items: list[str] | None) -> dict[str, str]:
    out = {}
    for item in items or []:
        name, mark, uri = item.partition("=")
        if not mark or not uri:
            raise MeowError(
                f"--input {item}: give it as NAME=URI, such as candidates=mine.parquet."
            )
        out[name] = uri
    return out


@contextmanager
def _events_alone() -> Iterator[None]:
    """Keeps the output for events; all else goes to the log, what Ray passes on from its workers too."""
    with (
        program.libraries_to_log(),
        progress.events_to(sys.stdout),
        redirect_stdout(sys.stderr),
    ):
        try:
            yield
        finally:
            cluster.leave()


def _run(part: Part, force: bool, as_json: bool = False) -> list[State]:
    def say(event: Event) -> None:
        print(json.dumps(event.as_row()) if as_json else event, file=progress.output(), flush=True)

    with program.libraries_to_log():
        return part.pipeline.run(part.stages, force=force, on_event=say, label=part.label)


def _copy(artifact: Artifact, output: str) -> str:
    """Copies an artifact: a table to one Parquet file, a model or a report as it is."""
    target = storage.absolute(output)
    if MAIN in artifact.files:
        target = target if target.endswith(".parquet") else storage.join(target, MAIN)
        storage.copy_file(storage.join(artifact.uri, MAIN), target)
    else:
        storage.copy_folder(artifact.uri, target)
    return storage.display(target)


def _console() -> Console:
    """Returns the terminal, or for a pipe a console wide enough that nothing is wrapped."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=240, highlight=False)


def _print_outcome(states: list[State]) -> None:
    by_artifact = {state.stage.artifact: state.artifact for state in states if state.artifact}
    if "metrics" in by_artifact:
        show.show_metrics(by_artifact["metrics"])
    if "model" in by_artifact:
        print(f"Model:  {storage.display(by_artifact['model'].uri)}")
    if "report" in by_artifact:
        print(f"Report: {storage.display(by_artifact['report'].uri)}/report.html")
