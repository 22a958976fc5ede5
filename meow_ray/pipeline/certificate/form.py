"""The form of certificates: their schema, their version, and the chain of requests."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import places, signing

SCHEMA_FILE = "certificate.schema.json"


class Difference(MeowError):  # noqa: N818 - a result, not a mistake of the user
    """A certificate does not hold; the message names the first difference."""


@cache
def schema() -> dict[str, Any]:
    """Returns the JSON Schema of a certificate."""
    text = resources.files(__package__).joinpath(SCHEMA_FILE).read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def check(certificate: Mapping[str, Any], where: str) -> None:
    """Checks a certificate against the schema of its version.

    Args:
        certificate: its content.
        where: its file, for errors.

    Raises:
        MeowError: it is of a newer version, or has none.
        Difference: it does not fit the schema.
    """
    version = certificate.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise MeowError(f"{where}: not a certificate. Name a file that `meow certify` wrote.")
    if version > places.VERSION:
        raise MeowError(
            f"{where}: its schema has version {version}, and this meow_ray reads up to version "
            f"{places.VERSION}. Install a newer meow_ray."
        )
    errors = Draft202012Validator(schema()).iter_errors(certificate)
    first = min(errors, key=lambda error: list(map(str, error.absolute_path)), default=None)
    if first is not None:
        place = first.json_path.removeprefix("$").lstrip(".") or "the whole"
        raise Difference(f"{where}: {place} does not fit the schema (rule `{first.validator}`).")


def model_digest(certificate: Mapping[str, Any], name: str) -> str | None:
    """Returns the digest of a model of a certificate; None if it has none."""
    digests = {entry["model"]: entry["digest"] for entry in certificate.get("models", [])}
    return digests.get(name)


# --- the chain of requests ------------------------------------------------------------------------


def certificates_below(root: str) -> Iterator[str]:
    """Yields the URIs of the certificates below a storage root, sorted."""
    parent = storage.join(root, places.FOLDER)
    for name in storage.list_names(parent):
        uri = storage.join(parent, name, places.CERTIFICATE_FILE)
        if storage.exists(uri):
            yield uri


def link(certificate: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a later certificate holds of an earlier one."""
    return {"request": certificate["request"]["id"], "certificate": places.digest(certificate)}


def read_earlier(folder: str) -> list[dict[str, Any]]:
    """Returns the copies of earlier certificates in the folder of a certificate, in order."""
    names = storage.list_names(storage.join(folder, places.EARLIER_FOLDER))
    return [places.read(storage.join(folder, places.EARLIER_FOLDER, name)) for name in names]


def check_chain(chain: Sequence[Mapping[str, Any]], where: str) -> None:
    """Checks certificates of consecutive requests, the last one included.

    Each must hold the digests of all before it, and its target must be the model before.

    Raises:
        Difference: one of them does not fit.
    """
    links = [link(certificate) for certificate in chain]
    for number, certificate in enumerate(chain):
        place = where
        if number < len(chain) - 1:
            place = places.earlier_file(number)
            check(certificate, place)
            if places.SIGNATURE in certificate and not signing.is_valid(certificate):
                raise Difference(f"{place}: its signature does not fit its content.")
        for at, expected in enumerate(links[:number]):
            entries = certificate["earlier"]
            if at >= len(entries) or entries[at] != expected:
                raise Difference(
                    f"{place}: earlier[{at}] is not the digest of {places.earlier_file(at)}."
                )
        if len(certificate["earlier"]) != number:
            raise Difference(
                f"{place}: it names {len(certificate['earlier'])} earlier certificates, and "
                f"{number} are in {places.EARLIER_FOLDER}/."
            )
        if number and model_digest(chain[number - 1], "after") != model_digest(
            certificate, "before"
        ):
            raise Difference(
                f"{place}: its original model is not the tuned model of "
                f"{places.earlier_file(number - 1)}."
            )
