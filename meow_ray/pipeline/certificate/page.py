"""The page of a certificate."""

from collections.abc import Mapping
from typing import Any

from meow_ray.pipeline.certificate import places
from meow_ray.stages.report import templates


def render(certificate: Mapping[str, Any]) -> str:
    """Returns the page as HTML that loads nothing; the same certificate gives the same page.

    Args:
        certificate: its content, without the digest of the page and the signature.
    """
    return templates.render(
        "certificate.html.j2",
        package=__package__,
        certificate=certificate,
        digests={entry["model"]: entry["digest"] for entry in certificate["models"]},
        versions=_versions(certificate),
        places=places,
    )


def _versions(certificate: Mapping[str, Any]) -> dict[str, str]:
    """Returns the versions of the libraries with which the audit was made."""
    artifacts = certificate["lineage"]["artifacts"]
    audits = [entry for entry in artifacts if entry["artifact"] == "audit"]
    versions: dict[str, str] = audits[-1]["versions"]
    return versions
