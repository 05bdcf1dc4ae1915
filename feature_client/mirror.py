"""A model repository in object storage, copied into a directory that everything else takes for the repository.

Both ways the manifest comes last: what is half there has no manifest, so it is no release yet. A copy is verified as
any release is before it gets its name, so what is damaged on the way, or was there, never appears. When the storage
does not answer, the directory stays as it was, and a gateway that starts anew serves what it served before.

The storage is anything that fsspec reads: s3://, gs://, az://, https://, file://. Credentials and endpoints are its own
matter (AWS_ENDPOINT_URL, FSSPEC_S3_..., instance roles). Needs the extra `objects` and the file system of the cloud.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from feature_client.errors import RapportError
from feature_client.release import (
    DIRECTORY_NAME,
    MANIFEST,
    MAX_BYTES,
    RELEASE_NAME,
    SIGNATURE,
    ReleaseError,
    list_versions,
    read_manifest,
    read_release,
    release_directories,
)
from feature_client.routes import MAX_BYTES as MAX_ROUTES_BYTES
from feature_client.routes import Route, read_routes, routes_file

if TYPE_CHECKING:  # needs an extra, and only where a key is configured
    from feature_client.signature import TrustedKeys

ROUTES = "routes.toml"

TIMEOUT_S = 30.0
"""One file or one question. A storage that is slower than this is as good as away."""

RECHECK_S = 60.0
"""How often the manifests are read again while routes.toml stays as it is: a release never changes, so that is only to
notice that somebody changed one, or that another has gone."""

RETRY_FIRST_S = 1.0
"""What was refused or missing is tried again after this, then ever less often, down to RECHECK_S."""


class MirrorError(RapportError):
    """The storage did not answer, or holds something that cannot be taken; the local copies are as they were."""


class Mirror:
    """The local copy of the repository at `url`.

    cache: a directory of this machine; copies of several repositories share it, and so do any number of processes.
    trust: keys of which one must have signed a release. root: what the rest of Rapport is given as the repository.
    """

    def __init__(
        self,
        url: str,
        cache: Path,
        trust: "TrustedKeys | None" = None,
        *,
        timeout_s: float = TIMEOUT_S,
        recheck_s: float = RECHECK_S,
    ) -> None:
        self.store = Store(url, timeout_s)
        self.trust = trust
        self.recheck_s = recheck_s
        self.root = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._problems: dict[str, str] = {}  # release -> why its copy is missing or not the one that is there
        self._verified: set[str] = set()  # copies that this process has looked at
        self._routes = b""
        self._recheck_at = 0.0
        self._retry_s = RETRY_FIRST_S
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise MirrorError(f"cannot write to {self.root}: {exc.strerror}") from exc

    def refresh(self) -> None:
        """Brings routes.toml and the releases that it names, and lets go of copies of what is pruned. Blocks.

        Returns at once where another process is about it. Raises MirrorError, RoutesError: after everything that could
        be taken was, where a release is refused; with nothing changed, where the storage does not answer.
        """
        with self._alone() as alone:
            if alone:
                self._refresh()

    def versions(self, model: str) -> list[int]:
        """Versions in the storage, ascending; not verified. Raises MirrorError."""
        return self.store.versions(model)

    def _refresh(self) -> None:
        try:
            content = self.store.read(ROUTES, MAX_ROUTES_BYTES)
        except FileNotFoundError as exc:
            raise MirrorError(f"no release is published: {self.store} has no {ROUTES}") from exc
        if content != self._routes or time.monotonic() >= self._recheck_at:
            with self._scratch() as scratch:
                routes_file(scratch).write_bytes(content)
                routes = read_routes(scratch)
                self._take_all(routes)
                self._follow(routes, routes_file(scratch))
            self._let_go(routes)
            self._retry_s = RETRY_FIRST_S if content != self._routes else min(2 * self._retry_s, self.recheck_s)
            wait_s = min(self._retry_s, self.recheck_s) if self._problems else self.recheck_s
            self._routes, self._recheck_at = content, time.monotonic() + wait_s
        if self._problems:
            raise MirrorError("; ".join(self._problems.values()))

    def _take_all(self, routes: dict[str, Route]) -> None:
        self._problems = {}
        for model, route in routes.items():
            for version in route.named:
                try:
                    self._take(model, version)
                except (ReleaseError, TooLarge) as exc:
                    self._problems[f"{model}.{version}"] = str(exc)
                except FileNotFoundError as exc:
                    self._problems[f"{model}.{version}"] = f"release {model}.{version} misses a file: {exc}"

    def _take(self, model: str, version: int) -> None:
        """Makes sure of a copy of the release. Raises ReleaseError, TooLarge, FileNotFoundError, MirrorError."""
        name = f"{model}.{version}"
        try:
            manifest = self.store.read(f"{name}/{MANIFEST}", MAX_BYTES[MANIFEST])
        except FileNotFoundError as exc:
            raise ReleaseError(f"release {name} does not exist in {self.store}") from exc
        local = self.root / name / MANIFEST
        if not local.exists():
            self._copy(model, version, manifest)
        elif local.read_bytes() != manifest:
            raise ReleaseError(
                f"release {name} is another one in {self.store} than what was copied from there: "
                "releases do not change, publish it as the next version"
            )
        elif name not in self._verified:
            try:
                read_release(self.root, model, version, self.trust)
            except ReleaseError:  # the disk may fail, too
                self._copy(model, version, manifest)
        self._verified.add(name)

    def _copy(self, model: str, version: int, manifest: bytes) -> None:
        name = f"{model}.{version}"
        with self._scratch() as scratch:

            def write(file: str, content: bytes) -> None:
                (scratch / file).parent.mkdir(parents=True, exist_ok=True)
                (scratch / file).write_bytes(content)

            listed = read_manifest(manifest, name)
            for file in listed.files:
                path = PurePosixPath(file)
                at_most = MAX_BYTES["/".join(path.parts[1:])]
                write(file, self.store.read(file, at_most))
            with suppress(FileNotFoundError):  # not every release is signed
                write(f"{name}/{SIGNATURE}", self.store.read(f"{name}/{SIGNATURE}", MAX_BYTES[SIGNATURE]))
            write(f"{name}/{MANIFEST}", manifest)
            read_release(scratch, model, version, self.trust)
            self._remove(name)  # a damaged copy, or half of one
            for directory in reversed(release_directories(name, listed.explainers)):  # the one with the manifest last
                (scratch / directory).rename(self.root / directory)

    def _follow(self, routes: dict[str, Route], new: Path) -> None:
        """Places routes.toml, unless a champion is not here: then the routes from before are the better ones."""
        absent = [
            f"{model}.{route.champion}"
            for model, route in routes.items()
            if route.champion not in list_versions(self.root, model)
        ]
        if not absent:
            new.replace(routes_file(self.root))

    def _let_go(self, routes: dict[str, Route]) -> None:
        named = {f"{model}.{version}" for model, route in routes.items() for version in route.named}
        matches = (DIRECTORY_NAME.fullmatch(path.name) for path in self.root.iterdir())
        for name in {match[1] for match in matches if match} - named:
            try:
                self.store.find(f"{name}/{MANIFEST}")
            except FileNotFoundError:
                self._remove(name)

    def _remove(self, name: str) -> None:
        self._verified.discard(name)
        with self._scratch() as scratch:
            for directory in release_directories(name):  # the one with the manifest first
                if (self.root / directory).exists():
                    (self.root / directory).rename(scratch / directory)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=self.root) as scratch:
            yield Path(scratch)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process is at it; until the end, none will be. Raises MirrorError for a disk that fails."""
        try:
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                for left in self.root.glob(".scratch-*"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                yield True
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise MirrorError(f"cannot write to {self.root}: {exc}") from exc


class TooLarge(RapportError):
    """A file that is larger than a release's may be; it was not read."""


class Store:
    """Files of the repository at `url`. Every call raises MirrorError, and FileNotFoundError for what is not there."""

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            import fsspec  # type: ignore[import-untyped]  # noqa: PLC0415  (an extra)
        except ImportError as exc:
            raise MirrorError(
                "a model repository in object storage needs fsspec, which is missing: pip install 'rapport[objects]'"
            ) from exc
        self.url = url
        self.timeout_s = timeout_s
        try:
            self._files, self._base = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        except Exception as exc:  # whatever the file system of that cloud makes of its settings
            raise MirrorError(f"cannot open {self}: {exc}") from exc

    def __str__(self) -> str:
        """Without credentials."""
        return re.sub("//[^/@]*@", "//", self.url.partition("?")[0])

    def read(self, path: str, at_most: int) -> bytes:
        """Raises TooLarge, too."""
        size = self.find(path)
        if size <= at_most:
            content: bytes = self._call(self._files.cat_file, self._at(path))
            size = len(content)
        if size > at_most:
            raise TooLarge(f"{self}/{path} is larger than {at_most:,} bytes")
        return content

    def find(self, path: str) -> int:
        """The size in bytes; 0 where the storage does not say. (`exists` of fsspec takes an outage for absence.)"""
        return self._call(self._files.info, self._at(path)).get("size") or 0

    def write(self, path: str, content: bytes, *, mode: str = "overwrite") -> None:
        """mode: `create` fails where the file is there already."""
        if "file" in self._files.protocol:  # the only one that has directories
            self._call(self._files.makedirs, self._at(path).rpartition("/")[0], exist_ok=True)
        self._call(self._files.pipe_file, self._at(path), content, mode=mode)

    def versions(self, model: str) -> list[int]:
        found = []
        for entry in self._call(self._files.ls, self._base, detail=False):
            match = RELEASE_NAME.fullmatch(entry.rstrip("/").rpartition("/")[2])
            if match and match[0] == f"{model}.{int(match[2])}":
                try:
                    self.find(f"{match[0]}/{MANIFEST}")
                except FileNotFoundError:
                    continue
                found.append(int(match[2]))
        return sorted(found)

    def _at(self, path: str) -> str:
        return f"{self._base.rstrip('/')}/{path}"

    def _call(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self._files.async_impl:  # everything that is reached over a network
            options["timeout"] = self.timeout_s
        try:
            return operation(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as exc:  # errors of file systems share no base
            raise MirrorError(f"{self}: {type(exc).__name__}: {exc}") from exc


def push(root: Path, url: str, model: str, version: int, *, timeout_s: float = TIMEOUT_S) -> None:
    """Copies a release of the repository `root` to the one at `url`, the manifest last. A second time does nothing.

    Raises ReleaseError where it is not whole, MirrorError where another release has its number there.
    """
    release = read_release(root, model, version)
    store = Store(url, timeout_s)
    name = release.name
    manifest = (release.directory / MANIFEST).read_bytes()
    try:
        there = store.read(f"{name}/{MANIFEST}", MAX_BYTES[MANIFEST])
    except FileNotFoundError:
        pass
    else:
        if there != manifest:
            raise MirrorError(f"{store} has another {name} already: releases do not change")
        return
    for file in release.manifest.files:
        store.write(file, release.read(file))
    if (signature := release.directory / SIGNATURE).exists():
        store.write(f"{name}/{SIGNATURE}", signature.read_bytes())
    store.write(f"{name}/{MANIFEST}", manifest, mode="create")


def push_routes(root: Path, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
    """Copies routes.toml, once everything it names is there. Raises RoutesError, MirrorError."""
    store = Store(url, timeout_s)
    for model, route in read_routes(root).items():
        for version in route.named:
            try:
                store.find(f"{model}.{version}/{MANIFEST}")
            except FileNotFoundError as exc:
                raise MirrorError(f"{ROUTES} names {model}.{version}, which is not in {store}: push it first") from exc
    store.write(ROUTES, routes_file(root).read_bytes())
