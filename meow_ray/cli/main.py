"""The command `meow`, and what the scripts in `pipelines/` call."""

from collections.abc import Callable
from typing import Any

from meow_ray.cli import certificate, merging, program, running, smaller_steps, tools
from meow_ray.cli.merging import merge
from meow_ray.cli.options import app
from meow_ray.cli.running import evaluate, memorize, run, run_stage
from meow_ray.cli.smaller_steps import soup

__all__ = ["evaluate", "main", "memorize", "merge", "run", "run_stage", "soup"]

COMMANDS = (running, tools, smaller_steps, merging, certificate)
"""The modules that add commands to the application."""


def main(command: Callable[..., Any] | None = None, **options: Any) -> None:
    """Runs the command line; a user's mistake prints one paragraph and exits with status 2.

    Args:
        command: the only command of a script; None offers all of them.
        **options: options of `Pipeline` that no command sets: `stages`, `engine_spec`.
    """
    program.main(app, command, options)
