"""The model repository as the gateway sees it: which releases are loaded, which answers whom, and when that changes."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from feature_client.errors import RapportError
from feature_client.mirror import Mirror
from feature_client.online.plan import Entity, ReadPlan
from feature_client.release import Release, ReleaseError, ReleaseGraph, list_versions, read_release
from feature_client.routes import Route, read_routes
from service.backends import GOLDEN_TIMEOUT_S, Backend, BackendUnavailable, BadModelOutput, Unreachable
from service.errors import NotReady, UnknownModel
from service.explainers import Pace
from service.metrics import Metrics
from service.reasons import ReasonWriter

if TYPE_CHECKING:  # needs an extra, and only where releases are signed
    from feature_client.signature import TrustedKeys

log = logging.getLogger("rapport.releases")

RETRY_FIRST_S, RETRY_AT_MOST_S = 0.5, 30.0
"""A release that could not be loaded is tried again, ever less often, even if no file has changed."""

STORAGE = "storage"
"""What has failed where object storage cannot be copied."""

LOADING = (RapportError, BackendUnavailable, BadModelOutput, TimeoutError, OSError)
"""What loading may raise."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A release that gave its golden answers on this backend. paces: of its explainers there."""

    release: Release
    plan: ReadPlan
    paces: Mapping[str, Pace]
    reasons: ReasonWriter


class Arm(NamedTuple):
    """What one release answers of a request. rows: positions of its entities; None where that is all of them."""

    loaded: Loaded
    rows: Sequence[int] | None


@dataclass(frozen=True)
class Served:
    """A model as it is routed now. versions: every release that is loaded for it, by version."""

    route: Route
    versions: Mapping[str, Loaded]

    @cached_property
    def champion(self) -> Loaded:
        return self.versions[str(self.route.champion)]

    @cached_property
    def canary(self) -> Loaded | None:
        return None if self.route.canary is None else self.versions.get(str(self.route.canary.version))

    @cached_property
    def shadows(self) -> tuple[Loaded, ...]:
        """Those of the route's shadows that could be loaded."""
        return tuple(self.versions[str(version)] for version in self.route.shadow if str(version) in self.versions)

    def loaded(self, version: str | None) -> Loaded:
        """The version that a request asks for; the champion where it asks for none. Raises UnknownModel."""
        if version is None:
            return self.champion
        if version not in self.versions:
            raise UnknownModel("no such version is loaded")
        return self.versions[version]

    def arms(self, entities: Sequence[Entity], version: str | None) -> list[Arm]:
        """Who answers whom, one to two arms. version: asked for by the request. Raises UnknownModel."""
        if version is not None:
            return [Arm(self.loaded(version), None)]
        if self.canary is None:
            return [Arm(self.champion, None)]
        rows: dict[Loaded, list[int]] = {self.champion: [], self.canary: []}
        for row, entity in enumerate(entities):
            rows[self.canary if self.route.arm(entity) != self.route.champion else self.champion].append(row)
        arms = [Arm(loaded, positions) for loaded, positions in rows.items() if positions]
        return arms if len(arms) > 1 else [Arm(arms[0].loaded, None)]

    def roles(self) -> list[tuple[Release, str]]:
        """Every loaded release with what it does, as in the metric rapport_release_info."""
        route = self.route
        roles = {route.champion: "champion", **dict.fromkeys(route.shadow, "shadow")}
        if route.canary is not None:
            roles[route.canary.version] = "canary"
        return [
            (loaded.release, roles.get(loaded.release.manifest.version, "standby")) for loaded in self.versions.values()
        ]


class Releases:
    """Loads what routes.toml names. What cannot be loaded leaves everything as it was, is reported and tried again.

    grace_s: how long a release stays loaded after its last route, for requests that are still on their way.
    trust: keys of which one must have signed a release; None: checksums are enough. mirror: what keeps `root` as an
    object storage has it.
    """

    def __init__(
        self,
        root: Path,
        backend: Backend,
        metrics: Metrics,
        grace_s: float,
        trust: "TrustedKeys | None" = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.root = root
        self.trust = trust
        self.mirror = mirror
        self.backend = backend
        self.metrics = metrics
        self.grace_s = grace_s
        self.served: Mapping[str, Served] = {}
        self.failures: Mapping[str, str] = {}  # release or file -> why it was not taken at the last look
        self._failing: Mapping[str, Exception] = {}  # what could not be taken at the look that goes on, or the last
        self._seen: object = None
        self._broken: object = None
        self._retry_at = self._retry_wait_s = 0.0
        self._loaded: dict[str, Loaded] = {}  # release -> itself, for everything on the backend
        self._idle_since: dict[str, float] = {}  # those of them that no route names any more
        self._roles: list[tuple[str, str]] = []

    def find(self, model: str | None) -> Served:
        """The model of a request, which may leave its name out where one is served. Raises NotReady, UnknownModel."""
        if not self.served:
            raise NotReady
        if model is None:
            if len(self.served) > 1:
                raise UnknownModel("several models are served; name one")
            [served] = self.served.values()
            return served
        if model not in self.served:
            raise UnknownModel("no such model is served")
        return self.served[model]

    def graphs(self) -> set[str]:
        """Names of everything that is loaded on the backend."""
        return {name for loaded in self._loaded.values() for name in loaded.release.graph_names}

    @property
    def is_failing(self) -> bool:
        """Whether something could not be loaded: at the last look, or so far at the one that goes on, during which an
        older release may already answer."""
        return bool(self.failures or self._failing)

    async def watch(self, every_s: float) -> None:
        """Looks at the repository until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """`refresh`, of which not even a defect ends the watch in silence: what is loaded goes on answering."""
        try:
            await self.refresh()
        except Exception:
            self.metrics.reload_failed()
            log.exception("looking at the model repository failed")

    async def refresh(self) -> None:
        """Loads what has changed since the last look; failures are logged once, counted, and tried again."""
        await self._unload_idle()
        failures: dict[str, Exception] = {}
        self._failing = failures
        if self.mirror is not None:
            try:
                await asyncio.to_thread(self.mirror.refresh)
            except LOADING as exc:
                # What was copied before is still there, and is followed.
                failures[STORAGE] = exc
        seen = await asyncio.to_thread(self._fingerprint)
        if seen == self._seen or (seen == self._broken and time.monotonic() < self._retry_at):
            others = {what: reason for what, reason in self.failures.items() if what != STORAGE}
            self._count(failures)
            self.failures = others | {what: _reason(error) for what, error in failures.items()}
            return
        try:
            routes = await asyncio.to_thread(read_routes, self.root)
            if not routes:
                raise ReleaseError(f"{self.root / 'routes.toml'} names no model")
        except LOADING as exc:
            failures["routes.toml"] = exc
        else:
            self.served = {model: served for model, served in self.served.items() if model in routes}
            for model, route in routes.items():
                self._flip(model, route)
            for model, route in routes.items():
                await self._follow(model, route, failures)
        self._report(failures)
        if not failures.keys() - {STORAGE}:
            self._seen, self._broken = seen, None
            return
        # A backend that is away may be back at any moment; a release that is broken stays so until somebody mends it.
        again = seen == self._broken and not any(isinstance(error, Unreachable) for error in failures.values())
        self._retry_wait_s = min(2 * self._retry_wait_s, RETRY_AT_MOST_S) if again else RETRY_FIRST_S
        self._broken, self._retry_at = seen, time.monotonic() + self._retry_wait_s

    def _fingerprint(self) -> object:
        try:
            routes = (self.root / "routes.toml").stat()
        except OSError:
            return ()
        manifests = sorted(path.parent.name for path in self.root.glob("*/manifest.json"))
        return routes.st_mtime_ns, routes.st_ino, tuple(manifests)

    def _flip(self, model: str, route: Route) -> None:
        """Where all who are to answer are loaded: a rollback waits for nothing that has to be loaded first."""
        names = [f"{model}.{version}" for version in route.answering]
        if model in self.served and all(name in self._loaded for name in names):
            others = [version for version in route.named if version != route.champion]
            self._serve(model, route, self._loaded[names[0]], [*others, *map(int, self.served[model].versions)])

    async def _follow(self, model: str, route: Route, failures: dict[str, Exception]) -> None:
        """Serves `model` as `route` says, as far as that can be loaded; the rest goes into `failures`."""
        try:
            champion = await self._version(model, route.champion)
        except LOADING as exc:
            failures[f"{model}.{route.champion}"] = exc
            # Where nothing answers, an older release is no better, and would only be the first one to be loaded.
            if model in self.served or isinstance(exc, Unreachable):
                return
            if (good := await self._last_good(model, route)) is None:
                return
            # Who stands in for the champion does so for all: no canary, no shadow.
            champion, route = good, Route(champion=good.release.manifest.version, unknown=route.unknown)
        others = await asyncio.to_thread(self._others, model, route)
        for version in others:
            if route.canary is None or version != route.canary.version:
                # Who answers does so at once: neither a flip nor a cold start waits for shadows and standbys to load.
                self._serve(model, route, champion, others)
            try:
                await self._version(model, version)
            except LOADING as exc:
                # The champion answers, a canary's customers too; a broken neighbour keeps nobody from that.
                failures[f"{model}.{version}"] = exc
        self._serve(model, route, champion, others)

    def _serve(self, model: str, route: Route, champion: Loaded, others: Sequence[int]) -> None:
        loaded = [self._loaded[name] for version in others if (name := f"{model}.{version}") in self._loaded]
        served = Served(route, {one.release.version: one for one in (champion, *loaded)})
        self.served = {**self.served, model: served}

    def _others(self, model: str, route: Route) -> list[int]:
        """Versions to be loaded beside the champion: those the route names, and the one that a rollback goes to."""
        others = [version for version in route.named if version != route.champion]
        if route.previous is not None:
            return others
        # A route written by hand says not where a rollback goes: to the champion before, else to the newest other.
        published = list_versions(self.root, model)
        back = [version for version in published if version != route.champion]
        if model in self.served:
            known = [self.served[model].route.champion, *map(int, self.served[model].versions)]
            back += [version for version in reversed(known) if version in back]
        return list(dict.fromkeys((*others, *back[-1:])))

    async def _last_good(self, model: str, route: Route) -> Loaded | None:
        """At a cold start with a broken champion: the one before it, else the newest other release that is whole."""
        versions = await asyncio.to_thread(list_versions, self.root, model)
        for version in dict.fromkeys((route.previous, *reversed(versions))):
            if version in versions and version != route.champion:
                try:
                    loaded = await self._version(model, version)
                except LOADING:
                    continue
                log.error("an older release answers", extra={"release": loaded.release.name})
                return loaded
        return None

    async def _unload_idle(self) -> None:
        """Not at once: requests that were routed to a release may still wait in its queue."""
        now = time.monotonic()
        served = {loaded.release.name for model in self.served.values() for loaded in model.versions.values()}
        self._idle_since = {name: self._idle_since.get(name, now) for name in self._loaded.keys() - served}
        for name in [name for name, since in self._idle_since.items() if now - since >= self.grace_s]:
            await self._unload(self._loaded.pop(name).release)

    async def _unload(self, release: Release) -> None:
        for name in release.graph_names:
            await self.backend.unload(name)

    async def _version(self, model: str, version: int) -> Loaded:
        if found := self._loaded.get(f"{model}.{version}"):
            return found
        release = await asyncio.to_thread(read_release, self.root, model, version, self.trust)
        try:
            paces = {}
            for graph in await asyncio.to_thread(release.graphs):
                await self.backend.load(graph)
                if graph.explainer is not None:
                    paces[graph.explainer] = await self._pace(graph)
            reasons = await asyncio.to_thread(ReasonWriter, release.contract)
            loaded = Loaded(release, ReadPlan(release.contract.schema), paces, reasons)
        except LOADING:
            await self._unload(release)
            raise
        self._loaded[release.name] = loaded
        return loaded

    async def _pace(self, graph: ReleaseGraph) -> Pace:
        """The faster of two: other things go on meanwhile."""
        tensors = graph.golden.first(1).tensors
        taken = []
        for _ in range(2):
            started = time.monotonic()
            await self.backend.infer(graph.name, tensors, GOLDEN_TIMEOUT_S)
            taken.append(time.monotonic() - started)
        return Pace(min(taken))

    def _report(self, failures: Mapping[str, Exception]) -> None:
        self._count(failures)
        self.failures = {what: _reason(error) for what, error in failures.items()}
        roles = [role for served in self.served.values() for role in served.roles()]
        self.metrics.releases(roles)
        named = [(release.name, role) for release, role in roles]
        if named != self._roles:
            log.info("releases", extra={"releases": dict(named)})
        self._roles = named

    def _count(self, failures: Mapping[str, Exception]) -> None:
        """Counts failures, and logs those that are not what they were at the last look."""
        for what, error in failures.items():
            self.metrics.reload_failed()
            if _reason(error) != self.failures.get(what):
                log.error("not loaded", extra={"what": what, "reason": _reason(error)})


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
