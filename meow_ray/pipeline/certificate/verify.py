"""`meow verify`: derives a certificate again from the artifacts, without a model.

The checks are, in order: version and schema, the digests of all files, the earlier certificates,
the tables of the audit against its verdicts derived again, the whole content derived again, the
purge log, and the signature. The first difference is named.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meow_ray.core import storage
from meow_ray.core.manifest import MANIFEST
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import body, compare, form, places, signing
from meow_ray.pipeline.certificate.attempts import DERIVING
from meow_ray.pipeline.certificate.body import Given
from meow_ray.pipeline.certificate.evidence import Evidence, fact_hash, load_member
from meow_ray.pipeline.certificate.form import Difference
from meow_ray.stages.audit.reasons import REASONS
from meow_ray.stages.audit.stage import SUMMARY_FILE, VERDICTS_FILE
from meow_ray.stages.ingest.facts import fact_id


@dataclass(frozen=True)
class Verified:
    """What a verification has found to be in order.

    Attributes:
        certificate: the content of the certificate.
        num_files: files whose digests were computed again.
        num_purged: files that the purge log names, which are gone.
        signed_by: the public key of the signature, hexadecimal; None if there is no signature.
        is_trusted: whether that is the key that the caller has given.
        not_recomputed: what cannot be computed again without a model, and is taken from the audit.
    """

    certificate: Mapping[str, Any]
    num_files: int
    num_purged: int
    signed_by: str | None
    is_trusted: bool
    not_recomputed: tuple[str, ...]


def verify(uri: str, key: str | None = None, *, is_purging: bool = False) -> Verified:
    """Checks a certificate against the artifacts in its storage root.

    Args:
        uri: URI of the certificate.
        key: URI of a PEM file with the Ed25519 public key of who must have signed; None accepts
            every key, and no signature.
        is_purging: a purge is at work, and may have been interrupted: files that its log names may
            still exist.

    Raises:
        Difference: the first difference.
        MeowError: a file or key cannot be read, or the certificate is of a newer version.
    """
    uri = storage.absolute(uri)
    public = signing.load_public(key) if key else None
    certificate = places.read(uri)
    form.check(certificate, places.CERTIFICATE_FILE)
    _check_written_form(uri, certificate)
    purged = _purged_files(uri, certificate)
    num_files = _check_files(uri, certificate, purged, is_purging)
    _check_page(uri, certificate)
    earlier = form.read_earlier(places.parent(uri))
    form.check_chain([*earlier, certificate], places.CERTIFICATE_FILE)
    evidence = evidence_of(uri, certificate)
    _check_manifests(evidence)
    _check_tables(evidence)
    _check_content(uri, certificate, evidence, earlier)
    signature = certificate.get(places.SIGNATURE)
    if signature is not None and not signing.is_valid(certificate):
        raise Difference(f"{places.CERTIFICATE_FILE}: the signature does not fit the content.")
    if public is not None:
        _check_signer(signature, signing.hexadecimal(public))
    return Verified(
        certificate,
        num_files,
        sum(path in purged for path, _ in files_of(certificate)),
        signature["public_key"] if signature else None,
        public is not None,
        _not_recomputed(certificate),
    )


def _not_recomputed(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what a verification takes from the audit, because only models could show it."""
    made = sum(len(entry["made"]) for entry in certificate["derived_models"])
    loaded = sum(entry["weights"] is not None for entry in certificate["models"])
    counted = (
        ("weights of {} derived models", made),
        ("weights of {} models that are merged or converted when they are loaded", loaded),
        ("content of {} inputs from outside", len(certificate["lineage"]["outside"])),
    )
    texts = [text.format(number) for text, number in counted if number]
    return ("replies and scores of the attacks", *texts)


def evidence_of(uri: str, certificate: Mapping[str, Any]) -> Evidence:
    """Returns the artifacts that a certificate names, below its storage root."""
    root = places.root_of(uri)
    entries = certificate["lineage"]["artifacts"]
    members = [load_member(root, entry["round"], entry["folder"]) for entry in entries]
    if not any(member.manifest.artifact == "audit" for member in members):
        raise Difference(f"{places.CERTIFICATE_FILE}: lineage.artifacts has no audit.")
    return Evidence(root, tuple(members))


# --- files ----------------------------------------------------------------------------------------


def _check_written_form(uri: str, certificate: Mapping[str, Any]) -> None:
    if storage.read_bytes(uri) != places.written_form(certificate):
        raise Difference(
            f"{places.CERTIFICATE_FILE}: its bytes are not those that `meow certify` writes for "
            "this content (order of the keys, blanks, or a key twice)."
        )


def _purged_files(uri: str, certificate: Mapping[str, Any]) -> dict[str, str]:
    """Returns the digests of purged files by their path below the storage root.

    The logs of other certificates in the same storage root count as well, because requests may
    share artifacts.
    """
    own = _purge_log(uri, certificate)
    purged = dict(own or {})
    for other in form.certificates_below(places.root_of(uri)):
        if other != uri:
            try:
                purged |= _purge_log(other, places.read(other)) or {}
            except Difference:
                continue
    return purged


def _purge_log(uri: str, certificate: Mapping[str, Any]) -> dict[str, str] | None:
    """Returns the digests in the purge log of a certificate by path; None if there is no log."""
    log = storage.join(places.parent(uri), places.PURGE_FILE)
    if not storage.exists(log):
        return None
    content = places.read(log)
    if content.get("certificate") != places.digest(certificate):
        raise Difference(f"{places.PURGE_FILE}: it is the log of another certificate.")
    try:
        return {entry["path"]: entry["sha256"] for entry in content["deleted"] if entry["sha256"]}
    except (KeyError, TypeError):
        raise Difference(f"{places.PURGE_FILE}: not a purge log.") from None


def _check_files(
    uri: str, certificate: Mapping[str, Any], purged: Mapping[str, str], is_purging: bool
) -> int:
    """Computes the digests of all files again; returns their number without purged ones."""
    root = places.root_of(uri)
    num_files = 0
    for path, sha256 in files_of(certificate):
        file = storage.join(root, path)
        exists = storage.exists(file)
        if path in purged:
            if purged[path] != sha256:
                raise Difference(f"{places.PURGE_FILE}: the digest of {path} is another one.")
            if exists and not is_purging:
                raise Difference(f"{path}: {places.PURGE_FILE} says that it was deleted.")
            continue
        if not exists:
            raise Difference(f"{path}: there is no such file.")
        if storage.file_digest(file, verify=True) != sha256:
            raise Difference(f"{path}: its content is not the one that was certified.")
        num_files += 1
    return num_files


def files_of(certificate: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields path below the storage root and sha256 of each file of a certificate's artifacts."""
    for entry in certificate["lineage"]["artifacts"]:
        yield f"{entry['folder']}/{MANIFEST}", entry["manifest"]
        for file in entry["files"]:
            yield f"{entry['folder']}/{file['path']}", file["sha256"]


def _check_page(uri: str, certificate: Mapping[str, Any]) -> None:
    entry = certificate[places.PAGE]
    page = storage.join(places.parent(uri), entry["path"])
    if not storage.exists(page):
        raise Difference(f"{entry['path']}: there is no such file.")
    if places.bytes_digest(page) != entry["sha256"]:
        raise Difference(f"{entry['path']}: its content is not the one that was certified.")


# --- content --------------------------------------------------------------------------------------


def _check_manifests(evidence: Evidence) -> None:
    """Checks that manifests fit their own digests, and that no step of the lineage is left out."""
    for member in evidence.members:
        manifest = member.manifest
        where = f"{places.relative(member.folder, evidence.root)}/{MANIFEST}"
        if storage.json_digest(manifest.ingredients) != manifest.fingerprint:
            raise Difference(f"{where}: the fingerprint is not that of the ingredients.")
        files = {name: entry.sha256 for name, entry in manifest.files.items()}
        if storage.json_digest(files) != manifest.digest:
            raise Difference(f"{where}: the digest is not that of the files.")


def _check_tables(evidence: Evidence) -> None:
    """Judges the rows of the audit again, and compares with what the audit wrote."""
    rows = evidence.audit_rows()
    judgement = body.judge_rows(rows, evidence.audit_spec())
    for row in rows:
        derived = judgement.extracted(body.audit_row(row))
        name = " ".join(filter(None, (row["attack"], row["variant"], row["model"])))
        _check_complete(row, name)
        if row["extracted"] != derived:
            raise Difference(
                f"audit: `extracted` of {name} on {row['fact_id']} is {row['extracted']}, and "
                f"{derived} by the controls."
            )
    for name, derived_rows, key in (
        (VERDICTS_FILE, judgement.verdicts, ("fact_id", "tier")),
        (SUMMARY_FILE, judgement.summary, ("attack", "variant")),
    ):
        written = _by_key(evidence.audit_table(name), key)
        difference = compare.first(written, _by_key(derived_rows, key))
        if difference is not None:
            raise Difference(f"{name}: {difference.described('in the table')}")


def _check_complete(row: Mapping[str, Any], name: str) -> None:
    """Checks that a row has a score or a reason, and the digest of a derived model."""
    if (row["score"] is None) != (row["reason"] in REASONS):
        raise Difference(
            f"audit: {name} on {row['fact_id']} has the score {row['score']} and the reason "
            f"{row['reason']}. It must have one of both."
        )
    if row["attack"] in DERIVING and row["score"] is not None and row["weights"] is None:
        raise Difference(
            f"audit: {name} on {row['fact_id']} has a score without the digest of the model that "
            "was asked (`weights`)."
        )


def _by_key(rows: Sequence[Mapping[str, Any]], key: tuple[str, ...]) -> dict[str, Any]:
    return {" ".join(str(row[name]) for name in key if row[name]): dict(row) for row in rows}


def _check_content(
    uri: str,
    certificate: Mapping[str, Any],
    evidence: Evidence,
    earlier: Sequence[Mapping[str, Any]],
) -> None:
    """Derives the content again and compares it with the certificate."""
    salt = _salt(uri)
    texts = _texts(certificate, salt) if certificate["shows_text"] else None
    given = Given(salt, [form.link(before) for before in earlier], texts)
    derived = body.derive(evidence, given)
    written = {
        name: value
        for name, value in certificate.items()
        if name not in (places.PAGE, places.SIGNATURE)
    }
    difference = compare.first(written, derived)
    if difference is not None:
        text = difference.described("in the certificate")
        raise Difference(f"{places.CERTIFICATE_FILE}: {text}")


def _salt(uri: str) -> str:
    salt = storage.read_bytes(storage.join(places.parent(uri), places.SALT_FILE)).decode()
    try:
        bytes.fromhex(salt)
    except ValueError:
        raise Difference(f"{places.SALT_FILE}: not hexadecimal digits.") from None
    return salt


def _texts(certificate: Mapping[str, Any], salt: str) -> dict[str, tuple[str, str]]:
    """Returns the text of facts by id; a text proves itself, because its hash is the fact's."""
    texts = {}
    for number, entry in enumerate(certificate["verdicts"]["facts"]):
        identifier = fact_id(entry["question"], entry["answer"])
        if fact_hash(salt, identifier) != entry["fact"]:
            raise Difference(
                f"{places.CERTIFICATE_FILE}: verdicts.facts[{number}].fact is not the hash of its "
                "question and answer."
            )
        texts[identifier] = (entry["question"], entry["answer"])
    return texts


def _check_signer(signature: Mapping[str, str] | None, expected: str) -> None:
    if signature is None:
        raise Difference(f"{places.CERTIFICATE_FILE}: it has no signature.")
    if signature["public_key"] != expected:
        raise Difference(
            f"{places.CERTIFICATE_FILE}: signature.public_key is {signature['public_key']}, and "
            f"the key given with --key is {expected}."
        )


def require(uri: str) -> None:
    """Checks a certificate before its request is purged.

    Raises:
        MeowError: it does not hold, so that the evidence must stay.
    """
    try:
        verify(uri, is_purging=True)
    except Difference as difference:
        raise MeowError(
            f"{storage.display(uri)}: the certificate does not verify, so nothing was deleted. "
            f"{difference} Write it again with `meow certify`."
        ) from None
