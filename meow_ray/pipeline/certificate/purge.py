"""`meow purge`: deletes the text of a certified request and keeps what the certificate needs.

The log is written before anything is deleted, so that an interrupted purge can be completed.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from meow_ray.core import lease, manifest, storage
from meow_ray.core.local_cache import cache_home
from meow_ray.core.manifest import MAIN, Artifact
from meow_ray.core.schema import SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import places, verify
from meow_ray.pipeline.certificate.evidence import Evidence
from meow_ray.stages.audit.stage import SUMMARY_FILE, VERDICTS_FILE

KEPT = {
    "audit": (MAIN, SUMMARY_FILE, VERDICTS_FILE),
    "metrics": (MAIN,),
}
"""Files without text of the artifacts of which others hold text."""
WHOLE = ("model", "target")
"""Artifacts that are kept whole: models."""
WORK = "work"
"""The folder of unfinished work below a storage root, checkpoints among it."""
NO_ARTIFACTS = (WORK, places.FOLDER, lease.FOLDER)
"""The folders below a storage root that hold no artifacts."""
START_UP = timedelta(hours=1)
"""A program may write its last line of a log this long before its first stage starts."""


@dataclass(frozen=True)
class Deletion:
    """A file or folder to delete."""

    uri: str
    path: str
    """Relative to the storage root, or the name of a log."""
    sha256: str | None = None
    """The digest of a file of an artifact; None of anything else."""


@dataclass(frozen=True)
class Plan:
    """What a purge deletes.

    Attributes:
        certificate: URI of the certificate.
        deletions: what is deleted, in order.
    """

    certificate: str
    deletions: Sequence[Deletion]


def plan(certificate: str) -> Plan:
    """Returns what a purge would delete; deletes nothing.

    Args:
        certificate: URI of the certificate of the request.

    Raises:
        MeowError: there is no such certificate, it does not verify or shows the text of facts, or
            a run is in progress.
    """
    uri = storage.absolute(certificate)
    if not storage.exists(uri):
        raise MeowError(
            f"{storage.display(uri)}: there is no certificate, and a purge deletes what one is "
            "made of. Run `meow certify` first."
        )
    root = places.root_of(uri)
    lease.check_unused(root)
    verify.require(uri)
    content = places.read(uri)
    if content["shows_text"]:
        raise MeowError(
            f"{storage.display(uri)}: it shows the text of facts, which a purge has to delete. "
            "Run `meow certify` with report.show_text=false first."
        )
    evidence = verify.evidence_of(uri, content)
    return Plan(uri, [*_of_request(evidence), *_leftovers(evidence), *_logs(content)])


def purge(planned: Plan) -> str:
    """Writes the purge log and deletes what was planned; returns the URI of the log.

    Raises:
        MeowError: a run is in progress, or a file cannot be deleted.
    """
    root = places.root_of(planned.certificate)
    lease.check_unused(root)
    uri = storage.join(places.parent(planned.certificate), places.PURGE_FILE)
    log: dict[str, Any] = {
        "version": places.VERSION,
        "certificate": places.digest(places.read(planned.certificate)),
        "deleted": [],
    }
    if storage.exists(uri):
        log["deleted"] = places.read(uri)["deleted"]
    known = {entry["path"] for entry in log["deleted"]}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    log["deleted"] += [
        {"path": item.path, "sha256": item.sha256, "at": at}
        for item in planned.deletions
        if item.path not in known
    ]
    storage.write_bytes(uri, places.written_form(log))
    for item in planned.deletions:
        storage.remove(item.uri)
    return uri


# --- what is deleted ------------------------------------------------------------------------------


def _with_text(evidence: Evidence) -> Iterator[Artifact]:
    """Yields the artifacts of the request: those of the certificate, and others of the same facts.

    Others are those that were made, in any number of steps, from an artifact with text, for
    example with other settings. A model is no text, so what was made from it alone is not found.
    """
    remaining = list(_artifacts(evidence.root))
    text = {
        digest
        for member in evidence.members
        for name, digest in member.inputs.items()
        if name in SCHEMAS  # tables, also those from outside
    }
    own = {member.artifact.uri for member in evidence.members}
    found = [artifact for artifact in remaining if artifact.uri in own]
    while found:
        yield from found
        text |= {artifact.digest for artifact in found if artifact.name in SCHEMAS}
        gone = {artifact.uri for artifact in found}
        remaining = [artifact for artifact in remaining if artifact.uri not in gone]
        found = [artifact for artifact in remaining if _is_made_from(artifact, text)]


def _is_made_from(artifact: Artifact, digests: Set[str]) -> bool:
    assert artifact.manifest is not None
    inputs: Mapping[str, str] = artifact.manifest.ingredients.get("inputs", {})
    return artifact.digest in digests or not digests.isdisjoint(inputs.values())


def _files_with_text(artifact: Artifact) -> Iterator[str]:
    """Yields the names of the files of an artifact that hold text of facts."""
    assert artifact.manifest is not None
    settings = artifact.manifest.ingredients.get("spec", {})
    is_report = artifact.name == "report" and not settings.get("report", {}).get("show_text")
    if artifact.name not in WHOLE and not is_report:
        kept = KEPT.get(artifact.name, ())
        yield from (name for name in artifact.files if name not in kept)


def _of_request(evidence: Evidence) -> Iterator[Deletion]:
    """Yields the files with text of the artifacts of the request; all manifests are kept."""
    for artifact in _with_text(evidence):
        assert artifact.manifest is not None
        for name in _files_with_text(artifact):
            uri = storage.join(artifact.uri, name)
            if storage.exists(uri):
                sha256 = artifact.manifest.files[name].sha256
                yield Deletion(uri, _path(uri, evidence.root), sha256)


def _path(uri: str, root: str) -> str:
    path = places.relative(uri, root)
    assert path is not None
    return path


def _artifacts(root: str) -> Iterator[Artifact]:
    """Yields all artifacts below a storage root."""
    for name in storage.list_names(root):
        if name in NO_ARTIFACTS or not storage.is_folder(storage.join(root, name)):
            continue
        for folder in storage.list_names(storage.join(root, name)):
            artifact = manifest.load(storage.join(root, name, folder))
            if artifact is not None:
                yield artifact


def _leftovers(evidence: Evidence) -> Iterator[Deletion]:
    """Yields unfinished work, checkpoints among it, and what killed attempts left."""
    work = storage.join(evidence.root, WORK)
    if storage.exists(work):
        yield Deletion(work, WORK)
    for name in sorted({member.manifest.artifact for member in evidence.members}):
        for uri in manifest.leftovers(evidence.root, name):
            yield Deletion(uri, _path(uri, evidence.root))


def _logs(certificate: Mapping[str, Any]) -> Iterator[Deletion]:
    """Yields the logs on this machine that were written while the request was worked on.

    Logs of programs that still run are left alone.
    """
    started = [
        datetime.fromisoformat(entry["started"]) for entry in certificate["lineage"]["artifacts"]
    ]
    for path in sorted((cache_home() / "logs").glob("*.log")):
        found = re.fullmatch(r"(\d{8}-\d{6})-(\d+)", path.stem)
        if not found or _is_running(int(found[2])):
            continue
        begun = datetime.strptime(found[1], "%Y%m%d-%H%M%S").astimezone(UTC)
        modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        if begun <= max(started) and modified >= min(started) - START_UP:
            yield Deletion(str(path), f"logs/{path.name}")


def _is_running(pid: int) -> bool:
    return pid == os.getpid() or Path(f"/proc/{pid}").exists()
