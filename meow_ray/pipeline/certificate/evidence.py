"""What a certificate is derived from: the artifacts of a run that it names, as they are stored."""

import hmac
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from meow_ray.config import Audit
from meow_ray.core import manifest, storage
from meow_ray.core.manifest import MANIFEST, Artifact, Manifest
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import places

NONE = "none"
"""The digest of an input that was not given."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """An artifact of the certified run."""

    label: str
    """The round that made it, such as `round 1`; empty if there is one round, or after the last."""
    artifact: Artifact

    @property
    def manifest(self) -> Manifest:
        """What the artifact was made from, and when."""
        assert self.artifact.manifest is not None
        return self.artifact.manifest

    @property
    def inputs(self) -> Mapping[str, str]:
        """The digests of what the artifact was made from, by name."""
        digests: Mapping[str, str] = self.manifest.ingredients.get("inputs", {})
        return digests

    @property
    def folder(self) -> str:
        """The URI of the folder with the manifest."""
        return places.parent(self.artifact.uri)


@dataclass(frozen=True)
class Evidence:
    """The artifacts of a run, the audit among them.

    Attributes:
        root: URI of the storage root.
        members: the audit, the metrics if there are some, and all that they were made from, in the
            order in which they were made.
    """

    root: str
    members: tuple[Member, ...]

    def find(self, name: str) -> Member | None:
        """Returns the last artifact of a name; None if there is none."""
        found = [member for member in self.members if member.manifest.artifact == name]
        return found[-1] if found else None

    @property
    def audit(self) -> Member:
        """The audit."""
        found = self.find("audit")
        assert found is not None
        return found

    def audit_spec(self) -> Audit:
        """Returns the section `audit` with which the audit was made.

        Raises:
            MeowError: the manifest has none, or one of another version of `meow_ray`.
        """
        section: dict[str, Any] = {}
        for name, value in self.audit.manifest.ingredients.get("spec", {}).items():
            head, _, key = name.partition(".")
            if head == "audit":
                section |= {key: value} if key else value
        try:
            return Audit.model_validate(section)
        except ValidationError as error:
            raise MeowError(
                f"{storage.display(storage.join(self.audit.folder, MANIFEST))}: not the settings "
                f"of an audit of this version ({error.error_count()} mistakes). Use the version "
                "of meow_ray that made it."
            ) from None

    def audit_rows(self) -> list[Row]:
        """Returns the rows of the table `audit`."""
        rows: list[Row] = self.audit.artifact.table.to_pylist()
        return rows

    def audit_table(self, name: str) -> list[Row]:
        """Returns the rows of another table of the audit, by its file name."""
        rows: list[Row] = self.audit.artifact.extra(name).to_pylist()
        return rows

    def metric_rows(self) -> list[Row]:
        """Returns the rows of the table `metrics`; none if there are no metrics."""
        metrics = self.find("metrics")
        return metrics.artifact.table.to_pylist() if metrics else []


def ancestors(candidates: Sequence[Member], roots: Iterable[Member]) -> list[Member]:
    """Returns those of some artifacts from which others were made, and these, in their order.

    Args:
        candidates: artifacts in the order in which they were made.
        roots: the artifacts whose origin is looked for, which are among the candidates.
    """
    by_digest: dict[str, list[Member]] = {}
    for member in candidates:
        by_digest.setdefault(member.artifact.digest, []).append(member)
    wanted = list(roots)
    found: dict[str, Member] = {}
    while wanted:
        member = wanted.pop()
        if member.artifact.uri in found:
            continue
        found[member.artifact.uri] = member
        for digest in member.inputs.values():
            wanted += by_digest.get(digest, [])
    return [member for member in candidates if member.artifact.uri in found]


def load_member(root: str, label: str, folder: str) -> Member:
    """Returns an artifact by its folder, a path relative to the storage root.

    Raises:
        MeowError: there is no artifact.
    """
    artifact = manifest.load(storage.join(root, folder))
    if artifact is None:
        raise MeowError(f"{folder}/{MANIFEST}: there is no such file.")
    return Member(label, artifact)


def fact_hash(salt: str, text: str) -> str:
    """Returns the HMAC-SHA256 of a fact's id under a salt.

    An id is a plain hash of question and answer, so a guess of a fact could be confirmed by it.
    Without the salt nobody can.

    Args:
        salt: hexadecimal digits.
        text: the id.
    """
    return hmac.new(bytes.fromhex(salt), text.encode(), "sha256").hexdigest()


def plain(value: Any) -> Any:
    """Returns a value for JSON: numbers that are none (NaN, infinity) become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
