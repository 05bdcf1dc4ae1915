"""A gateway whose releases are in object storage, and who takes signed ones only: through its front door."""

import shutil
from pathlib import Path

import requests

from feature_client.mirror import push, push_routes
from feature_client.release import Release
from feature_client.signature import SigningKey, write_key_pair
from model_export.publish import publish
from model_export.republish import artifacts_of
from tests.service.conftest import Start
from tests.service.test_operations import answered_by, set_champion, until


def ready(url: str) -> dict[str, object]:
    body: dict[str, object] = requests.get(f"{url}/readyz", timeout=5).json()
    return body


def test_it_follows_the_storage_and_outlives_it(
    start: Start, customers: list[str], two_releases: Release, tmp_path: Path
) -> None:
    publisher = Path(shutil.copytree(two_releases.root, tmp_path / "publisher"))
    storage = f"file://{tmp_path}/storage"
    set_champion(publisher, 1)
    push(publisher, storage, "engagement", 1)
    push_routes(publisher, storage)
    url = start(models=storage, models_cache=tmp_path / "cache")
    assert answered_by(url) == "1"

    push(publisher, storage, "engagement", 2)
    set_champion(publisher, 2)
    push_routes(publisher, storage)
    until(lambda: answered_by(url) == "2", "the promotion was not seen")

    (tmp_path / "storage").rename(tmp_path / "away")
    until(lambda: ready(url)["last_reload"] == "failed", "the outage was not reported")
    assert ready(url)["ready"] is True
    assert answered_by(url) == "2"
    assert answered_by(start(models=storage, models_cache=tmp_path / "cache")) == "2"  # a cold start

    (tmp_path / "away").rename(tmp_path / "storage")
    until(lambda: ready(url)["last_reload"] == "ok", "it stays failed")


def test_with_a_key_what_nobody_signed_is_not_promoted(
    start: Start, customers: list[str], release: Release, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(release.root, tmp_path / "models"))
    key = SigningKey.read(write_key_pair(tmp_path / "release.key").with_suffix(""))
    artifacts = artifacts_of(release)
    for signer in (key, None):
        publish(root, release.contract, artifacts, signer)
    set_champion(root, 2)
    url = start(models=root, release_key=tmp_path / "release.key.pub")
    assert answered_by(url) == "2"

    set_champion(root, 3)
    until(lambda: ready(url)["last_reload"] == "failed", "the unsigned release was not refused")
    assert answered_by(url) == "2"
