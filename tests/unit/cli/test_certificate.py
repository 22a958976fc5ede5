"""The commands `meow certify`, `meow verify` and `meow purge`."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from meow_ray.cli.main import app
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import places
from tests.support.audited import PHRASE, STAGES, Audited, artifact_file, certified, files, rewrite

RUNNER = CliRunner()


def meow(*arguments: str, **options: Any) -> Result:
    """Runs a command with the stages of the small run."""
    return RUNNER.invoke(app, arguments, obj={"stages": STAGES}, **options)


def mistake(*arguments: str) -> str:
    """Returns the error of a command that a user's mistake ends."""
    error = meow(*arguments).exception
    assert isinstance(error, MeowError)
    return str(error)


def test_a_request_is_certified_verified_purged_and_verified_again(tmp_path: Path):
    run = Audited(tmp_path)
    run.write_keys()
    run.run()
    root = tmp_path / "root"
    printed = [meow("certify", *run.overrides(), "--key", str(tmp_path / "key.pem"))]
    certificate = str(certified(root))
    assert printed[0].output.splitlines()[-1] == f"Certificate:  {certificate}"
    printed.append(meow("verify", certificate, "--key", str(tmp_path / "key.pub")))
    assert "The certificate holds: 15 files have their digests." in printed[-1].output
    assert "It is signed with the given key." in printed[-1].output
    before = files(root)
    assert mistake("purge", *run.overrides()) == (
        "meow purge: there is no terminal to ask on. Confirm with --yes."
    )
    assert files(root) == before
    printed.append(meow("purge", *run.overrides(), "--yes"))
    assert f"Purge log:  {Path(certificate).with_name(places.PURGE_FILE)}" in printed[-1].output
    printed.append(meow("verify", certificate))
    assert "11 files have their digests, 4 were purged." in printed[-1].output
    assert "; give --key to check whose that is." in printed[-1].output
    printed.append(meow("purge", "--certificate", certificate))
    for result in printed:
        assert result.exit_code == 0
        assert PHRASE.split()[0] not in result.output
    # the audit is found whether or not a run makes it
    assert meow("certify", *run.overrides(), "pipeline.audit=false").exit_code == 0


def test_a_difference_ends_with_status_1_and_a_mistake_is_an_error(tmp_path: Path):
    certificate = Path(Audited(tmp_path).certify())
    model = artifact_file(tmp_path / "root", "model", "model.safetensors")
    model.write_bytes(b"other weights")
    done = meow("verify", str(certificate))
    assert done.exit_code == 1
    name = model.relative_to(tmp_path / "root")
    assert done.stderr == (
        f"The certificate does not hold. {name}: its content is not the one that was certified.\n"
    )
    rewrite(certificate, lambda content: content.update(version=2))
    assert "its schema has version 2, and this meow_ray reads up to version 1" in mistake(
        "verify", str(certificate)
    )


@pytest.mark.parametrize("command", ["certify", "purge"])
def test_a_run_without_audit_is_named(tmp_path: Path, command: str):
    assert "the audit does not exist yet" in mistake(command, *Audited(tmp_path).overrides())
