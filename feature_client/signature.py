"""Signed manifests: checksums find damage, only a signature finds tampering.

Ed25519 over the exact bytes of manifest.json, 64 bytes in manifest.sig. A manifest names the digests of all files, its
model and its version, so nothing of a release can be exchanged, nor the release renamed. Importing this module needs
the extra `signing`; nothing imports it before a key is named.

    openssl pkeyutl -verify -pubin -inkey release.key.pub -rawin -in manifest.json -sigfile manifest.sig
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_client.errors import RapportError

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
        load_pem_public_key,
    )
except ImportError as exc:
    raise RapportError(
        "signatures of releases need cryptography, which is not installed: pip install 'rapport[signing]'"
    ) from exc

SIGNATURE_BYTES = 64
PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class SignatureError(RapportError):
    """A key that cannot be used, or a manifest that no trusted key signed."""


@dataclass(frozen=True, eq=False)
class TrustedKeys:
    """Public keys, of which any may have signed: while keys are exchanged there are two."""

    keys: Sequence[Ed25519PublicKey]

    @classmethod
    def read(cls, path: Path) -> "TrustedKeys":
        """path: PEM with one public key or several. Raises SignatureError."""
        return cls.from_pem(_read(path), str(path))

    @classmethod
    def from_pem(cls, content: bytes, source: str = "the key") -> "TrustedKeys":
        """Raises SignatureError."""
        try:
            found = [load_pem_public_key(match[0]) for match in PEM.finditer(content)]
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise SignatureError(f"{source} is not a PEM file of public keys: {exc}") from exc
        keys = [key for key in found if isinstance(key, Ed25519PublicKey)]
        if not keys or len(keys) < len(found):
            raise SignatureError(f"{source} holds no Ed25519 public key, or one of another kind")
        return cls(keys)

    def check(self, manifest: bytes, signature: bytes) -> None:
        """Raises SignatureError where none of the keys signed these bytes."""
        for key in self.keys:
            try:
                key.verify(signature, manifest)
            except InvalidSignature:
                continue
            return
        raise SignatureError("manifest.json is not signed by a trusted key")


@dataclass(frozen=True, eq=False)
class SigningKey:
    """The private key of a publisher."""

    key: Ed25519PrivateKey

    @classmethod
    def read(cls, path: Path) -> "SigningKey":
        """path: PEM, not encrypted. Raises SignatureError."""
        try:
            key = load_pem_private_key(_read(path), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise SignatureError(f"{path} is not a PEM file of a private key without a password") from exc
        if not isinstance(key, Ed25519PrivateKey):
            raise SignatureError(f"{path} is not an Ed25519 key")
        return cls(key)

    def sign(self, manifest: bytes) -> bytes:
        return self.key.sign(manifest)

    @property
    def trusted(self) -> TrustedKeys:
        return TrustedKeys([self.key.public_key()])


def write_key_pair(path: Path) -> Path:
    """A new private key in `path`, for its owner alone, and its public key beside it, whose path is returned.

    Raises SignatureError, also where one of the files exists: a key that is overwritten is lost.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public_path = path.with_name(f"{path.name}.pub")
    try:
        if public_path.exists():
            raise FileExistsError(None, "File exists", str(public_path))
        for file, content, mode in ((path, private, 0o600), (public_path, public, 0o644)):
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
                opened.write(content)
    except OSError as exc:
        raise SignatureError(f"cannot write the key {exc.filename}: {exc.strerror}") from exc
    return public_path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise SignatureError(f"cannot read the key {path}: {exc.strerror}") from exc
