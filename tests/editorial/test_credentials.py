"""Content Credentials: files are signed before their digest, verified, and refused with certificates that cannot."""

import hashlib
import json
import socket
import ssl
from fractions import Fraction
from pathlib import Path
from typing import Any

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from editing import generate
from fuzzing.certificates import write_signer

from s2video.cli.main import main
from s2video.config.run import build_config
from s2video.errors import InputError
from s2video.media.credentials import (
    SOURCE_TYPE,
    STATEMENT,
    Credentials,
    check_credentials,
    check_format,
    read_credentials,
    sign_video,
)
from s2video.media.formats import VideoSpec
from s2video.media.video import read_video
from s2video.records.identity import job_key
from s2video.records.sidecar_model import read_sidecar


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_signer(tmp_path_factory.mktemp("signer"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, signer: tuple[Path, Path]) -> Path:
    """A folder with x.mp4, x.mov, and the sequence x of a signed run each, and plain.mp4, which is not signed."""
    folder = tmp_path_factory.mktemp("signed")
    chain, key = map(str, signer)
    more = ["--credentials", chain, "--credentials-key", key, "--keep-latents"]
    assert generate(tiny_checkpoint, folder / "x.mp4", *more) == 0
    assert generate(tiny_checkpoint, folder / "mov" / "x.mov", *more, "--set", "output.timecode='01:00:00:00'") == 0
    assert generate(tiny_checkpoint, folder / "png" / "x.png", *more) == 0
    assert generate(tiny_checkpoint, folder / "plain.mp4") == 0
    return folder


FILES = ("x.mp4", "mov/x.mov", "png/x")


@pytest.mark.parametrize("name", FILES)
def test_a_signed_file_says_who_made_it_and_how(name: str, signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = signed / name
    found = read_credentials(path)
    assert found is not None and found.is_valid and found.problems == ()
    assert (found.signer, found.issuer, found.source_type) == ("A signer", "A studio", SOURCE_TYPE)
    sidecar = read_sidecar(path.with_suffix(".json"))
    assert found.statement["seed"] == 0 and found.statement["model"] == sidecar.model
    assert found.statement["method"] == {"name": "S2-Guidance", "cfg_scale": 5.0, "s2_scale": 0.25, "drop_ratio": 0.3}
    assert found.statement["weights_sha256"] == sidecar.weights
    assert found.statement["latents_sha256"] == sidecar.latents.sha256
    assert sidecar.credentials is not None and sidecar.credentials.signer == "A signer"
    assert main(["inspect", str(path)]) == 0  # the digest in the sidecar is that of the signed file
    said = capsys.readouterr().out
    assert "credentials     valid: signed by A signer, issued by A studio, made by a trained model" in said
    assert "unchanged (sha256" in said


@pytest.mark.parametrize("name", ["x.mp4", "mov/x.mov", "png/x/x.1003.png"])
def test_a_flipped_byte_does_not_verify(name: str, signed: Path, tmp_path: Path) -> None:
    content = bytearray((signed / name).read_bytes())
    pictures = content.rindex(b"mdat" if b"mdat" in content else b"IDAT")
    copy = tmp_path / Path(name).name
    copy.write_bytes(content)
    found = read_credentials(copy)
    assert found is not None and found.is_valid  # a copy is as good
    for place in (pictures + 12, content.index(b"A signer"), content.index(b"trainedAlgorithmicMedia")):
        changed = bytearray(content)
        changed[place] ^= 1
        copy.write_bytes(changed)
        found = read_credentials(copy)
        assert found is not None and not found.is_valid and found.problems


def test_a_statement_of_another_kind_is_none(
    signed: Path, signer: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever signs a file chooses what its assertions hold."""
    chain, key = (path.read_bytes() for path in signer)
    info = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, key, None))
    created = {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]}
    assertions = [{"label": "c2pa.actions.v2", "data": created}, {"label": STATEMENT, "data": ["x"]}]
    with (signed / "plain.mp4").open("rb") as source, (tmp_path / "x.mp4").open("w+b") as target:
        c2pa.Builder(json.dumps({"assertions": assertions})).sign(info, "video/mp4", source, target)
    assert main(["inspect", str(tmp_path / "x.mp4")]) == 0
    assert "valid: signed by A signer" in capsys.readouterr().out


def test_inspect_finds_changes_and_reads_files_without_a_sidecar(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((signed / "x.mp4").read_bytes())
    copy = tmp_path / "sent.mp4"
    copy.write_bytes(content)
    assert main(["inspect", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "sent.mp4: no sidecar next to it" in said and "signed by A signer" in said and '"s2_scale": 0.25' in said
    content[content.rindex(b"mdat") + 12] ^= 1
    copy.write_bytes(content)
    assert main(["inspect", str(copy)]) == 1
    assert "its credentials are not valid: assertion.bmffHash.mismatch" in capsys.readouterr().err
    (tmp_path / "sent.json").write_text((signed / "x.json").read_text().replace('"x.mp4"', '"sent.mp4"'))
    assert main(["inspect", str(copy)]) == 1
    assert "credentials: not valid: assertion.bmffHash.mismatch" in capsys.readouterr().err
    copy.write_bytes((signed / "plain.mp4").read_bytes())
    assert main(["inspect", str(copy)]) == 1
    assert "credentials: none: the file has no credentials any more" in capsys.readouterr().err
    (tmp_path / "sent.json").unlink()
    assert main(["inspect", str(copy)]) == 2
    assert "expected its sidecar sent.json next to it, got none" in capsys.readouterr().err


def test_the_pictures_are_those_of_an_unsigned_run(signed: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert (read_video(signed / "x.mp4") == read_video(signed / "plain.mp4")).all()
    assert generate(tiny_checkpoint, tmp_path / "plain.mp4") == 0
    again, before = (hashlib.sha256((f / "plain.mp4").read_bytes()).hexdigest() for f in (tmp_path, signed))
    assert again == before and read_credentials(signed / "plain.mp4") is None
    assert read_sidecar(signed / "plain.json").credentials is None
    first, second = read_sidecar(signed / "x.json"), read_sidecar(signed / "plain.json")
    assert first.latents == second.latents


def test_a_signed_video_is_reproduced_frame_by_frame(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", str(signed / "x.mp4"), "--output", str(tmp_path / "y.mp4"), "--plain"]) == 0
    captured = capsys.readouterr()
    assert "the latents are the same to the bit" in captured.out and "frames" in captured.out
    assert "output.credentials" in captured.err and "a data file may not have anything signed" in captured.err
    assert read_credentials(tmp_path / "y.mp4") is None
    assert read_sidecar(tmp_path / "y.json").credentials is None


def test_saved_latents_are_signed_only_by_the_user(
    signed: Path, signer: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sidecar of the signed video is renewed together with it."""
    latents, files = tmp_path / "x.latents.safetensors", ("x.mp4", "x.json", "x.latents.safetensors")
    for name in files:
        (tmp_path / name).write_bytes((signed / name).read_bytes())
    chain, key = map(str, signer)
    assert main(["decode", str(latents), "--credentials", chain, "--credentials-key", key]) == 0
    found = read_credentials(tmp_path / "x.mp4")
    assert found is not None and found.is_valid and found.statement["seed"] == 0
    assert main(["inspect", str(tmp_path / "x.mp4")]) == 0
    capsys.readouterr()
    assert main(["decode", str(latents)]) == 0
    assert "output.credentials" in capsys.readouterr().err
    assert read_credentials(tmp_path / "x.mp4") is None
    assert main(["inspect", str(tmp_path / "x.mp4")]) == 0
    assert main(["decode", str(latents), "--credentials", chain]) == 2
    assert "expected output.credentials_key too" in capsys.readouterr().err


def test_whether_a_job_is_signed_counts_and_by_whom_does_not() -> None:
    def key(**output: Any) -> str:
        return job_key(build_config({"prompt": "a", "output": output}), {})

    first, second = ({"credentials": name, "credentials_key": "k"} for name in "ab")
    assert key() != key(**first) == key(**second)


@pytest.mark.parametrize("kind", ["P-256", "P-384", "Ed25519", "RSA"])
def test_keys_of_all_kinds(kind: str, tmp_path: Path) -> None:
    check_credentials(Credentials(*write_signer(tmp_path, kind=kind)))


def test_what_is_signed_is_verified_without_a_network(
    signed: Path, signer: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    opened: list[dict[str, Any]] = []
    from_dict = c2pa.Context.from_dict
    monkeypatch.setattr(c2pa.Context, "from_dict", lambda config: (opened.append(config), from_dict(config))[1])
    credentials = read_credentials(signed / "x.mp4")
    assert credentials is not None and credentials.is_valid
    assert opened == [{"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"days": (-30, -1)}, "expected certificates that are valid now, got 'A signer', valid from"),
    "too early": ({"days": (1, 30)}, "expected certificates that are valid now"),
    "wrong usage": ({"usage": "key_encipherment"}, "expected a certificate with the key usage digitalSignature"),
    "wrong extended usage": ({"extended": ExtendedKeyUsageOID.SERVER_AUTH}, "got that and serverAuth"),
    "no extended usage": ({"extended": None}, "got that and none; have one issued for signing content"),
    "password": ({"password": b"secret"}, "expected a key without a password, got one with; remove it"),
    "short key": ({"kind": "short RSA"}, "expected a key on the curve P-256, P-384 or P-521, Ed25519, or RSA of 2048"),
    "another curve": ({"kind": "secp256k1"}, "expected a key on the curve P-256, P-384 or P-521"),
}


@pytest.mark.parametrize("case", WRONG)
def test_certificates_that_cannot_sign(case: str, tmp_path: Path) -> None:
    options, message = WRONG[case]
    with pytest.raises(InputError) as caught:
        check_credentials(Credentials(*write_signer(tmp_path, **options)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    chain, key = write_signer(tmp_path / "a")
    other_chain, other_key = write_signer(tmp_path / "b")

    def refusal(chain: Path, key: Path) -> str:
        with pytest.raises(InputError) as caught:
            check_credentials(Credentials(chain, key))
        return str(caught.value)

    assert "output.credentials: cannot read" in refusal(tmp_path / "c.pem", key)
    assert "output.credentials_key: cannot read" in refusal(chain, tmp_path / "c.pem")
    assert "expected certificates as PEM, got an error" in refusal(key, key)
    assert "expected a private key as PEM, got an error" in refusal(chain, chain)
    first, *_ = x509.load_pem_x509_certificates(chain.read_bytes())
    version = first.public_bytes(Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x0a", 1)
    (tmp_path / "version.pem").write_text(ssl.DER_cert_to_PEM_cert(version))
    assert "expected certificates as PEM, got an error (10 is not a valid" in refusal(tmp_path / "version.pem", key)
    assert "is not the key of the first certificate in" in refusal(chain, other_key)
    mixed = tmp_path / "mixed.pem"
    end = b"-----END CERTIFICATE-----\n"
    mixed.write_bytes(chain.read_bytes().split(end)[0] + end + other_chain.read_bytes().split(end)[1] + end)
    assert "expected each certificate to be issued by the next one, but 'A signer' is not by" in refusal(mixed, key)
    for suffix in (".exr", ".mxf"):
        with pytest.raises(
            InputError, match=f"output.credentials: {suffix[1:].upper()} cannot hold credentials; write"
        ):
            check_format(suffix)
    with pytest.raises(InputError, match=r"EXR cannot hold credentials"):
        VideoSpec(Fraction(24), codec="exr", credentials=Credentials(chain, key))


def test_nothing_is_denoised_with_credentials_that_cannot_sign(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("s2video.engine.engine.Engine.__init__", lambda *_, **__: pytest.fail("an engine"))
    chain, key = map(str, write_signer(tmp_path, days=(-30, -1)))
    signs = ["--credentials", chain, "--credentials-key", key]
    for output, more, message in [
        ("y.mp4", signs, "expected certificates that are valid now"),
        ("y.exr", signs, "EXR cannot hold credentials"),
        ("y.mp4", signs[:2], "expected output.credentials_key too"),
        ("y.mp4", [*signs[:3], str(tmp_path / "no.pem")], "output.credentials_key: cannot read"),
    ]:
        assert generate(tiny_checkpoint, tmp_path / output, *more) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
        assert message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.pem", "key.pem"]


def test_a_signature_that_fails_leaves_the_file(signed: Path, signer: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "x.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(Exception, match="C2PA"):
        sign_video(broken, Credentials(*signer), {}, suffix=".mp4")
    assert broken.read_bytes() == b"no video" and [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    assert json.loads((signed / "x.json").read_text())["credentials"]["issuer"] == "An authority"
