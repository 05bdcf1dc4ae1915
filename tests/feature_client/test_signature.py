"""Signed releases: what a trusted key signed is taken, and nothing else."""

import importlib
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from feature_client.errors import RapportError
from feature_client.release import Release, ReleaseError, read_release
from feature_client.signature import SignatureError, SigningKey, TrustedKeys, write_key_pair
from model_export.publish import publish
from model_export.republish import artifacts_of
from tests.feature_client.poison import seal


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    write_key_pair(tmp_path / "release.key")
    return SigningKey.read(tmp_path / "release.key")


@pytest.fixture
def trusted(key: SigningKey, tmp_path: Path) -> TrustedKeys:
    """Read from the file, as an operator does."""
    return TrustedKeys.read(tmp_path / "release.key.pub")


@pytest.fixture
def signed(release: Release, key: SigningKey) -> Release:
    artifacts = artifacts_of(release)
    return publish(release.root, release.contract, artifacts, key)


def test_a_signed_release_is_taken(signed: Release, trusted: TrustedKeys) -> None:
    assert read_release(signed.root, "engagement", 2, trusted).manifest == signed.manifest
    # Who has no key configured takes it, too.
    assert read_release(signed.root, "engagement", 2).manifest == signed.manifest


def test_an_unsigned_release_is_refused_by_name(signed: Release, trusted: TrustedKeys) -> None:
    with pytest.raises(ReleaseError, match=r"release engagement\.1: it is not signed"):
        read_release(signed.root, "engagement", 1, trusted)


def test_a_release_signed_by_somebody_else_is_refused(signed: Release, trusted: TrustedKeys, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "other.key")
    other = SigningKey.read(tmp_path / "other.key")
    manifest = (signed.directory / "manifest.json").read_bytes()
    (signed.directory / "manifest.sig").write_bytes(other.sign(manifest))
    with pytest.raises(ReleaseError, match="not signed by a trusted key"):
        read_release(signed.root, "engagement", 2, trusted)


def test_a_changed_file_is_refused_even_with_checksums_made_anew(signed: Release, trusted: TrustedKeys) -> None:
    signed.card.write_text("Trust me.")
    seal(signed)
    with pytest.raises(ReleaseError, match="not signed by a trusted key"):
        read_release(signed.root, "engagement", 2, trusted)
    read_release(signed.root, "engagement", 2)  # to checksums alone it is a release like any other


def test_one_changed_byte_of_the_manifest_is_refused(signed: Release, trusted: TrustedKeys) -> None:
    file = signed.directory / "manifest.json"
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(ReleaseError, match="not signed by a trusted key"):
        read_release(signed.root, "engagement", 2, trusted)


def test_a_signature_does_not_carry_over_to_another_version(signed: Release, trusted: TrustedKeys) -> None:
    signed.directory.rename(signed.root / "engagement.9")
    (signed.root / signed.graph_name("fast")).rename(signed.root / "engagement.9.explain")
    with pytest.raises(ReleaseError, match=r"its manifest is of engagement\.2"):
        read_release(signed.root, "engagement", 9, trusted)


@pytest.mark.parametrize("signature", [b"", b"x" * 63, b"x" * 64, b"x" * 65, b"x" * 2000])
def test_what_is_no_signature_is_refused(signed: Release, trusted: TrustedKeys, signature: bytes) -> None:
    (signed.directory / "manifest.sig").write_bytes(signature)
    with pytest.raises(ReleaseError, match=r"not signed by a trusted key|manifest\.sig is larger"):
        read_release(signed.root, "engagement", 2, trusted)


def test_while_keys_are_exchanged_both_are_trusted(signed: Release, trusted: TrustedKeys, tmp_path: Path) -> None:
    new = write_key_pair(tmp_path / "new.key")
    both = tmp_path / "trusted.pem"
    both.write_bytes(b"# the new one\n" + new.read_bytes() + (tmp_path / "release.key.pub").read_bytes())
    read_release(signed.root, "engagement", 2, TrustedKeys.read(both))
    with pytest.raises(ReleaseError, match="not signed by a trusted key"):
        read_release(signed.root, "engagement", 2, TrustedKeys.read(new))


def test_a_private_key_is_its_owners_alone_and_no_key_is_overwritten(key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(SignatureError, match="File exists"):
        write_key_pair(path)
    path.rename(tmp_path / "elsewhere")  # its public half is still there
    with pytest.raises(SignatureError, match="File exists"):
        write_key_pair(path)
    assert not path.exists()
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_file_that_holds_no_key_is_named(key: SigningKey, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    elliptic = generate_private_key(SECP256R1()).public_key()
    for content in (
        b"",
        b"nothing",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        (tmp_path / "release.key").read_bytes(),
        elliptic.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        + (tmp_path / "release.key.pub").read_bytes(),
    ):
        wrong.write_bytes(content)
        with pytest.raises(SignatureError, match=r"wrong\.pem"):
            TrustedKeys.read(wrong)
    for content in (b"", (tmp_path / "release.key.pub").read_bytes()):
        wrong.write_bytes(content)
        with pytest.raises(SignatureError, match=r"wrong\.pem"):
            SigningKey.read(wrong)
    for read in (SigningKey.read, TrustedKeys.read):
        with pytest.raises(SignatureError, match="cannot read the key"):
            read(tmp_path / "absent")


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "feature_client.signature")
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(RapportError, match=r"rapport\[signing\]"):
        importlib.import_module("feature_client.signature")
