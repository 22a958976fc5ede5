"""The command `meow soup`."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from meow_ray.cli import program, show
from meow_ray.cli.options import (
    ConfigOption,
    Inputs,
    Overrides,
    app,
    named_inputs,
    pipeline_options,
)
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.pipeline import soup as soups
from meow_ray.pipeline.pipeline import load_config
from meow_ray.pipeline.rounds import parts_of_run
from meow_ray.pipeline.soup import Soup
from meow_ray.stages.never_seen import Figures

NONE_PASSES = 1
"""The exit status if the facts look never seen at no share."""


@app.command()
def soup(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigOption = None,
    shares: Annotated[
        str, typer.Option(help="Shares of the step of training to try, separated by commas.")
    ] = ",".join(f"{share:g}" for share in soups.SHARES),
    out: Annotated[
        str | None,
        typer.Option(
            help="Write the model to this new folder; the default is below the storage root.",
            show_default=False,
        ),
    ] = None,
    inputs: Inputs = None,
) -> None:
    """Find the smallest step from target to tuned model at which the facts look never seen."""
    grid = _parsed(shares)
    settings = load_config(config, overrides or [])
    *_, last = parts_of_run(settings, named_inputs(inputs), **pipeline_options(context))
    with program.libraries_to_log():
        found = soups.find(last.pipeline, grid, out)
    show_soup(show.console(), found)
    if found.uri is None:
        tried = ", ".join(f"{point.share:g}" for point in found.points[1:])
        print(
            f"At no share ({tried}) do the facts look never seen, so no model was written. "
            "Train longer, or set train.until=never_seen.",
            file=sys.stderr,
        )
        raise typer.Exit(NONE_PASSES)
    print(f"Curve:  {storage.display(storage.join(found.uri, soups.PAGE_FILE))}")
    print(f"Model:  {storage.display(found.uri)} (share {found.share:g})")


def _parsed(shares: str) -> list[float]:
    """Returns the numbers in a list that is separated by commas.

    Raises:
        MeowError: one of them is not a number above 0 and up to 1.
    """
    try:
        grid = [float(share) for share in shares.split(",")]
    except ValueError:
        grid = []
    if not grid or not all(0 < share <= 1 for share in grid):
        raise MeowError(
            f"--shares {shares}: these are not numbers greater than 0 and at most 1. Write, for "
            "example, --shares 0.25,0.5,1."
        )
    return grid


def show_soup(target: Console, found: Soup) -> None:
    """Prints one row per share, the target first: p-values, the verdict, what is retained."""
    names = Figures._fields
    columns = [f"p of {name}" for name in names]
    table = show.plain_table("share", *columns, "looks never seen", "retained probability")
    for point in found.points:
        retained = point.retained_probability
        table.add_row(
            f"{point.share:g}",
            *(f"{point.p_values[name]:.4f}" for name in names),
            "yes" if point.looks_never_seen else "no",
            "–" if retained is None else f"{retained:.4f}",
        )
    target.print(table)
