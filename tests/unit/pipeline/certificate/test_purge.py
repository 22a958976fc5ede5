"""`meow purge` deletes the text of a request, and its certificate still verifies."""

import os
import time
from pathlib import Path

import pytest

from meow_ray.core import lease, storage
from meow_ray.core.local_cache import cache_home
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import places
from meow_ray.pipeline.certificate.form import Difference
from meow_ray.pipeline.certificate.purge import plan, purge
from meow_ray.pipeline.certificate.verify import verify
from tests.support.audited import PHRASE, Audited, artifact_file, certified, files, rewrite


def purged(root: Path) -> Path:
    """Purges a request; returns the log."""
    return Path(purge(plan(str(certified(root)))))


def test_no_text_remains_and_the_certificate_verifies_before_and_after_a_move(
    root: Path, tmp_path: Path
):
    before = files(root)
    assert [name for name, content in before.items() if PHRASE.encode() in content]
    purged(root)
    after = files(root)
    assert not [name for name, content in after.items() if PHRASE.encode() in content]
    deleted = {name.split("/")[0] + "/" + name.split("/")[-1] for name in {*before} - {*after}}
    assert deleted == {
        "audit/replies.parquet",
        "facts/part-00000.parquet",
        "metrics/examples.parquet",
        "twins/part-00000.parquet",
    }
    assert verify(str(certified(root))).num_purged == 4
    root.rename(tmp_path / "again")
    assert verify(str(certified(tmp_path / "again"))).num_purged == 4


def test_the_certificate_is_the_same_if_it_is_written_again(tmp_path: Path):
    run = Audited(tmp_path)
    run.certify()
    purged(tmp_path / "root")
    before = files(tmp_path / "root")
    run.certify()
    assert files(tmp_path / "root") == before


def test_work_leftovers_reports_with_text_and_other_artifacts_of_the_facts_go(tmp_path: Path):
    root = tmp_path / "root"
    run = Audited(tmp_path)
    run.run("report.show_text=true", "train.seed=7", "twins.seed=7")
    (root / "work" / "abc").mkdir(parents=True)
    (root / "work" / "abc" / "checkpoint").write_text(PHRASE)
    (root / "facts" / "half-1").mkdir()
    (root / "facts" / "half-1" / "part").write_text(PHRASE)
    run.certify()
    assert len(list((root / "model").glob("*/*/model.safetensors"))) == 2
    purged(root)
    assert not [name for name, content in files(root).items() if PHRASE.encode() in content]
    assert len(list((root / "model").glob("*/*/model.safetensors"))) == 2
    assert not (root / "work").exists()


def test_a_report_without_text_is_kept(root: Path):
    purged(root)
    assert artifact_file(root, "report", "report.html").read_text() == "no text"


def test_logs_of_the_time_of_the_request_go_unless_their_program_runs(tmp_path: Path):
    logs = cache_home() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    now = time.strftime("%Y%m%d-%H%M%S")
    dead, running = logs / f"{now}-999999999.log", logs / f"{now}-{os.getpid()}.log"
    old = logs / "20200101-000000-999999999.log"
    for path in (dead, running, old):
        path.write_text(PHRASE)
    os.utime(old, (0, 0))
    Audited(tmp_path).certify()
    log = places.read(str(purged(tmp_path / "root")))
    assert [path.exists() for path in (dead, running, old)] == [False, True, True]
    assert f"logs/{dead.name}" in {entry["path"] for entry in log["deleted"]}


def test_a_request_of_the_same_facts_still_verifies(tmp_path: Path):
    run = Audited(tmp_path)
    first = run.certify()
    second = run.certify("audit.seed=1")
    assert first != second
    purge(plan(first))
    assert verify(second).num_purged == 4
    purge(plan(second))
    assert verify(first).num_purged == verify(second).num_purged == 4


# --- the log --------------------------------------------------------------------------------------


def test_a_file_that_came_back_is_named(root: Path):
    path = artifact_file(root, "facts", "part-00000.parquet")
    content = path.read_bytes()
    purged(root)
    path.write_bytes(content)
    with pytest.raises(Difference) as found:
        verify(str(certified(root)))
    assert str(found.value) == f"{path.relative_to(root)}: purge.json says that it was deleted."


def test_a_log_of_another_certificate_is_named(root: Path):
    rewrite(purged(root), lambda log: log.update(certificate="0" * 64))
    with pytest.raises(Difference, match="it is the log of another certificate"):
        verify(str(certified(root)))


def test_a_missing_file_that_no_log_names_is_named(root: Path):
    rewrite(purged(root), lambda log: log["deleted"].pop(0))
    with pytest.raises(Difference, match=r"replies\.parquet: there is no such file"):
        verify(str(certified(root)))


def test_an_interrupted_purge_is_completed(root: Path, monkeypatch: pytest.MonkeyPatch):
    remove = storage.remove

    def fail(uri: str) -> None:
        if uri.endswith(".parquet"):
            raise MeowError("the disk is gone")
        remove(uri)

    planned = plan(str(certified(root)))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", fail)
        with pytest.raises(MeowError, match="the disk is gone"):
            purge(planned)
    with pytest.raises(Difference, match="says that it was deleted"):
        verify(str(certified(root)))
    purged(root)
    assert verify(str(certified(root))).num_purged == 4


def test_a_purge_without_anything_left_changes_nothing(root: Path):
    purged(root)
    before = files(root)
    assert not plan(str(certified(root))).deletions
    purged(root)
    assert files(root) == before


# --- refusals -------------------------------------------------------------------------------------


def refusal(root: Path) -> str:
    """Returns the error of a purge, which must have deleted nothing."""
    before = files(root)
    with pytest.raises(MeowError) as refused:
        plan(str(certified(root)))
    assert files(root) == before
    return str(refused.value)


def test_a_run_in_progress_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEOW_LEASE_BEAT", "0.05")
    with lease.Lease(str(root), "stage"), pytest.raises(MeowError, match="a run is in progress"):
        plan(str(certified(root)))


def test_a_certificate_that_does_not_verify_is_refused(root: Path):
    artifact_file(root, "model", "config.json").write_text("[]")
    message = refusal(root)
    assert "the certificate does not verify, so nothing was deleted" in message
    assert "config.json: its content is not the one that was certified." in message


def test_a_certificate_with_text_is_refused(tmp_path: Path):
    Audited(tmp_path).certify("report.show_text=true")
    assert "it shows the text of facts" in refusal(tmp_path / "root")


def test_a_request_without_certificate_is_refused(tmp_path: Path):
    with pytest.raises(MeowError, match="there is no certificate"):
        plan(str(tmp_path / "root" / "certificate" / "x-1" / "certificate.json"))
