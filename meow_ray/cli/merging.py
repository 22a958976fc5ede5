"""The command `meow merge`."""

import sys
from typing import Annotated, cast, get_args

import typer
from rich.console import Console

from meow_ray.cli import program, show
from meow_ray.cli.options import ConfigOption, app, named_inputs, named_runs
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.pipeline import merge as merging
from meow_ray.pipeline.merge import Merged
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.never_seen import Figures
from meow_ray.stages.train.fusion import TIES_DENSITY, Method
from meow_ray.stages.train.merge import Recipe

_VERDICTS = {True: "yes", False: "no", None: "–"}


@app.command()
def merge(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs as ROOT or NAME=ROOT: a storage root, or a folder of its artifact model."
        ),
    ],
    out: Annotated[str, typer.Option(help="Write the model to this new folder.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(get_args(Method))}.")] = "gram",
    density: Annotated[
        float | None,
        typer.Option(
            help=f"With ties: the share of entries of a change that are kept ({TIES_DENSITY:g} "
            "unless it is set).",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(help="Multiply the merged change by this; the number of runs makes a sum."),
    ] = 1.0,
    facts: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluate a request whose text is gone by this file of facts, as NAME=FILE.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Merge the adapters of several requests into one model, and show whether each is forgotten."""
    recipe = _recipe(method, density, scale)
    named = named_runs(runs)
    twice = sorted({name for name, _ in named if [n for n, _ in named].count(name) > 1})
    if twice:
        raise MeowError(f"meow merge: two runs have the name {twice[0]}. Give each its own name.")
    given = named_inputs(facts, option="--facts", example="first=forget.jsonl")
    settings = load_config(config, [])
    with program.libraries_to_log():
        merged = merging.merge_runs(named, settings, recipe, out, given)
    show_merged(show.console(), merged)
    for request in merged.requests:
        if request.is_remembered_again:
            print(
                f"{request.name}: its facts look never seen to its own model, but not to the "
                "merged one. Try another --method, or a larger --scale.",
                file=sys.stderr,
            )
    print(f"Lineage:  {storage.display(storage.join(merged.uri, merging.MERGE_FILE))}")
    print(f"Model:    {storage.display(merged.uri)} ({merged.layers} layers changed)")


def _recipe(method: str, density: float | None, scale: float) -> Recipe:
    """Returns the options of merging.

    Raises:
        MeowError: one of them is unknown or out of range.
    """
    if method not in get_args(Method):
        raise MeowError(f"--method {method}: unknown. Choose from {', '.join(get_args(Method))}.")
    if density is not None and method != "ties":
        raise MeowError(f"--density works with --method ties only (got {method}).")
    if density is not None and not 0 < density <= 1:
        raise MeowError(f"--density {density:g}: it must be greater than 0 and at most 1.")
    if not 0 < scale < float("inf"):
        raise MeowError(f"--scale {scale:g}: it must be greater than 0.")
    if method == "ties" and density is None:
        density = TIES_DENSITY
    return Recipe(cast(Method, method), density, scale)


def show_merged(target: Console, merged: Merged) -> None:
    """Prints a row per request and model, or why a request was not evaluated."""
    names = Figures._fields
    table = show.plain_table(
        "request",
        "facts",
        "model",
        "fact_log_prob",
        "extraction_strength",
        *(f"p of {name}" for name in names),
        "looks never seen",
    )
    for request in merged.requests:
        if request.note:
            table.add_row(request.name, "–", request.note)
        for model, known in request.models.items():
            p_values = known.p_values or {}
            table.add_row(
                request.name,
                str(request.facts),
                model,
                f"{known.fact_log_prob:.3f}",
                f"{known.extraction_strength:.3f}",
                *(f"{p_values[name]:.4f}" if p_values else "–" for name in names),
                _VERDICTS[known.looks_never_seen],
            )
    target.print(table)
