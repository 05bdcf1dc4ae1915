"""API keys: long random tokens, kept as SHA-256, with a name, scopes, an expiry and a quota."""

import secrets
import stat
import time
import tomllib
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from feature_client.clock import Clock, wall_clock
from feature_client.errors import RapportError
from service.errors import Forbidden, QuotaExceeded, Unauthenticated

SCOPES = ("predict", "explain", "admin")
TOKEN_PREFIX = "rk_"  # noqa: S105  (lets secret scanners find a leaked key; not a secret itself)


class KeysError(RapportError):
    """A keys file that cannot be read; the message says where."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """sha256: hex digest of the token. requests_per_second: quota with bursts of one second; null is none."""

    name: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[str, ...]
    expires: datetime | None = None
    requests_per_second: Annotated[float, Meta(gt=0, le=1e9)] | None = None


class _KeysFile(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Key]


class TokenBucket:
    """`rate` requests a second, saved up for at most one second (at least one request)."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.capacity = max(rate, 1.0)
        self.tokens = self.capacity
        self.filled_at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.tokens = min(self.capacity, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Keyring:
    """Who may ask what. Without keys everyone may ask everything: settings then bind loopback only."""

    def __init__(self, keys: Mapping[str, Key] | None, clock: Clock = wall_clock) -> None:
        self.keys = keys
        self.by_name = {key.name: key for key in (keys or {}).values()}
        self.clock = clock
        self.buckets = {
            digest: TokenBucket(key.requests_per_second)
            for digest, key in (keys or {}).items()
            if key.requests_per_second is not None
        }

    @classmethod
    def from_file(cls, path: Path) -> "Keyring":
        """Raises KeysError, naming the file and the place."""
        try:
            keys = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _KeysFile).keys
        except OSError as exc:
            raise KeysError(f"the keys file {path} cannot be read: {exc.strerror}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as exc:
            raise KeysError(f"the keys file {path}: {exc}") from exc
        for key in keys:
            if unknown := sorted(set(key.scopes) - set(SCOPES)):
                raise KeysError(f"the keys file {path}: key {key.name!r} has unknown scopes {', '.join(unknown)}")
            if key.expires is not None and key.expires.tzinfo is None:
                raise KeysError(f"the keys file {path}: the expiry of key {key.name!r} has no time zone")
        for field in ("name", "sha256"):
            if len({getattr(key, field) for key in keys}) < len(keys):
                raise KeysError(f"the keys file {path}: two keys have the same {field}")
        return cls({key.sha256: key for key in keys})

    def check(self, authorization: bytes | None, scope: str) -> str:
        """authorization: the header. Returns the key's name. Raises Unauthenticated, Forbidden, QuotaExceeded."""
        if self.keys is None:
            return "anonymous"
        kind, _, token = (authorization or b"").partition(b" ")
        # Looking up the hash, not the token, leaves nothing to learn from how long a comparison takes.
        digest = token_digest(token)
        key = self.keys.get(digest)
        if kind.lower() != b"bearer" or key is None or (key.expires and key.expires.timestamp() <= self.clock()):
            raise Unauthenticated
        if scope not in key.scopes:
            raise Forbidden(f"this needs the scope {scope}")
        bucket = self.buckets.get(digest)
        if bucket is not None and not bucket.take():
            raise QuotaExceeded
        return key.name

    def require(self, name: str | None, scope: str) -> None:
        """For a second scope of a request that was let in. Raises Forbidden."""
        if self.keys is not None and (name is None or scope not in self.by_name[name].scopes):
            raise Forbidden(f"this needs the scope {scope}")


def token_digest(token: bytes) -> str:
    return sha256(token).hexdigest()


def add_key(
    path: Path, name: str, scopes: tuple[str, ...], expires: datetime | None = None, rate: float | None = None
) -> str:
    """Adds a new key to the keys file and returns its token, which is not kept anywhere. Raises KeysError."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    lines = [
        "[[keys]]",
        f"name = {_toml(name)}",
        f"sha256 = {_toml(token_digest(token.encode()))}",
        f"scopes = {_toml(scopes)}",
    ]
    if expires is not None:
        lines.append(f"expires = {expires.isoformat(timespec='seconds')}")
    if rate is not None:
        lines.append(f"requests_per_second = {float(rate)}")
    staged = path.with_name(path.name + ".new")
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        # Nobody else's business at first; who may read an existing file may go on reading it.
        staged.touch(mode=0o600)
        if path.exists():
            staged.chmod(stat.S_IMODE(path.stat().st_mode))
        staged.write_text(before + ("\n" if before else "") + "\n".join(lines) + "\n", encoding="utf-8")
        Keyring.from_file(staged)
        staged.replace(path)
    except OSError as exc:
        raise KeysError(f"the keys file {path} cannot be written: {exc.strerror}") from exc
    finally:
        staged.unlink(missing_ok=True)
    return token


def _toml(value: object) -> str:
    # JSON strings and arrays of them are TOML as well.
    return msgspec.json.encode(value).decode()
