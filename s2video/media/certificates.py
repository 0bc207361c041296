"""Certificates and private keys as PEM files: whether they can sign for C2PA, and whose they are.

Knows nothing of what is signed. Needs cryptography.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError

FIELD = "output.credentials"  # the setting, for messages
MAX_PEM = 1_000_000  # bytes
_ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}  # elliptic curve -> ECDSA
_LEAST_RSA = 2048  # bits


class SignerFiles(NamedTuple):
    """What signs: the name of an algorithm, a chain of certificates, and a private key, all as bytes."""

    algorithm: bytes
    chain: bytes
    key: bytes


def read_signer(chain: Path, key: Path) -> SignerFiles:
    """Read a chain of certificates and the key of the first. Raises InputError if a file or the key cannot be used."""
    pem, key_pem = _read(chain, FIELD), _read(key, f"{FIELD}_key")
    return SignerFiles(_algorithm(key, _private_key(key, key_pem)).encode(), pem, key_pem)


def signer_of(chain: Path) -> dict[str, str]:
    """Return who signs, for a record: names, digest and end of the certificate. Raises InputError."""
    from cryptography.hazmat.primitives.hashes import SHA256

    certificate = _certificates(chain, _read(chain, FIELD))[0]
    with _damage_reported(chain):
        return {
            "signer": _name(certificate.subject),
            "issuer": _name(certificate.issuer),
            "certificate_sha256": certificate.fingerprint(SHA256()).hex(),
            "valid_until": certificate.not_valid_after_utc.isoformat(),
        }


def check_certificates(path: Path, key_path: Path) -> None:
    """Check that certificates are valid, in order, for signing, and of this key.

    Args:
        path: of the chain, the signer's certificate first.

    Raises:
        InputError: they are not.
    """
    chain = _certificates(path, _read(path, FIELD))
    key = _private_key(key_path, _read(key_path, f"{FIELD}_key"))
    with _damage_reported(path):
        _check_chain(path, chain, key_path, key)


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Report damage that the block finds, because a part of a certificate is parsed only when it is asked for."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # cryptography has errors of many kinds for it
        raise InputError(f"{FIELD}: {path}: expected certificates as PEM, got an error ({_reason(error)})") from None


def _check_chain(path: Path, chain: list[Any], key_path: Path, key: Any) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    signer = chain[0]
    now = datetime.now(UTC)
    for certificate in chain:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begin <= now <= end:
            raise InputError(
                f"{FIELD}: {path}: expected certificates that are valid now, got {_name(certificate.subject)!r}, "
                f"valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}; renew it"
            )
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if signer.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise InputError(
            f"{FIELD}_key: {key_path} is not the key of the first certificate in {path}; name the key that "
            "belongs to it, and put the signer's certificate first"
        )
    _algorithm(key_path, key)
    _check_usage(path, signer)
    for certificate, issuer in pairwise(chain):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError):
            raise InputError(
                f"{FIELD}: {path}: expected each certificate to be issued by the next one, but "
                f"{_name(certificate.subject)!r} is not by {_name(issuer.subject)!r}; put them in this order"
            ) from None


def _check_usage(path: Path, signer: Any) -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        may_sign = signer.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    except x509.ExtensionNotFound:
        may_sign = False
    try:
        usages = list(signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = []
    documents = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")  # id-kp-documentSigning
    c2pa = x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")  # id-kp-c2pa-claimSigning
    allowed = {ExtendedKeyUsageOID.EMAIL_PROTECTION, documents, c2pa}
    if not may_sign or not allowed.intersection(usages):
        got = ", ".join(usage._name for usage in usages) or "none"
        raise InputError(
            f"{FIELD}: {path}: expected a certificate with the key usage digitalSignature and an extended key usage "
            f"for emailProtection, documentSigning or C2PA, got {'that' if may_sign else 'another'} and {got}; "
            "have one issued for signing content"
        )


def _certificates(path: Path, pem: bytes) -> list[Any]:
    from cryptography import x509

    with _damage_reported(path):
        return list(x509.load_pem_x509_certificates(pem))


def _private_key(path: Path, pem: bytes) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, None)
    except TypeError:
        raise InputError(f"{FIELD}_key: {path}: expected a key without a password, got one with; remove it") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{FIELD}_key: {path}: expected a private key as PEM, got an error ({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _algorithm(path: Path, key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _ALGORITHMS:
        return _ALGORITHMS[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _LEAST_RSA:
        return "ps256"
    raise InputError(
        f"{FIELD}_key: {path}: expected a key on the curve P-256, P-384 or P-521, Ed25519, or RSA of "
        f"{_LEAST_RSA} bits or more, got another one"
    )


def _name(name: Any) -> str:
    from cryptography.x509.oid import NameOID

    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else str(name.rfc4514_string())


def _read(path: Path, field: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PEM + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{field}: cannot read {path} ({reason}); check the path") from None
    if len(content) > MAX_PEM:
        raise InputError(f"{field}: {path}: expected at most {MAX_PEM} bytes, got more")
    return content
