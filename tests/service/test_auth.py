"""API keys: hashed at rest, scoped, expiring, with a quota."""

import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.auth import Key, Keyring, KeysError, add_key, token_digest
from service.errors import Forbidden, QuotaExceeded, Unauthenticated

DIGEST = token_digest(b"right")
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def keyring(*keys: Key) -> Keyring:
    return Keyring({key.sha256: key for key in keys}, clock=NOW.timestamp)


def test_a_key_opens_its_scopes_and_no_other(tmp_path: Path) -> None:
    token = add_key(tmp_path / "keys.toml", "app", ("predict",))
    ring = Keyring.from_file(tmp_path / "keys.toml")

    assert ring.check(b"Bearer " + token.encode(), "predict") == "app"
    with pytest.raises(Forbidden):
        ring.check(b"Bearer " + token.encode(), "explain")


def test_the_keys_file_holds_a_hash_and_never_the_token(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    token = add_key(path, "app", ("predict",), NOW + timedelta(days=1), 5)

    [entry] = tomllib.loads(path.read_text())["keys"]
    assert entry["sha256"] == token_digest(token.encode())
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_a_second_key_leaves_the_first_one_valid(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    tokens = [add_key(path, name, ("predict",)) for name in ("one", "two")]

    ring = Keyring.from_file(path)
    assert [ring.check(b"Bearer " + token.encode(), "predict") for token in tokens] == ["one", "two"]


@pytest.mark.parametrize("name", ["one", 'a"b\n'])
def test_a_name_is_taken_once_whatever_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "keys.toml"
    add_key(path, name, ("predict",))
    before = path.read_text()

    with pytest.raises(KeysError, match="same name"):
        add_key(path, name, ("predict",))
    assert path.read_text() == before


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic right", b"right"])
def test_anything_but_a_known_key_is_one_and_the_same_error(header: bytes | None) -> None:
    ring = keyring(Key("app", token_digest(b"right"), ("predict",)))

    with pytest.raises(Unauthenticated) as error:
        ring.check(header, "predict")
    assert str(error.value) == ""


def test_a_key_ends_at_its_expiry() -> None:
    ring = keyring(
        Key("old", token_digest(b"old"), ("predict",), expires=NOW),
        Key("new", token_digest(b"new"), ("predict",), expires=NOW + timedelta(seconds=1)),
    )

    assert ring.check(b"Bearer new", "predict") == "new"
    with pytest.raises(Unauthenticated):
        ring.check(b"Bearer old", "predict")


def test_a_quota_refuses_what_is_over_it_and_only_for_its_key() -> None:
    ring = keyring(
        Key("small", token_digest(b"small"), ("predict",), requests_per_second=0.001),
        Key("free", token_digest(b"free"), ("predict",)),
    )

    ring.check(b"Bearer small", "predict")
    with pytest.raises(QuotaExceeded):
        ring.check(b"Bearer small", "predict")
    assert ring.check(b"Bearer free", "predict") == "free"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[keys]", "keys.toml"),
        ('[[keys]]\nname = "a"', "sha256"),
        ('[[keys]]\nname = "a"\nsha256 = "B"\nscopes = []', "sha256"),
        (f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\nscopes = ["root"]', "unknown scopes root"),
        (f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\nscopes = []\nexpires = 2030-01-01T00:00:00', "no time zone"),
        (f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\nscopes = []\nrequests_per_second = nan', "per_second"),
        (f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\nscopes = []\nrequests_per_second = 0.0', "per_second"),
        (
            (
                f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\nscopes = []\n'
                f'[[keys]]\nname = "b"\nsha256 = "{DIGEST}"\nscopes = []'
            ),
            "same sha256",
        ),
    ],
)
def test_a_broken_keys_file_is_said_and_where(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(content)

    with pytest.raises(KeysError, match=said):
        Keyring.from_file(path)


def test_a_new_key_leaves_the_file_to_those_who_could_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    add_key(path, "one", ("predict",))
    path.chmod(0o644)
    add_key(path, "two", ("predict",))

    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in tmp_path.iterdir()] == ["keys.toml"]


def test_a_keys_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be written"):
        add_key(tmp_path / "nowhere" / "keys.toml", "app", ("predict",))


def test_a_missing_keys_file_is_an_error_not_an_open_door(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        Keyring.from_file(tmp_path / "keys.toml")
