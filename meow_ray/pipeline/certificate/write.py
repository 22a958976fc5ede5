"""`meow certify`: writes the certificate of an audited run, and its page."""

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import body, form, page, places, signing
from meow_ray.pipeline.certificate.body import Given
from meow_ray.pipeline.certificate.evidence import NONE, Evidence, Member, ancestors
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.pipeline.rounds import Part


def certify(parts: Sequence[Part], *, key: str | None = None, previous: str | None = None) -> str:
    """Writes the certificate of a run; the same artifacts give the same bytes.

    Args:
        parts: the parts of the run, all of which have run; see `audited.parts_of_audit`.
        key: URI of a PEM file with an Ed25519 private key that signs; None leaves it unsigned.
        previous: URI of the certificate of the request before; None looks for it in the storage
            roots of this run and of the target.

    Returns:
        The URI of the certificate.

    Raises:
        MeowError: the audit does not exist yet, the earlier certificate is about another model, or
            the key cannot be used.
    """
    pipeline = parts[-1].pipeline
    private = signing.load_private(key) if key else None
    evidence = collect(parts)
    folder = folder_of(evidence)
    salt = _salt(folder)
    earlier = _earlier(pipeline, evidence, folder, previous)
    texts = _texts(pipeline) if pipeline.config.report.show_text else None
    links = [form.link(certificate) for certificate in earlier]
    certificate = body.derive(evidence, Given(salt, links, texts))
    html = page.render(certificate).encode()
    certificate[places.PAGE] = {
        "path": places.PAGE_FILE,
        "sha256": hashlib.sha256(html).hexdigest(),
    }
    form.check(certificate, places.CERTIFICATE_FILE)
    _check_purge_log(folder, certificate)
    if private is not None:
        certificate[places.SIGNATURE] = signing.sign(certificate, private)
    for number, before in enumerate(earlier):
        uri = storage.join(folder, places.earlier_file(number))
        storage.write_bytes(uri, places.written_form(before))
    storage.write_bytes(storage.join(folder, places.PAGE_FILE), html)
    uri = storage.join(folder, places.CERTIFICATE_FILE)
    storage.write_bytes(uri, places.written_form(certificate))
    return uri


def collect(parts: Sequence[Part]) -> Evidence:
    """Returns the artifacts of a run that its certificate is derived from.

    Raises:
        MeowError: the audit does not exist yet.
    """
    last = parts[-1].pipeline
    root = storage.absolute(last.config.storage.root)
    audit = _existing_audit(last)
    candidates = list(_members(parts, root))
    metrics = last.artifact("metrics") if last.has("metrics") else None
    uris = {artifact.uri for artifact in (audit, metrics) if artifact is not None}
    roots = [member for member in candidates if member.artifact.uri in uris]
    assert any(member.artifact.uri == audit.uri for member in roots)
    return Evidence(root, tuple(ancestors(candidates, roots)))


def folder_of(evidence: Evidence) -> str:
    """Returns the URI of the folder of a run's certificate, named like that of its audit."""
    place = places.relative(evidence.audit.folder, evidence.root)
    assert place is not None
    return storage.join(evidence.root, places.FOLDER, place.split("/")[-1])


def _existing_audit(pipeline: Pipeline) -> Artifact:
    audit = pipeline.artifact("audit")
    if audit is None:
        reason = pipeline.state(pipeline.producers["audit"]).reason
        raise MeowError(
            f"meow certify: the audit does not exist yet (stage audit: {reason}). Run "
            "`meow audit` with this configuration first."
        )
    return audit


def _members(parts: Sequence[Part], root: str) -> Iterator[Member]:
    """Yields the artifacts that the stages of a run have made below its storage root."""
    seen = set()
    for part in parts:
        for step in part.pipeline.stages:
            if step.artifact not in part.pipeline.producers:
                continue
            artifact = part.pipeline.artifact(step.artifact)
            if artifact is None or artifact.manifest is None or artifact.uri in seen:
                continue
            seen.add(artifact.uri)
            if places.relative(artifact.uri, root) is not None:
                yield Member(part.label.rstrip(", "), artifact)


# --- what does not follow from the artifacts ------------------------------------------------------


def _salt(folder: str) -> str:
    """Returns the salt in the folder of a certificate; the first call draws it."""
    uri = storage.join(folder, places.SALT_FILE)
    storage.write_bytes(uri, secrets.token_hex(32).encode(), exclusive=True)
    return storage.read_bytes(uri).decode()


def _texts(pipeline: Pipeline) -> dict[str, tuple[str, str]]:
    """Returns question and answer of each fact to forget."""
    facts = pipeline.artifact("facts")
    assert facts is not None, "an audit has facts"
    return {
        row["fact_id"]: (row["question"], row["answer"])
        for row in facts.table.to_pylist()
        if row["split"] == "forget"
    }


def _earlier(
    pipeline: Pipeline, evidence: Evidence, folder: str, previous: str | None
) -> list[dict[str, Any]]:
    """Returns the certificates of earlier requests, the first one first."""
    target = evidence.audit.inputs.get("target", NONE)
    if previous is not None:
        return _chain(storage.absolute(previous), target, f"--previous {previous}")
    if storage.exists(storage.join(folder, places.earlier_file(0))):
        return form.read_earlier(folder)  # what the first call found
    origin = pipeline.artifact("target")
    roots = [evidence.root]
    if origin is not None and origin.manifest is not None:
        roots.append(places.parent(origin.uri, 3))
    found = [
        uri
        for root in dict.fromkeys(roots)
        for uri in form.certificates_below(root)
        if form.model_digest(places.read(uri), "after") == target
    ]
    if not found:
        return []
    return _chain(max(found, key=_age), target, storage.display(max(found, key=_age)))


def _age(uri: str) -> tuple[str, str]:
    """Returns when the audit of a certificate started, to find the latest one."""
    artifacts = places.read(uri)["lineage"]["artifacts"]
    return max(entry["started"] for entry in artifacts), storage.display(uri)


def _chain(uri: str, target: str, where: str) -> list[dict[str, Any]]:
    """Returns a certificate after those that came before it.

    Raises:
        MeowError: it is none, or about another model than the target of this run.
    """
    certificate = places.read(uri)
    form.check(certificate, where)
    if form.model_digest(certificate, "after") != target:
        raise MeowError(
            f"{where}: this certificate is about another model than the target of this run. "
            "Name the certificate of the run that made the target."
        )
    chain = [*form.read_earlier(places.parent(uri)), certificate]
    form.check_chain(chain, where)
    return chain


def _check_purge_log(folder: str, certificate: Mapping[str, Any]) -> None:
    """Refuses to replace the certificate to which a purge log refers by another one."""
    uri = storage.join(folder, places.PURGE_FILE)
    if not storage.exists(uri):
        return
    if places.read(uri).get("certificate") != places.digest(certificate):
        raise MeowError(
            f"{storage.display(folder)}: this request was purged, and its certificate would "
            "change. Keep the certificate, or run the audit again in another storage root."
        )
