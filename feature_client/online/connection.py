"""How to reach Feast's Redis: its connection string, read without Feast's surprises, and a client with our limits."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from feature_client.errors import RapportError

FORM = "the online store is named as host:port (or unix:/path), with options after commas: 127.0.0.1:6379,db=1,ssl=true"
UNIX = "unix:"


class ConnectionStringError(RapportError):
    """A connection string that cannot be read. The message repeats no part of it: it may hold a password."""


@dataclass(frozen=True)
class Address:
    """Where Redis listens: host and port, or the path of a Unix socket. options: for redis-py."""

    host: str = ""
    port: int = 0
    path: str | None = None
    options: dict[str, Any] = field(default_factory=dict, repr=False)


def parse(text: str) -> Address:
    """Reads `host:port,option=value,...`, or `unix:/path,...`, which Feast itself does not read.

    Raises ConnectionStringError.
    Feast reads every value as JSON where it can, so a password of 1e5 becomes 100000.0; here a password is the text
    as it stands, or a JSON string in quotes, which Feast reads alike.
    """
    address, *options = text.split(",")
    parsed = _options(options)
    if address.startswith(UNIX + "/"):
        if any(name.startswith("ssl") for name in parsed):
            raise ConnectionStringError("a Unix socket of the online store has no options ssl")
        return Address(path=address.removeprefix(UNIX), options=parsed)
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    # A colon left in the host is IPv6; a slash is a URL, for which Feast has no use.
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConnectionStringError(FORM)
    return Address(host, int(port), options=parsed)


def _options(options: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ConnectionStringError(
                "an option of the online store has no `=`: clusters are not read yet, and a password has no comma"
            )
        if name not in OPTIONS:
            raise ConnectionStringError(f"an option of the online store is none of {', '.join(OPTIONS)}")
        try:
            parsed[name] = OPTIONS[name](value)
        except ValueError as exc:
            raise ConnectionStringError(f"the online store's option {name} cannot have that value") from exc
    # Meant for Feast; how long we wait is ours to say.
    for name in TIMEOUTS:
        parsed.pop(name, None)
    return parsed


def connect(address: Address, timeout_s: float) -> "Redis":
    """A client that has not connected yet. timeout_s: of connecting, and of one reply.

    redis-py's own limits are for batch work (59 s on a stalled server). It retries nothing here: the reader does,
    where that cannot make an overload worse.
    """
    return Redis(
        host=address.host,
        port=address.port,
        unix_socket_path=address.path,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        **address.options,
    )


def _text(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return str(json.loads(value))
    return value


def _flag(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError
    return value == "true"


def _whole(value: str) -> int:
    if not value.isdecimal():
        raise ValueError
    return int(value)


TIMEOUTS: dict[str, Callable[[str], Any]] = {"socket_timeout": float, "socket_connect_timeout": float}

OPTIONS: dict[str, Callable[[str], Any]] = {
    "db": _whole,
    "username": _text,
    "password": _text,
    "ssl": _flag,
    "ssl_ca_certs": _text,
    "ssl_cert_reqs": _text,
    "ssl_certfile": _text,
    "ssl_check_hostname": _flag,
    "ssl_keyfile": _text,
    **TIMEOUTS,
}
