"""Settings: what may not be is refused with a sentence that says how it may."""

from pathlib import Path

import pytest

from feature_client.errors import RapportError
from feature_client.triton_config import SCORE_MAX_ROWS
from service.server import read_settings
from service.settings import Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert Settings(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org"])
def test_any_other_address_needs_keys(host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAPPORT_HOST", host)

    with pytest.raises(RapportError, match="binds loopback only"):
        read_settings()
    monkeypatch.setenv("RAPPORT_KEYS_FILE", str(tmp_path / "keys.toml"))
    assert read_settings().host == host


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RAPPORT_PORT", "99999", "RAPPORT_PORT: .*65535"),
        ("RAPPORT_AS_OF", "2011-09-01T00:00:00", "RAPPORT_AS_OF: .*time zone"),
        ("RAPPORT_LOG_LEVEL", "loud", "RAPPORT_LOG_LEVEL"),
        ("RAPPORT_DEADLINE_MS", "0", "RAPPORT_DEADLINE_MS"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(RapportError, match=said):
        read_settings()


def test_every_setting_says_how_to_choose() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_no_batch_is_larger_than_a_release_lets_triton_take() -> None:
    assert Settings(max_batch_rows=SCORE_MAX_ROWS).max_batch_rows == SCORE_MAX_ROWS
    with pytest.raises(ValueError, match="max_batch_rows"):
        Settings(max_batch_rows=SCORE_MAX_ROWS + 1)


def test_object_storage_needs_a_place_for_copies(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="RAPPORT_MODELS_CACHE"):
        Settings(models="s3://bucket/models")
    assert Settings(models="s3://bucket/models", models_cache=tmp_path).in_object_storage
    assert not Settings(models="/var/lib/models").in_object_storage
