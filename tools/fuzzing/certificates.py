"""Certificates for tests and fuzzing: an authority, and signers that it issues."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "short RSA": lambda: rsa.generate_private_key(65537, 1024),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}
USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
USAGES += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")


def named(name: str) -> x509.Name:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A studio")
    return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def issue(
    subject: str, key: Any, issuer: str, issuer_key: Any, *, days: tuple[int, int], usage: str, extended: Any, ca: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    usages = {name: name == usage for name in USAGES}
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(**usages), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if extended is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([extended]), critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


def write_signer(
    folder: Path,
    *,
    kind: str = "P-256",
    days: tuple[int, int] = (-1, 30),
    usage: str = "digital_signature",
    extended: Any = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    password: bytes | None = None,
) -> tuple[Path, Path]:
    """Write chain.pem and key.pem of a signer that an authority has issued."""
    folder.mkdir(parents=True, exist_ok=True)
    root, key = KEYS["P-256"](), KEYS[kind]()
    years = (-400, 4000)
    top = issue("An authority", root, "An authority", root, days=years, usage="key_cert_sign", extended=None, ca=True)
    leaf = issue("A signer", key, "An authority", root, days=days, usage=usage, extended=extended, ca=False)
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(leaf.public_bytes(Encoding.PEM) + top.public_bytes(Encoding.PEM))
    closed = NoEncryption() if password is None else BestAvailableEncryption(password)
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, closed))
    return chain, secret
