"""Feast's connection string, without the surprises of reading a password as JSON."""

import pytest

from feature_client.online.connection import ConnectionStringError, connect, parse


@pytest.mark.parametrize(
    ("text", "host", "port", "options"),
    [
        ("127.0.0.1:6379", "127.0.0.1", 6379, {}),
        ("redis.internal:6380,db=3", "redis.internal", 6380, {"db": 3}),
        ("[::1]:6379", "::1", 6379, {}),
        ("h:1,ssl=true,ssl_ca_certs=/etc/ca.pem", "h", 1, {"ssl": True, "ssl_ca_certs": "/etc/ca.pem"}),
        ("h:1,ssl=false,ssl_cert_reqs=none", "h", 1, {"ssl": False, "ssl_cert_reqs": "none"}),
        # Feast waits that long; how long we wait is another setting.
        ("h:1,socket_timeout=5,socket_connect_timeout=0.5", "h", 1, {}),
    ],
)
def test_feasts_form_is_read(text: str, host: str, port: int, options: dict[str, object]) -> None:
    address = parse(text)

    assert (address.host, address.port, address.options) == (host, port, options)


def test_a_unix_socket_has_a_path() -> None:
    address = parse("unix:/run/redis.sock,db=2")

    assert (address.path, address.options) == ("/run/redis.sock", {"db": 2})


@pytest.mark.parametrize(
    ("written", "password"),
    [
        ("12345", "12345"),
        ("1e5", "1e5"),
        ("true", "true"),
        ("007", "007"),
        ('"1e5"', "1e5"),
        ("a=b", "a=b"),
        ('"', '"'),
    ],
)
def test_a_password_is_its_text(written: str, password: str) -> None:
    assert parse(f"h:1,username=me,password={written}").options == {"username": "me", "password": password}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h",
        ":6379",
        "h:",
        "h:x",
        "h:0",
        "h:65536",
        "redis://h:6379",
        "h:1,other:2",
        "h:1,password=secret,canary",
        "h:1,password=secret,canary=x",
        "h:1,db=secret",
        "h:1,ssl=secret",
        'h:1,password="secret"canary"',
        "h:1,retry=secret",
        "unix:",
        "unix:relative",
        "unix:/run/redis.sock,ssl=true",
    ],
)
def test_anything_else_is_refused_in_a_sentence_without_its_values(text: str) -> None:
    with pytest.raises(ConnectionStringError) as caught:
        parse(text)

    assert "secret" not in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_password_is_in_no_repr() -> None:
    address = parse("h:1,password=secret")

    assert "secret" not in repr(address)
    assert "secret" not in repr(connect(address, 0.05))
