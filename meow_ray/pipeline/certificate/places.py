"""Names, places and canonical form of the files of a certificate.

A certificate is in `certificate/AUDIT/` below a storage root, where `AUDIT` is the folder of the
audit. All paths in it are relative to that storage root or to its own folder, so that a root that
was moved still verifies.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from meow_ray.core import storage
from meow_ray.errors import MeowError

VERSION = 1
"""The version of the schema of the certificate, raised whenever a reader has to change."""

FOLDER = "certificate"
"""The folder of the certificates below a storage root."""

CERTIFICATE_FILE = "certificate.json"
PAGE_FILE = "certificate.html"
SALT_FILE = "salt"
"""32 random bytes as hexadecimal digits. Who has them can tell which fact a hash stands for."""
PURGE_FILE = "purge.json"
"""The purge log. It is no part of the certificate, which exists before anything is purged."""
EARLIER_FOLDER = "earlier"
"""Copies of the certificates of earlier requests, the first as `000.json`."""

SIGNATURE = "signature"
PAGE = "page"

Certificate = Mapping[str, Any]
"""The content of a certificate, as its JSON has it."""


def earlier_file(number: int) -> str:
    """Returns the path of the copy of an earlier certificate, relative to the own folder."""
    return f"{EARLIER_FOLDER}/{number:03}.json"


def parent(uri: str, levels: int = 1) -> str:
    """Returns the folder that is some levels above a file or folder; a query stays at the end."""
    base, mark, query = (uri, "", "") if storage.is_local(uri) else uri.partition("?")
    return base.rsplit("/", levels)[0] + mark + query


def relative(uri: str, root: str) -> str | None:
    """Returns the path of a URI below a root; None if it is elsewhere."""
    path, _, _ = uri.partition("?") if not storage.is_local(uri) else (uri, "", "")
    base, _, _ = root.partition("?") if not storage.is_local(root) else (root, "", "")
    prefix = base.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def root_of(certificate: str) -> str:
    """Returns the storage root of a certificate by the URI of its file."""
    return parent(storage.absolute(certificate), 3)


def canonical(value: Any) -> bytes:
    """Returns a value as the JSON that is hashed and signed: sorted keys, no blanks, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def written_form(certificate: Certificate) -> bytes:
    """Returns the bytes of the file of a certificate: sorted keys, indented by 2 blanks."""
    text = json.dumps(certificate, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def unsigned(certificate: Certificate) -> dict[str, Any]:
    """Returns a certificate without its signature."""
    return {name: value for name, value in certificate.items() if name != SIGNATURE}


def digest(certificate: Certificate) -> str:
    """Returns what identifies a certificate: the sha256 of its canonical form, unsigned."""
    return hashlib.sha256(canonical(unsigned(certificate))).hexdigest()


def bytes_digest(uri: str) -> str:
    """Returns the sha256 of a small file, which is read in any case."""
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest()


def read(uri: str) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        MeowError: the file cannot be read, or holds something else.
    """
    value = storage.read_json(uri)
    if not isinstance(value, dict):
        raise MeowError(
            f"{storage.display(uri)}: not a JSON object. Name a file that `meow certify` wrote."
        )
    return value
