"""Ed25519 signatures (RFC 8032) over the canonical form of a certificate."""

from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import places

ALGORITHM = "Ed25519"


def load_private(uri: str) -> Ed25519PrivateKey:
    """Returns the private key in a PEM file.

    Raises:
        MeowError: the file cannot be read, is encrypted, or holds another kind of key.
    """
    content = storage.read_bytes(uri)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise MeowError(
            f"--key {storage.display(uri)}: not an unencrypted Ed25519 private key in PEM. "
            "Make one with `openssl genpkey -algorithm ed25519 -out key.pem`."
        )
    return key


def load_public(uri: str) -> Ed25519PublicKey:
    """Returns the public key in a PEM file.

    Raises:
        MeowError: the file cannot be read, or holds another kind of key.
    """
    content = storage.read_bytes(uri)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise MeowError(
            f"--key {storage.display(uri)}: not an Ed25519 public key in PEM. Extract it with "
            "`openssl pkey -in key.pem -pubout -out key.pub`."
        )
    return key


def hexadecimal(key: Ed25519PublicKey) -> str:
    """Returns the 32 bytes of a public key as hexadecimal digits."""
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return key.public_bytes(*raw).hex()


def sign(certificate: places.Certificate, key: Ed25519PrivateKey) -> dict[str, str]:
    """Returns the signature of a certificate; the same key gives the same signature."""
    return {
        "algorithm": ALGORITHM,
        "public_key": hexadecimal(key.public_key()),
        "value": key.sign(places.canonical(places.unsigned(certificate))).hex(),
    }


def is_valid(certificate: places.Certificate) -> bool:
    """Tells whether the signature of a certificate fits its content and the key that it names."""
    signature: Mapping[str, Any] = certificate[places.SIGNATURE]
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["public_key"]))
    message = places.canonical(places.unsigned(certificate))
    try:
        key.verify(bytes.fromhex(signature["value"]), message)
    except InvalidSignature:
        return False
    return True
