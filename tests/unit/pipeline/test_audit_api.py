"""`meow_ray.audit`, `certify` and `verify` give what the commands give, by the same code."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import meow_ray
from meow_ray.cli.main import app
from meow_ray.core.manifest import MAIN
from meow_ray.stages.audit.stage import SUMMARY_FILE, VERDICTS_FILE
from tests.support.audited import STAGES, Audited, artifact_file, certified, files, rewrite


def meow(*arguments: str) -> Result:
    """Runs a command with the stages of the small run."""
    done = CliRunner().invoke(app, arguments, obj={"stages": STAGES})
    assert done.exit_code == 0, done.exception or done.output
    return done


def test_an_audit_gives_the_tables_of_the_command(tmp_path: Path):
    command = Audited(tmp_path, root="command")
    printed = meow("audit", *command.overrides()).stdout
    assert "no_gpu: the attack needs a GPU" in " ".join(printed.split())
    events: list[str] = []
    run = meow_ray.audit(
        None,
        Audited(tmp_path, root="function").overrides(),
        stages=STAGES,
        on_event=lambda event: events.append(f"{event.stage} {event.kind}"),
    )
    assert events[-1] == "audit finished"
    assert "report finished" not in events
    for table, name in (
        (run.table("audit"), MAIN),
        (run.attacks, SUMMARY_FILE),
        (run.verdicts, VERDICTS_FILE),
    ):
        written = pq.read_table(artifact_file(tmp_path / "command", "audit", name))
        assert table.to_pylist() == written.to_pylist()


def test_a_forced_audit_runs_again_and_nothing_else_does(tmp_path: Path):
    overrides = Audited(tmp_path).overrides()
    finished: list[str] = []

    def note(event: Any) -> None:
        if event.kind == "finished":
            finished.append(event.stage)

    for force, expected in ((False, 5), (False, 5), (True, 6)):
        meow_ray.audit(None, overrides, force=force, stages=STAGES, on_event=note)
        assert len(finished) == expected
    assert finished[-1] == "audit"


def test_a_certificate_is_the_one_of_the_command_and_is_verified_like_it(tmp_path: Path):
    run = Audited(tmp_path)
    run.write_keys()
    key = str(tmp_path / "key.pem")
    meow_ray.audit(None, run.overrides(), stages=STAGES, on_event=str)
    place = meow_ray.certify(None, run.overrides(), key=key, stages=STAGES)
    assert place == str(certified(tmp_path / "root"))
    written = files(tmp_path / "root")
    meow("certify", *run.overrides(), "--key", key)
    assert files(tmp_path / "root") == written
    found = meow_ray.verify(place, str(tmp_path / "key.pub"))
    assert found.is_trusted
    assert f"The certificate holds: {found.num_files} files" in meow("verify", place).stdout
    for text in found.not_recomputed:
        assert text in meow("verify", place).stdout


def test_a_certificate_that_does_not_hold_is_a_meow_error_with_the_difference(tmp_path: Path):
    run = Audited(tmp_path)
    meow_ray.audit(None, run.overrides(), stages=STAGES, on_event=str)
    place = meow_ray.certify(None, run.overrides(), stages=STAGES)
    rewrite(Path(place), lambda content: content["request"].update(num_audited=1))
    with pytest.raises(meow_ray.MeowError, match=r"request\.num_audited is 1 in the certificate"):
        meow_ray.verify(place)


def test_a_given_audit_is_refused(tmp_path: Path):
    with pytest.raises(meow_ray.MeowError, match="--input audit: an audit is what is made here"):
        meow_ray.audit(None, Audited(tmp_path).overrides(), inputs={"audit": "x"}, stages=STAGES)
