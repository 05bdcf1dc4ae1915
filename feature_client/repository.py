"""The model repository as a whole: what lies in it, what routes name, and how releases leave it."""

import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import msgspec

from feature_client.durable import sync
from feature_client.errors import RapportError
from feature_client.release import (
    DIRECTORY_NAME,
    MANIFEST,
    RELEASE_NAME,
    SIGNATURE,
    Manifest,
    read_release,
    release_directories,
)
from feature_client.routes import Route, RoutesError, locked, read_routes, routes_file

LEFTOVER_AGE_S = 3_600.0
"""A publisher copies a few megabytes: what it has not touched for so long, it will not finish."""

SCRATCH = (".staging-", ".routes.toml-")
"""How the names of unfinished files and directories begin."""


class RepositoryError(RapportError):
    """A repository that is not there, or from which something cannot be removed."""


@dataclass(frozen=True)
class Listed:
    """A published release, or one that a route names and that is not there. Its files were not verified.

    manifest: None where it is not there, or cannot be read, as `problem` says. size: bytes of all its directories.
    """

    model: str
    version: int
    roles: tuple[str, ...]
    manifest: Manifest | None
    problem: str | None
    signed: bool
    size: int

    @property
    def name(self) -> str:
        return f"{self.model}.{self.version}"


@dataclass(frozen=True)
class Leftover:
    """What a publisher that was killed has left, or one that is at work: age_s is the time since its last change."""

    name: str
    size: int
    age_s: float


@dataclass(frozen=True)
class Inventory:
    routes: Mapping[str, Route]
    releases: tuple[Listed, ...]
    leftovers: tuple[Leftover, ...]


@dataclass(frozen=True)
class Pruning:
    """What may go, or has gone."""

    releases: tuple[Listed, ...]
    leftovers: tuple[Leftover, ...]

    @property
    def names(self) -> list[str]:
        return [*(listed.name for listed in self.releases), *(leftover.name for leftover in self.leftovers)]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(listed.size for listed in self.releases) + sum(leftover.size for leftover in self.leftovers)


def take_inventory(root: Path, model: str | None = None) -> Inventory:
    """Of one model, or of all; without a routes.toml nothing is routed. Raises RoutesError, RepositoryError."""
    if not root.is_dir():
        raise RepositoryError(f"there is no model repository at {root}")
    everything = read_routes(root) if routes_file(root).exists() else {}
    routes = {name: route for name, route in everything.items() if model in (None, name)}
    published = {key for key in _published(root) if model in (None, key[0])}
    named = {(name, version) for name, route in routes.items() for version in route.named}
    return Inventory(
        routes,
        tuple(_listed(root, *key, routes.get(key[0])) for key in sorted(published | named)),
        tuple(_leftovers(root, model)),
    )


def roles(route: Route | None, version: int) -> tuple[str, ...]:
    """What a route has the version for, the most important first."""
    if route is None:
        return ()
    canary = route.canary
    found = (
        ("champion", version == route.champion),
        (f"canary {canary.percent:g} %" if canary else "", canary is not None and version == canary.version),
        ("shadow", version in route.shadow),
        ("previous", version == route.previous),
        ("standby", version in route.standby),
    )
    return tuple(role for role, holds in found if holds)


def promote(root: Path, model: str, route: Route | None, version: int) -> Route:
    """The route with another champion. One that is damaged does not become the previous one: every gateway would try
    to load it, and say that it failed."""
    if route is None:
        return Route(version)
    promoted = route.promoted(version)
    if promoted.previous == route.champion and not _is_whole(root, model, route.champion):
        before = route.previous if route.previous != version else None
        return msgspec.structs.replace(promoted, previous=before)
    return promoted


def prunable(root: Path, model: str | None, keep: int) -> Pruning:
    """What no route names, less the newest `keep` of each model; and old leftovers. Raises RoutesError."""
    if not routes_file(root).exists():
        raise RoutesError(f"{routes_file(root)} does not exist, so nothing says which releases are in use")
    inventory = take_inventory(root, model)
    going: list[Listed] = []
    for _, releases in groupby(inventory.releases, key=lambda listed: listed.model):
        idle = [listed for listed in releases if not listed.roles]
        going += idle[: max(len(idle) - keep, 0)]
    return Pruning(tuple(going), tuple(left for left in inventory.leftovers if left.age_s > LEFTOVER_AGE_S))


def prune(root: Path, pruning: Pruning) -> Pruning:
    """Removes it, but for what has been routed, or finished, since; returns what is gone.

    What another command has removed meanwhile is not among that.

    The manifest goes first: a release that is half gone is not listed. A number is never free again: the directory of
    the newest one stays, empty. Raises RoutesError, RepositoryError.
    """
    releases, leftovers = [], []
    with locked(root):
        named = {(model, version) for model, route in read_routes(root).items() for version in route.named}
        old = {left.name for left in _leftovers(root, None) if left.age_s > LEFTOVER_AGE_S}
        try:
            for listed in pruning.releases:
                if (listed.model, listed.version) not in named and (root / listed.name / MANIFEST).exists():
                    (root / listed.name / MANIFEST).unlink(missing_ok=True)
                    sync(root / listed.name)
                    _clear(root, listed.name)
                    releases.append(listed)
            for leftover in pruning.leftovers:
                if leftover.name in old:
                    _clear(root, leftover.name)
                    leftovers.append(leftover)
        except OSError as exc:
            raise RepositoryError(f"cannot remove {exc.filename or root}: {exc.strerror or exc}") from exc
    return Pruning(tuple(releases), tuple(leftovers))


def _published(root: Path) -> Iterator[tuple[str, int]]:
    for manifest in root.glob(f"*/{MANIFEST}"):
        if found := _release_of(manifest.parent.name):
            yield found


def _release_of(name: str) -> tuple[str, int] | None:
    match = RELEASE_NAME.fullmatch(name)
    # engagement.03 is not what a publisher makes: it would be taken for engagement.3.
    return (match[1], int(match[2])) if match and str(int(match[2])) == match[2] else None


def _listed(root: Path, model: str, version: int, route: Route | None) -> Listed:
    directory = root / f"{model}.{version}"
    manifest, problem = None, None
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        problem = "not there"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError):
        problem = "manifest.json cannot be read"
    return Listed(
        model,
        version,
        roles(route, version),
        manifest,
        problem,
        signed=(directory / SIGNATURE).exists(),
        size=_size(_directories(root, directory.name)),
    )


def _leftovers(root: Path, model: str | None) -> Iterator[Leftover]:
    """Directories without a manifest, and scratch. An empty directory above all releases only holds its number."""
    matches = (DIRECTORY_NAME.fullmatch(path.name) for path in root.iterdir() if path.is_dir())
    names = {match[1] for match in matches if match}
    newest: dict[str, int] = {}
    for name, version in _published(root):
        newest[name] = max(version, newest.get(name, 0))
    for name in sorted(names):
        found = _release_of(name)
        if found is None or model not in (None, found[0]) or (root / name / MANIFEST).exists():
            continue
        paths = _directories(root, name)
        if found[1] < newest.get(found[0], 0) or any(True for path in paths for _ in path.iterdir()):
            yield _leftover(name, paths)
    for path in sorted(root.iterdir()):
        if path.name.startswith(SCRATCH) and model is None:
            yield _leftover(path.name, [path])


def _leftover(name: str, paths: Sequence[Path]) -> Leftover:
    age_s = time.time() - max((status.st_mtime for status in _statuses(paths)), default=0.0)
    return Leftover(name, _size(paths), age_s)


def _clear(root: Path, name: str) -> None:
    """Removes what has no manifest, be it a release's directories or scratch."""
    release = _release_of(name)
    if release is None:
        _remove(root / name)
        return
    model, version = release
    (root / name).mkdir(exist_ok=True)  # which takes the number, from here on alone
    for directory in release_directories(name)[1:]:
        _remove(root / directory)
    for inside in (root / name).iterdir():
        _remove(inside)
    # Nobody else removes releases while we do, so the newest one there is keeps all numbers below it taken.
    if any(other == model and newer > version for other, newer in _published(root)):
        (root / name).rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _directories(root: Path, name: str) -> list[Path]:
    return [path for path in (root / directory for directory in release_directories(name)) if path.is_dir()]


def _size(paths: Sequence[Path]) -> int:
    return sum(status.st_size for status in _statuses(paths) if stat.S_ISREG(status.st_mode))


def _statuses(paths: Sequence[Path]) -> Iterator[os.stat_result]:
    """Of these directories and all that is in them, but for what is gone meanwhile: a publisher is at work."""
    for path in paths:
        for directory, _, files in os.walk(path):
            for name in (".", *files):
                with suppress(OSError):
                    yield (Path(directory) / name).lstat()


def _is_whole(root: Path, model: str, version: int) -> bool:
    try:
        read_release(root, model, version)
    except RapportError:
        return False
    return True
