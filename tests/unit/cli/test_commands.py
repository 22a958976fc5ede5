"""Commands that run no stage: their help, and options that were renamed."""

import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from meow_ray.cli.main import app
from tests.support.runs import BIN

RUNNER = CliRunner()
COMMANDS = sorted(
    command.name or command.callback.__name__
    for command in app.registered_commands
    if command.callback
)


def test_the_commands_are_these():
    assert COMMANDS == [
        "audit",
        "certify",
        "clean",
        "compare",
        "config",
        "evaluate",
        "memorize",
        "merge",
        "plan",
        "purge",
        "run",
        "show",
        "soup",
        "stage",
        "status",
        "tofu",
        "trajectory",
        "verify",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_an_imperative_and_explains_every_option(command: str):
    group = typer.main.get_command(app)
    found = group.commands[command]  # type: ignore[attr-defined]
    first = found.help.split()[0]
    assert first[0].isupper()
    assert not first.endswith(("s", "ing")), "Run, and neither Runs nor Running"
    for parameter in found.params:
        if getattr(parameter, "hidden", False):
            continue
        assert parameter.help, parameter.name
    assert RUNNER.invoke(app, [command, "--help"]).exit_code == 0


def test_the_retain_model_may_be_called_the_reference(tmp_path: Path):
    log = tmp_path / "TOFU_EVAL.json"
    log.write_text('{"forget_truth_ratio": {"value_by_index": {"0": {"score": 1.5}}}}')
    printed = [
        RUNNER.invoke(app, ["tofu", str(log), option, str(log), "--json"]).output
        for option in ("--retain-model", "--reference")
    ]
    assert '"Forget Quality": 1.0' in printed[0]
    assert printed[1] == printed[0]


@pytest.mark.parametrize("shares", ["", "0", "0.5,1.5", "-0.1", "half", "nan", "0.5;1"])
def test_shares_that_are_none_are_refused(shares: str):
    done = RUNNER.invoke(app, ["soup", "--shares", shares])
    assert str(done.exception) == (
        f"--shares {shares}: these are not numbers greater than 0 and at most 1. Write, for "
        "example, --shares 0.25,0.5,1."
    )


def test_an_input_of_another_form_is_refused(tmp_path: Path):
    done = subprocess.run(
        [BIN / "meow", "status", "--input", "candidates", f"storage.root={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "Error: --input candidates: this is not of the form NAME=URI. "
        "Write, for example, --input candidates=mine.parquet.\n"
    )
