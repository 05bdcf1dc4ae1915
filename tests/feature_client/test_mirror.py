"""A repository in object storage: what is whole there is here, what is not never is, and an outage changes nothing."""

import fcntl
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from feature_client.mirror import Mirror, MirrorError, Store, push, push_routes
from feature_client.release import Release, list_versions, read_release
from feature_client.routes import RoutesError, read_routes
from feature_client.signature import SigningKey, write_key_pair
from model_export.publish import publish
from model_export.republish import artifacts_of
from tests.feature_client.poison import seal
from tests.feature_client.storages import KINDS, NETWORK, Storage, require, s3_server, storage_of, web_server
from tests.model_export.tiny_release import with_explainers

GRAPHS = ("engagement.2.explain/1/model.onnx", "engagement.2.explain_exact/1/model.onnx")


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    require("s3")
    with s3_server():
        yield


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    require(request.param)
    if request.param == "s3":
        request.getfixturevalue("s3")
    with storage_of(request.param, tmp_path / "storage") as storage:
        yield storage


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Storage]:
    """For what does not depend on the kind of storage."""
    with storage_of("file", tmp_path / "storage") as storage:
        yield storage


@pytest.fixture
def repository(release: Release) -> Path:
    """Of the publisher: versions 1 and 2, of which 1 is the champion."""
    publish_again(release)
    return release.root


def publish_again(release: Release, key: SigningKey | None = None) -> Release:
    artifacts = artifacts_of(release)
    return publish(release.root, release.contract, artifacts, key)


def route(root: Path, line: str) -> None:
    (root / "routes.toml").write_text(f"[engagement]\n{line}\n")


def mirror_of(storage: Storage, tmp_path: Path) -> Mirror:
    """One that looks at everything every time."""
    return Mirror(storage.url, tmp_path / "cache", recheck_s=0.0)


def flip(storage: Storage, path: str) -> None:
    content = bytearray(storage.read(path))
    content[len(content) // 2] ^= 1
    storage.write(path, bytes(content))


def test_what_is_pushed_is_mirrored_and_not_loaded_again(storage: Storage, repository: Path, tmp_path: Path) -> None:
    push(repository, storage.target, "engagement", 1)
    push(repository, storage.target, "engagement", 2)
    push_routes(repository, storage.target)
    mirror = mirror_of(storage, tmp_path)
    mirror.refresh()

    assert read_routes(mirror.root) == read_routes(repository)
    assert list_versions(mirror.root, "engagement") == [1]  # what routes.toml names
    assert mirror.versions("engagement") == [1, 2]
    assert mirror.versions("engage") == []
    assert read_release(mirror.root, "engagement", 1).manifest == read_release(repository, "engagement", 1).manifest

    flip(storage, "engagement.1/1/model.onnx")  # nobody looks: it would be refused
    mirror.refresh()
    mirror_of(storage, tmp_path).refresh()
    read_release(mirror.root, "engagement", 1)

    route(repository, "champion = 2\nprevious = 1")
    push_routes(repository, storage.target)
    mirror.refresh()
    assert list_versions(mirror.root, "engagement") == [1, 2]
    assert read_routes(mirror.root)["engagement"].champion == 2


def test_a_new_route_is_seen_at_once_and_manifests_only_now_and_then(
    local: Storage, repository: Path, tmp_path: Path
) -> None:
    push(repository, local.url, "engagement", 1)
    push(repository, local.url, "engagement", 2)
    push_routes(repository, local.url)
    mirror = Mirror(local.url, tmp_path / "cache", recheck_s=3_600)
    mirror.refresh()
    local.write("engagement.1/manifest.json", b"changed")
    mirror.refresh()

    route(repository, "champion = 2")
    push_routes(repository, local.url)
    mirror.refresh()
    assert read_routes(mirror.root)["engagement"].champion == 2


def test_a_half_uploaded_release_is_none_until_its_manifest_comes(
    storage: Storage, repository: Path, tmp_path: Path
) -> None:
    push(repository, storage.target, "engagement", 1)
    push_routes(repository, storage.target)
    mirror = mirror_of(storage, tmp_path)
    mirror.refresh()
    push(repository, storage.target, "engagement", 2)
    manifest = storage.read("engagement.2/manifest.json")
    storage.remove("engagement.2/manifest.json")
    storage.write("routes.toml", b"[engagement]\nchampion = 2\n")
    with pytest.raises(MirrorError, match=r"release engagement\.2 does not exist in"):
        mirror.refresh()
    assert list_versions(mirror.root, "engagement") == [1]
    assert read_routes(mirror.root)["engagement"].champion == 1  # the route from before is the better one

    storage.write("engagement.2/manifest.json", manifest)
    mirror.refresh()
    assert list_versions(mirror.root, "engagement") == [1, 2]
    assert read_routes(mirror.root)["engagement"].champion == 2


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("damage", ["a flipped byte", "a missing file", "an empty file"])
def test_a_damaged_release_never_appears_and_is_taken_once_it_is_mended(
    local: Storage, repository: Path, tmp_path: Path, damage: str, graph: str
) -> None:
    before = damaged(local, repository, graph)
    if damage == "a flipped byte":
        flip(local, graph)
    elif damage == "a missing file":
        local.remove(graph)
    else:
        local.write(graph, b"")
    refused_until_mended(local, tmp_path, graph, before)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    storage: Storage, repository: Path, tmp_path: Path
) -> None:
    card = "engagement.2/card.md"
    before = damaged(storage, repository, card)
    storage.write(card, b"x" * (5 * 2**20))
    refused_until_mended(storage, tmp_path, card, before)


def damaged(storage: Storage, repository: Path, file: str) -> bytes:
    """A storage with both versions, of which the champion is to be damaged; what the file holds before it is."""
    push(repository, storage.target, "engagement", 1)
    push(repository, storage.target, "engagement", 2)
    storage.write("routes.toml", b"[engagement]\nchampion = 2\nprevious = 1\n")
    return storage.read(file)


def refused_until_mended(storage: Storage, tmp_path: Path, file: str, content: bytes) -> None:
    mirror = mirror_of(storage, tmp_path)
    with pytest.raises(MirrorError, match=r"is damaged|misses a file|is larger than") as refused:
        mirror.refresh()
    assert file in str(refused.value)
    assert list_versions(mirror.root, "engagement") == [1]
    assert not list(mirror.root.glob("engagement.2*"))
    assert not (mirror.root / "routes.toml").exists()

    storage.write(file, content)
    mirror.refresh()
    read_release(mirror.root, "engagement", 2)
    assert read_routes(mirror.root)["engagement"].champion == 2


def test_a_poisoned_release_is_refused_before_it_is_here(local: Storage, repository: Path, tmp_path: Path) -> None:
    push(repository, local.url, "engagement", 1)
    push_routes(repository, local.url)
    poisoned = read_release(repository, "engagement", 1)
    (poisoned.directory / "config.pbtxt").write_text('name: "engagement.1"\nbackend: "python"\n')
    seal(poisoned)
    for file in ("config.pbtxt", "manifest.json"):
        local.write(f"engagement.1/{file}", (poisoned.directory / file).read_bytes())
    mirror = mirror_of(local, tmp_path)
    with pytest.raises(MirrorError, match="backend is not onnxruntime"):
        mirror.refresh()
    assert list_versions(mirror.root, "engagement") == []


def test_a_broken_shadow_keeps_no_champion_away(local: Storage, repository: Path, tmp_path: Path) -> None:
    push(repository, local.url, "engagement", 1)
    local.write("routes.toml", b"[engagement]\nchampion = 1\nshadow = [7]\n")
    mirror = mirror_of(local, tmp_path)
    with pytest.raises(MirrorError, match=r"engagement\.7 does not exist"):
        mirror.refresh()
    assert read_routes(mirror.root)["engagement"].shadow == (7,)
    read_release(mirror.root, "engagement", 1)


def test_a_release_that_was_changed_is_noticed_and_refused(storage: Storage, repository: Path, tmp_path: Path) -> None:
    push(repository, storage.target, "engagement", 1)
    push_routes(repository, storage.target)
    mirror = mirror_of(storage, tmp_path)
    mirror.refresh()
    before = read_release(mirror.root, "engagement", 1)
    storage.write("engagement.1/manifest.json", storage.read("engagement.1/manifest.json") + b"\n")
    for _ in range(2):  # it is not forgotten
        with pytest.raises(MirrorError, match=r"engagement\.1 is another one in"):
            mirror.refresh()
    assert read_release(mirror.root, "engagement", 1).manifest == before.manifest


def test_copies_of_pruned_releases_are_let_go(storage: Storage, repository: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        push(repository, storage.target, "engagement", version)
    storage.write("routes.toml", b"[engagement]\nchampion = 2\nprevious = 1\n")
    mirror = mirror_of(storage, tmp_path)
    mirror.refresh()
    storage.write("routes.toml", b"[engagement]\nchampion = 2\n")
    mirror.refresh()
    assert list_versions(mirror.root, "engagement") == [1, 2]  # it is still there, so a rollback finds it here

    storage.remove("engagement.1")
    mirror.refresh()
    assert list_versions(mirror.root, "engagement") == [2]
    assert not [path for path in mirror.root.iterdir() if path.name.startswith(("engagement.1", ".scratch"))]


def test_releases_are_mirrored_with_the_explainers_that_each_has(
    local: Storage, release: Release, tmp_path: Path
) -> None:
    fast = with_explainers(release, release.root, ["fast"])
    for version in (1, 2):
        push(release.root, local.url, "engagement", version)
    local.write("routes.toml", b"[engagement]\nchampion = 1\nprevious = 2\n")
    mirror = mirror_of(local, tmp_path)
    mirror.refresh()

    for one in (release, fast):
        there = read_release(mirror.root, "engagement", int(one.version))
        assert there.manifest.explainers == one.manifest.explainers
        assert [graph.read() for graph in there.graphs()] == [graph.read() for graph in one.graphs()]
    assert {path.name for path in mirror.root.iterdir() if path.is_dir()} == {*release.graph_names, *fast.graph_names}


def test_what_a_killed_copy_left_of_an_explainer_is_in_nobodys_way(
    local: Storage, release: Release, tmp_path: Path
) -> None:
    """The directory of an explainer that the release does not have, and one of a release that is gone."""
    with_explainers(release, release.root, ["fast"])
    push(release.root, local.url, "engagement", 2)
    local.write("routes.toml", b"[engagement]\nchampion = 2\n")
    mirror = mirror_of(local, tmp_path)
    for left in ("engagement.2.explain_exact", "engagement.1.explain_exact"):
        shutil.copytree(release.root / "engagement.1.explain_exact", mirror.root / left)

    mirror.refresh()

    assert read_release(mirror.root, "engagement", 2).graph_names == ("engagement.2", "engagement.2.explain")
    assert {path.name for path in mirror.root.iterdir() if path.is_dir()} == {"engagement.2", "engagement.2.explain"}


def test_a_copy_with_more_explainers_than_its_manifest_names_is_made_anew(
    local: Storage, release: Release, tmp_path: Path
) -> None:
    with_explainers(release, release.root, ["fast"])
    push(release.root, local.url, "engagement", 2)
    local.write("routes.toml", b"[engagement]\nchampion = 2\n")
    mirror_of(local, tmp_path).refresh()
    mirror = mirror_of(local, tmp_path)
    shutil.copytree(release.root / "engagement.1.explain_exact", mirror.root / "engagement.2.explain_exact")

    mirror.refresh()

    assert read_release(mirror.root, "engagement", 2).version == "2"


def test_the_manifest_is_pushed_after_every_file_of_every_explainer(
    local: Storage, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever dies at it leaves no release."""
    write, written = Store.write, []

    def noted(store: Store, path: str, content: bytes, *, mode: str = "overwrite") -> None:
        written.append(path)
        write(store, path, content, mode=mode)

    monkeypatch.setattr(Store, "write", noted)
    push(release.root, local.url, "engagement", 1)

    assert written[-1] == "engagement.1/manifest.json"
    assert sorted(written[:-1]) == sorted(release.manifest.files)
    assert {path.split("/")[0] for path in written} == set(release.graph_names)


@pytest.mark.parametrize("kind", NETWORK)
def test_an_outage_changes_nothing_and_a_cold_start_has_what_was_there(
    kind: str, repository: Path, tmp_path: Path
) -> None:
    require(kind)
    with s3_server() if kind == "s3" else nullcontext() as s3:
        with storage_of(kind, tmp_path / "storage") as storage:
            push(repository, storage.target, "engagement", 1)
            push_routes(repository, storage.target)
            mirror = Mirror(storage.url, tmp_path / "cache", timeout_s=2.0, recheck_s=0.0)
            mirror.refresh()
        if s3 is not None:
            s3.kill()
            s3.wait()
        cold = Mirror(storage.url, tmp_path / "cache", timeout_s=2.0)
        for one in (mirror, cold):
            with pytest.raises(MirrorError):
                one.refresh()
            assert read_routes(one.root)["engagement"].champion == 1
            read_release(one.root, "engagement", 1)


def test_a_storage_that_accepts_and_says_nothing_is_an_outage(tmp_path: Path) -> None:
    require("http")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}/models"
        mirror = Mirror(url, tmp_path / "cache", timeout_s=0.3)
        with pytest.raises(MirrorError, match="Timeout") as failed:
            mirror.refresh()
        assert "secret" not in str(failed.value)


def test_an_empty_storage_and_routes_that_cannot_be_read_are_named(
    local: Storage, repository: Path, tmp_path: Path
) -> None:
    mirror = mirror_of(local, tmp_path)
    with pytest.raises(MirrorError, match="no release is published"):
        mirror.refresh()
    push(repository, local.url, "engagement", 1)
    push_routes(repository, local.url)
    mirror.refresh()
    local.write("routes.toml", b"[engagement")
    with pytest.raises(RoutesError):
        mirror.refresh()
    local.remove("routes.toml")
    with pytest.raises(MirrorError, match="no release is published"):
        mirror.refresh()
    assert read_routes(mirror.root)["engagement"].champion == 1


def test_a_copy_that_the_disk_damaged_is_made_anew(local: Storage, repository: Path, tmp_path: Path) -> None:
    push(repository, local.url, "engagement", 1)
    push_routes(repository, local.url)
    mirror_of(local, tmp_path).refresh()
    mirror = mirror_of(local, tmp_path)
    (mirror.root / "engagement.1" / "1" / "model.onnx").write_bytes(b"")
    mirror.refresh()
    read_release(mirror.root, "engagement", 1)


def test_many_processes_share_one_cache(local: Storage, repository: Path, tmp_path: Path) -> None:
    push(repository, local.url, "engagement", 1)
    push(repository, local.url, "engagement", 2)
    push_routes(repository, local.url)
    mirrors = [mirror_of(local, tmp_path) for _ in range(4)]  # locks are between mirrors, in one process as in many

    def refresh(mirror: Mirror) -> None:
        for _ in range(20):
            mirror.refresh()
            if (mirror.root / "routes.toml").exists():
                for version in list_versions(mirror.root, "engagement"):
                    read_release(mirror.root, "engagement", version)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(refresh, mirror) for mirror in mirrors]
        route(repository, "champion = 2\nprevious = 1")
        push_routes(repository, local.url)
        for each in running:
            each.result()
    mirrors[0].refresh()
    assert list_versions(mirrors[0].root, "engagement") == [1, 2]
    assert not list(mirrors[0].root.glob(".scratch-*"))


def test_one_process_copies_and_the_others_do_not_wait(local: Storage, repository: Path, tmp_path: Path) -> None:
    push(repository, local.url, "engagement", 1)
    push_routes(repository, local.url)
    mirror = mirror_of(local, tmp_path)
    (mirror.root / ".scratch-left").mkdir()  # by a process that was killed
    with (mirror.root / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        mirror.refresh()
        assert not (mirror.root / "routes.toml").exists()
    mirror.refresh()
    assert (mirror.root / "routes.toml").exists()
    assert not (mirror.root / ".scratch-left").exists()


def test_with_a_key_only_signed_releases_are_taken(local: Storage, release: Release, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "key")
    key = SigningKey.read(tmp_path / "key")
    publish_again(release, key)
    for version in (1, 2):
        push(release.root, local.url, "engagement", version)
    local.write("routes.toml", b"[engagement]\nchampion = 2\nprevious = 1\n")
    mirror = Mirror(local.url, tmp_path / "cache", key.trusted)
    with pytest.raises(MirrorError, match=r"engagement\.1: it is not signed"):
        mirror.refresh()
    assert list_versions(mirror.root, "engagement") == [2]
    read_release(mirror.root, "engagement", 2, key.trusted)


def test_a_number_that_is_taken_in_the_storage_is_refused(storage: Storage, release: Release, tmp_path: Path) -> None:
    push(release.root, storage.target, "engagement", 1)
    push(release.root, storage.target, "engagement", 1)  # the same once more is no error
    seal(release, created_at="2026-01-01T00:00:00Z")
    with pytest.raises(MirrorError, match=r"has another engagement\.1 already"):
        push(release.root, storage.target, "engagement", 1)


def test_routes_are_pushed_after_what_they_name(storage: Storage, release: Release) -> None:
    with pytest.raises(MirrorError, match=r"names engagement\.1, which is not in"):
        push_routes(release.root, storage.target)
    push(release.root, storage.target, "engagement", 1)
    push_routes(release.root, storage.target)


def test_what_cannot_be_written_to_is_named(release: Release, tmp_path: Path) -> None:
    require("http")
    with web_server(tmp_path) as url, pytest.raises(MirrorError):
        push(release.root, url, "engagement", 1)


def test_an_unknown_kind_of_storage_and_a_missing_library_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MirrorError, match="nowhere"):
        Mirror("nowhere://models", tmp_path)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MirrorError, match=r"rapport\[objects\]"):
        Mirror("memory://models", tmp_path)
