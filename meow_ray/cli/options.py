"""The typer application, and the options that several commands share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from meow_ray.errors import MeowError

app = typer.Typer(
    help="Make a language model forget facts (MEOW), on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Read this YAML configuration file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Override keys, such as select.top_k=2.", show_default=False),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Use an artifact made elsewhere, as NAME=URI (Parquet, or a model folder).",
        show_default=False,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(help="Copy the artifact to this URI as well.", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Run the stages even if they are cached.")]
Wait = Annotated[
    bool,
    typer.Option(
        help="Wait while another driver works on a stage of this storage root, and use its result."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would run, and why, without running it.")
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Hash all input files again instead of trusting the cache.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def named_inputs(
    items: Iterable[str] | None,
    option: str = "--input",
    example: str = "candidates=mine.parquet",
) -> dict[str, str]:
    """Parses `--input NAME=URI` options, or others of this form.

    Args:
        items: the values of the option.
        option: the name of the option, for errors.
        example: a valid value, for errors.

    Raises:
        MeowError: one of them has another form.
    """
    inputs = {}
    for item in items or ():
        name, equals, uri = item.partition("=")
        if not equals or not uri:
            raise MeowError(
                f"{option} {item}: this is not of the form NAME=URI. "
                f"Write, for example, {option} {example}."
            )
        inputs[name] = uri
    return inputs


def named_runs(runs: Iterable[str]) -> list[tuple[str, str]]:
    """Parses runs of the form ROOT or NAME=ROOT; a run without a name has that of its root."""
    pairs = []
    for run in runs:
        name, _, root = run.partition("=")
        has_name = "=" in run.partition("/")[0]
        pairs.append((name, root) if has_name else (run, run))
    return pairs


def pipeline_options(context: typer.Context) -> dict[str, Any]:
    """Returns the options of `Pipeline` that the caller of `main` passed."""
    return context.obj or {}
