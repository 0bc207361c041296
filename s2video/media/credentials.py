"""Content Credentials (C2PA) in MP4, MOV and PNG: a signed statement of who made a file, and how.

The signature is the user's own: a chain of certificates and a private key, as PEM files. Everything is local; no time
stamp is requested, and nothing is downloaded. Needs c2pa-python. Knows files, not what is said about them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError, S2VideoError
from ..system.files import atomic_path
from ..system.json_reader import parse_json
from ..version import __version__
from .certificates import FIELD, check_certificates, read_signer

KINDS = {".mp4": "video/mp4", ".mov": "video/quicktime", ".png": "image/png"}
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
STATEMENT = "org.s2video.generation"  # label of our own assertion


@dataclass(frozen=True)
class Credentials:
    """Whose signature files get.

    Attributes:
        chain: certificates as PEM: the signer's first, then those that issued it.
        key: the signer's private key as PEM, without a password.
    """

    chain: Path
    key: Path


@dataclass(frozen=True)
class Found:
    """The credentials of a file.

    Attributes:
        is_valid: the signature is right, and the file is as it was signed. Whether the signer can be trusted is for
            people to say: certificates of a studio are on no public list.
        problems: codes of C2PA, such as assertion.dataHash.mismatch.
        signer, issuer: names in the certificate.
        source_type: IRI of the kind of source; None if the file does not say.
        statement: our own assertion; empty in files of other programs.
    """

    is_valid: bool
    problems: tuple[str, ...]
    signer: str
    issuer: str
    source_type: str | None
    statement: Mapping[str, Any]


def check_format(suffix: str) -> None:
    """Raise InputError for a format that cannot hold credentials."""
    if suffix not in KINDS:
        kind = suffix.lstrip(".").upper()
        raise InputError(f"{FIELD}: {kind} cannot hold credentials; write {', '.join(KINDS)}, or set it to null")


def check_credentials(credentials: Credentials) -> None:
    """Check that files can be signed, by signing a picture of one pixel.

    Raises:
        InputError: c2pa-python is missing, or certificates or a key that cannot be used.
    """
    _library()
    check_certificates(credentials.chain, credentials.key)
    signed = io.BytesIO()
    try:
        _sign(credentials, {}, "image/png", io.BytesIO(_pixel()), signed)
        signed.seek(0)
        found = _read_stream(signed, "image/png")
    except S2VideoError as error:
        raise InputError(f"{FIELD}: {credentials.chain} cannot sign: {error}; use another certificate") from None
    if not found.is_valid:
        raise InputError(
            f"{FIELD}: {credentials.chain}: expected a certificate for C2PA, got one whose signatures do not verify "
            f"({', '.join(found.problems)}); use another certificate"
        )


def sign_video(path: Path, credentials: Credentials, statement: Mapping[str, Any], *, suffix: str) -> None:
    """Sign a finished file, or each frame in the folder of a sequence, in its place.

    Args:
        path: it may have a temporary name.
        statement: JSON about how it was made.
        suffix: of the format, such as .mp4.

    Raises:
        S2VideoError: it cannot be signed; the file is then as it was.
    """
    files = [file for file in sorted(path.iterdir()) if file.suffix == suffix] if path.is_dir() else [path]
    for file in files:
        with atomic_path(file) as temporary:
            with file.open("rb") as source, temporary.open("w+b") as target:
                _sign(credentials, statement, KINDS[suffix], source, target)
            temporary.chmod(file.stat().st_mode & 0o777)


def read_credentials(path: Path) -> Found | None:
    """Return the credentials of a file, or, of a sequence's folder, the first that is not valid, or else any.

    None: there are none. Without c2pa-python, that cannot be known.

    Raises:
        InputError: c2pa-python is missing, although a file has credentials.
    """
    found = None
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        kind = KINDS.get(file.suffix.lower())
        if kind is None or not _mentions_them(file):
            continue
        found = _read_file(file, kind)
        if not found.is_valid:
            return found
    return found


def _read_file(file: Path, kind: str) -> Found:
    try:
        with file.open("rb") as stream:
            return _read_stream(stream, kind)
    except _library().C2paError as error:
        reason = " ".join(str(error).split())[:200]
        return Found(False, (reason or type(error).__name__,), "", "", None, {})


def _read_stream(stream: Any, kind: str) -> Found:
    library = _library()
    # a file from elsewhere may name an address; nothing is fetched
    offline = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    with (
        closing(library.Context.from_dict(offline)) as context,
        closing(library.Reader(kind, stream, context=context)) as reader,
    ):
        return _found(reader)


def _mentions_them(file: Path) -> bool:
    """Whether a file may have credentials: the label of their box, `c2pa`, in its first or last megabytes."""
    most = 4_000_000
    with file.open("rb") as stream:
        begin = stream.read(most)
        size = file.stat().st_size
        stream.seek(max(0, size - most))
        return b"jumbc2pa" in begin or b"c2pa\0" in begin or b"c2pa\0" in stream.read(most)


def _found(reader: Any) -> Found:
    values = parse_json(reader.json(), "Content Credentials")
    manifest = _mapping(_mapping(values.get("manifests")).get(values.get("active_manifest")))
    results = reader.get_validation_results() or {}
    codes = [failure.get("code", "") for failure in (results.get("activeManifest") or {}).get("failure", [])]
    problems = tuple(code for code in codes if code != "signingCredential.untrusted")
    signature = manifest.get("signature_info") or {}
    # whoever signed a file chose what its assertions hold
    assertions = {str(each.get("label")): _mapping(each.get("data")) for each in _mappings(manifest.get("assertions"))}
    created = [
        action
        for label, data in assertions.items()
        if label.startswith("c2pa.actions")
        for action in _mappings(data.get("actions"))
        if action.get("action") == "c2pa.created"
    ]
    return Found(
        is_valid=reader.get_validation_state() in ("Valid", "Trusted") and not problems,
        problems=problems,
        signer=str(signature.get("common_name", "")),
        issuer=str(signature.get("issuer", "")),
        source_type=created[0].get("digitalSourceType") if created else None,
        statement=assertions.get(STATEMENT, {}),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [_mapping(each) for each in value] if isinstance(value, list) else []


def _sign(credentials: Credentials, statement: Mapping[str, Any], kind: str, source: Any, target: Any) -> None:
    library = _library()
    maker = {"name": "s2video", "version": __version__}
    created = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": maker}
    manifest = {
        "claim_generator_info": [maker],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": STATEMENT, "data": dict(statement)},
        ],
    }
    signs = read_signer(credentials.chain, credentials.key)
    try:
        signer = library.Signer.from_info(library.C2paSignerInfo(*signs, None))
        with closing(signer), closing(library.Builder(json.dumps(manifest))) as builder:
            builder.sign(signer, kind, source, target)
    except library.C2paError as error:
        raise S2VideoError(f"C2PA: {' '.join(str(error).split())[:200]}") from None


def _library() -> ModuleType:
    try:
        return import_module("c2pa")
    except (ImportError, OSError) as error:
        raise InputError(
            f"credentials need c2pa-python, got an error ({error}); pip install 's2video[credentials]'"
        ) from None


def _pixel() -> bytes:
    """Return a PNG of one pixel."""
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    return content.getvalue()
