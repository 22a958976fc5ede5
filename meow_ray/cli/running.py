"""Commands that run stages, show their state, and clean up after them."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from itertools import chain
from typing import Annotated

import typer

from meow_ray.cli import program, show, show_audit
from meow_ray.cli.options import (
    AsJson,
    ConfigOption,
    DryRun,
    Force,
    Inputs,
    Output,
    Overrides,
    Verify,
    Wait,
    app,
    named_inputs,
    pipeline_options,
)
from meow_ray.config import Config
from meow_ray.core import lease, storage
from meow_ray.core.manifest import MAIN, Artifact, leftovers
from meow_ray.core.stage import State
from meow_ray.distributed import cluster, progress, shared_root
from meow_ray.errors import MeowError
from meow_ray.pipeline.api import Run
from meow_ray.pipeline.audited import parts_of_audit, pieces, warn_before_audit
from meow_ray.pipeline.events import Event
from meow_ray.pipeline.graph import STAGES, STAGES_ALONE
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.pipeline.rounds import Part, parts_of_run

STAGE_NAMES = ", ".join(step.name for step in STAGES)

AUDITS = ("pipeline.audit=true",)
"""Overrides of the stage `audit` alone, which runs whatever the configuration says."""


@app.command()
def run(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigOption = None,
    only: Annotated[str | None, typer.Option(help="Run this stage alone.")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Begin with this stage; earlier ones must be cached."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="End with this stage.")] = None,
    inputs: Inputs = None,
    force: Force = False,
    wait: Wait = True,
    dry_run: DryRun = False,
    verify: Verify = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per event, for programs.")
    ] = False,
) -> None:
    """Run the pipeline; cached stages are not run again."""
    settings = load_config(config, overrides or [])
    options = {"verify": verify, **pipeline_options(context)}
    parts: Iterable[Part]
    if not (only or start or until):
        parts = parts_of_run(settings, named_inputs(inputs), **options)
    elif settings.pipeline.rounds > 1:
        raise MeowError(
            f"--only, --from and --until work within one round, but `pipeline.rounds` is "
            f"{settings.pipeline.rounds}. Add pipeline.rounds=1."
        )
    else:
        pipeline = Pipeline(settings, named_inputs(inputs), **options)
        parts = [_part(pipeline, only, start, until)]
    if dry_run:
        _show_what_would_run(parts, force)
        return
    finished: list[State] = []
    with only_events_on_stdout() if as_json else nullcontext():
        for part in parts:
            finished += _run_part(part, force, wait, as_json)
    if not as_json:
        _print_outcome(settings, finished)


@app.command("stage")
def run_stage(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=f"The stage: {STAGE_NAMES}.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    inputs: Inputs = None,
    output: Output = None,
    force: Force = False,
    wait: Wait = True,
    dry_run: DryRun = False,
    verify: Verify = False,
) -> None:
    """Run one stage, on cached inputs or on your own."""
    settings = load_config(config, [*(overrides or []), *(AUDITS if name == "audit" else [])])
    options = {"verify": verify, **pipeline_options(context)}
    pipeline = Pipeline(settings, named_inputs(inputs), **options)
    part = _part(pipeline, only=name)
    if dry_run:
        _show_what_would_run([part], force)
        return
    _check_output(output)
    (state,) = _run_part(part, force, wait)
    _print_place(state, output)


@app.command()
def evaluate(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigOption = None,
    inputs: Inputs = None,
    force: Force = False,
    wait: Wait = True,
    dry_run: DryRun = False,
    verify: Verify = False,
) -> None:
    """Measure what one model knows (`target.model`), without unlearning, and write a report."""
    settings = load_config(config, overrides or [])
    options = {"verify": verify, **pipeline_options(context), "stages": STAGES_ALONE}
    pipeline = Pipeline(settings, named_inputs(inputs), **options)
    part = _part(pipeline)
    if dry_run:
        _show_what_would_run([part], force)
        return
    _print_outcome(settings, _run_part(part, force, wait))


@app.command()
def audit(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigOption = None,
    inputs: Inputs = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run the stage audit even if it is cached.")
    ] = False,
    wait: Wait = True,
    dry_run: DryRun = False,
    verify: Verify = False,
) -> None:
    """Run the pipeline up to the audit of the tuned model, or audit a given `model`."""
    settings = load_config(config, overrides or [])
    options = {"verify": verify, **pipeline_options(context)}
    parts = parts_of_audit(settings, named_inputs(inputs), **options)
    first = next(parts)
    warn_before_audit(first)
    if dry_run:
        _show_what_would_run([first, *parts], force=False)
        return
    for part in chain([first], parts):
        for piece, is_forced in pieces(part, force=force):
            for state in _run_part(piece, is_forced, wait):
                if state.stage.name == "audit" and state.artifact is not None:
                    show_audit.show_audit(show.console(), state.artifact)


@app.command()
def memorize(
    overrides: Overrides = None,
    config: ConfigOption = None,
    output: Output = None,
    force: Force = False,
    wait: Wait = True,
) -> None:
    """Fine-tune a base model on facts, to make a target or a retain model."""
    settings = load_config(config, overrides or [])
    if settings.memorize is None:
        raise MeowError(
            "The configuration has no section `memorize`. Set memorize.model and memorize.data."
        )
    pipeline = Pipeline(settings)
    _check_output(output)
    (state,) = _run_part(_part(pipeline, only="memorize"), force, wait)
    _print_place(state, output)


@app.command()
def status(
    overrides: Overrides = None,
    config: ConfigOption = None,
    inputs: Inputs = None,
    as_json: AsJson = False,
    verify: Verify = False,
) -> None:
    """Show which stages are cached, stale (and why), or missing."""
    settings = load_config(config, overrides or [])
    states = _states(parts_of_run(settings, named_inputs(inputs), verify=verify))
    if not as_json:
        show.show_states(show.console(), states)
        return
    rows = [state.as_row() | {"stage": f"{label}{state.stage.name}"} for label, state in states]
    print(json.dumps(rows, indent=2))


@app.command()
def clean(
    overrides: Overrides = None,
    config: ConfigOption = None,
    facts: Annotated[
        bool,
        typer.Option(
            "--facts",
            help="Delete the artifacts with the facts' text as well; model and report remain.",
        ),
    ] = False,
) -> None:
    """Delete unfinished work below the storage root; not while a run is in progress."""
    root = storage.absolute(load_config(config, overrides or []).storage.root)
    lease.check_unused(root)
    with_text = [step.artifact for step in STAGES if step.schema is not None] if facts else []
    names = ["work", *with_text]
    uris = [storage.join(root, name) for name in names]
    for artifact in sorted({step.artifact for step in STAGES} - set(names)):
        uris += leftovers(root, artifact)
    for uri in uris:
        if storage.exists(uri):
            storage.remove(uri)
            print(f"deleted {storage.display(uri)}")


# --- steps of the commands ------------------------------------------------------------------------


def _part(
    pipeline: Pipeline, only: str | None = None, start: str | None = None, until: str | None = None
) -> Part:
    """Returns the stages that a command chooses, as a part that checks them all before it."""
    chosen = pipeline.selection(only, start, until)
    return Part("", pipeline, chosen, chosen)


def _states(parts: Iterable[Part]) -> list[tuple[str, State]]:
    return [(part.label, part.pipeline.state(step)) for part in parts for step in part.stages]


def _show_what_would_run(parts: Iterable[Part], force: bool) -> None:
    """Shows the states of the stages, and finds the mistakes that a run would find at its start."""
    all_parts = list(parts)
    first = all_parts[0]
    try:
        show.show_states(show.console(), _states(all_parts))
    finally:  # of several mistakes, the states would name one
        with program.libraries_to_log():
            first.pipeline.preflight(first.ahead, force=force)


def _run_part(part: Part, force: bool, wait: bool, as_json: bool = False) -> list[State]:
    def print_event(event: Event) -> None:
        text = json.dumps(event.as_row()) if as_json else str(event)
        print(text, file=progress.output(), flush=True)

    with program.libraries_to_log():
        return part.run(force=force, wait=wait, on_event=print_event)


@contextmanager
def only_events_on_stdout() -> Iterator[None]:
    """Keeps stdout for events; everything else goes to the log, Ray's delayed output as well."""
    with (
        program.libraries_to_log(),
        progress.events_to(sys.stdout),
        redirect_stdout(sys.stderr),
    ):
        try:
            yield
        finally:
            cluster.leave()


def _check_output(output: str | None) -> None:
    if output:
        shared_root.check_outlives_job(storage.absolute(output), "--output")


def _print_place(state: State, output: str | None) -> None:
    """Prints where the artifact of a stage is, after copying it to `output`."""
    assert state.artifact is not None
    print(_copied(state.artifact, output) if output else state.artifact.uri)


def _copied(artifact: Artifact, output: str) -> str:
    """Copies an artifact, a table as one Parquet file; returns where the copy is."""
    target = storage.absolute(output)
    if MAIN in artifact.files:
        target = target if target.endswith(".parquet") else storage.join(target, MAIN)
        storage.copy_file(storage.join(artifact.uri, MAIN), target)
    else:
        storage.copy_folder(artifact.uri, target)
    return storage.display(target)


def _print_outcome(config: Config, states: list[State]) -> None:
    artifacts = {state.stage.artifact: state.artifact for state in states if state.artifact}
    finished = Run(config, artifacts)
    if "metrics" in artifacts:
        show.show_metrics(artifacts["metrics"])
    if "model" in artifacts:
        print(f"Model:  {finished.model}")
    if "report" in artifacts:
        print(f"Report: {finished.report}")
