"""The model repository as the gateway sees it: which releases are loaded, which one answers, and when that changes."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from feature_client.errors import RapportError
from feature_client.online.plan import ReadPlan
from feature_client.release import Release, ReleaseError, list_versions, read_release
from feature_client.routes import Route, read_routes
from service.backends import Backend, BackendUnavailable, BadModelOutput
from service.errors import NotReady, UnknownModel
from service.metrics import Metrics

log = logging.getLogger("rapport.releases")

RETRY_FIRST_S, RETRY_AT_MOST_S = 0.5, 30.0
"""A release that could not be loaded is tried again, ever less often, even if no file has changed."""

LOADING = (RapportError, BackendUnavailable, BadModelOutput, TimeoutError, OSError)
"""What loading may raise."""


@dataclass(frozen=True)
class Loaded:
    """A release that gave its golden answers on this backend."""

    release: Release
    plan: ReadPlan


@dataclass(frozen=True)
class Served:
    route: Route
    versions: Mapping[str, Loaded]

    @cached_property
    def champion(self) -> Loaded:
        return self.versions[str(self.route.champion)]


class Releases:
    """Loads what routes.toml names. A change that cannot be loaded leaves everything as it was, and is counted.

    grace_s: how long a release stays loaded after its last route, for requests that are still on their way.
    """

    def __init__(self, root: Path, backend: Backend, metrics: Metrics, grace_s: float) -> None:
        self.root = root
        self.backend = backend
        self.metrics = metrics
        self.grace_s = grace_s
        self.served: Mapping[str, Served] = {}
        self.failure: str | None = None
        self.standby_failure: str | None = None
        self._fallback: str | None = None  # why another release than the champion answers
        self._seen: object = None
        self._broken: object = None
        self._retry_at = self._retry_wait_s = 0.0
        self._loaded: dict[str, Loaded] = {}  # release -> itself, for everything on the backend
        self._idle_since: dict[str, float] = {}  # those of them that no route names any more

    def resolve(self, model: str | None, version: str | None) -> tuple[Served, Loaded]:
        """The release that answers. Raises NotReady and UnknownModel; no file is opened."""
        if not self.served:
            raise NotReady
        if model is None:
            if len(self.served) > 1:
                raise UnknownModel("several models are served; name one")
            [served] = self.served.values()
        elif model in self.served:
            served = self.served[model]
        else:
            raise UnknownModel("no such model is served")
        if version is None:
            return served, served.champion
        if version not in served.versions:
            raise UnknownModel("no such version is loaded")
        return served, served.versions[version]

    def graphs(self) -> set[str]:
        """Names of everything that is loaded on the backend."""
        return {name for loaded in self._loaded.values() for name in (loaded.release.name, loaded.release.explain_name)}

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
        seen = await asyncio.to_thread(self._fingerprint)
        if seen == self._seen or (seen == self._broken and time.monotonic() < self._retry_at):
            return
        self._fallback = None
        try:
            await self._load()
        except LOADING as exc:
            self.failure = self._failed("release not loaded", exc, self.failure)
        else:
            # What answers in place of the champion is no success: the champion is tried again.
            self.failure = self._fallback
        if self.failure is None:
            self._seen, self._broken = seen, None
            return
        again = seen == self._broken
        self._retry_wait_s = min(2 * self._retry_wait_s, RETRY_AT_MOST_S) if again else RETRY_FIRST_S
        self._broken, self._retry_at = seen, time.monotonic() + self._retry_wait_s

    def _fingerprint(self) -> object:
        try:
            routes = (self.root / "routes.toml").stat()
        except OSError:
            return ()
        manifests = sorted(path.parent.name for path in self.root.glob("*/manifest.json"))
        return routes.st_mtime_ns, routes.st_ino, tuple(manifests)

    async def _load(self) -> None:
        routes = await asyncio.to_thread(read_routes, self.root)
        if not routes:
            raise ReleaseError(f"{self.root / 'routes.toml'} names no model")
        self.served = {model: await self._serve(model, route) for model, route in routes.items()}
        roles = [
            (loaded.release, "champion" if loaded is model.champion else "standby")
            for model in self.served.values()
            for loaded in model.versions.values()
        ]
        self.metrics.releases(roles)
        log.info("releases loaded", extra={"releases": {release.name: role for release, role in roles}})

    async def _serve(self, model: str, route: Route) -> Served:
        try:
            champion = await self._version(model, route.champion)
        except LOADING as exc:
            if model in self.served:
                raise
            route, champion = await self._last_good(model, route, exc)
        versions = {champion.release.version: champion}
        self.standby_failure = None
        if (standby := await asyncio.to_thread(self._standby, model, route)) is not None:
            try:
                versions[str(standby)] = await self._version(model, standby)
            except LOADING as exc:
                # The champion answers; a broken neighbour must not keep it from doing so.
                self.standby_failure = self._failed(f"standby {model}.{standby} not loaded", exc, None)
        return Served(route, versions)

    async def _last_good(self, model: str, route: Route, error: Exception) -> tuple[Route, Loaded]:
        """At a cold start with a broken champion: the newest other release that is whole. Raises `error` for none."""
        for version in reversed(await asyncio.to_thread(list_versions, self.root, model)):
            if version != route.champion:
                try:
                    loaded = await self._version(model, version)
                except LOADING:
                    continue
                self._fallback = self._failed(f"champion {model}.{route.champion} not loaded", error, None)
                log.error("an older release answers", extra={"release": loaded.release.name})
                return Route(champion=version, unknown=route.unknown), loaded
        raise error

    def _standby(self, model: str, route: Route) -> int | None:
        """The version that a rollback goes to: the champion before this one, else the newest other."""
        others = [version for version in list_versions(self.root, model) if version != route.champion]
        if model in self.served:
            served = self.served[model]
            known = [served.route.champion, *(int(version) for version in served.versions)]
            others += [version for version in reversed(known) if version in others]
        return others[-1] if others else None

    async def _unload_idle(self) -> None:
        """Not at once: requests that were routed to a release may still wait in its queue."""
        now = time.monotonic()
        served = {loaded.release.name for model in self.served.values() for loaded in model.versions.values()}
        self._idle_since = {name: self._idle_since.get(name, now) for name in self._loaded.keys() - served}
        for name in [name for name, since in self._idle_since.items() if now - since >= self.grace_s]:
            await self._unload(self._loaded.pop(name).release)

    async def _unload(self, release: Release) -> None:
        await self.backend.unload(release.name)
        await self.backend.unload(release.explain_name)

    async def _version(self, model: str, version: int) -> Loaded:
        if found := self._loaded.get(f"{model}.{version}"):
            return found
        release = await asyncio.to_thread(read_release, self.root, model, version)
        try:
            for graph in await asyncio.to_thread(release.graphs):
                await self.backend.load(graph)
            loaded = Loaded(release, ReadPlan(release.contract.schema))
        except LOADING:
            await self._unload(release)
            raise
        self._loaded[release.name] = loaded
        return loaded

    def _failed(self, what: str, error: Exception, before: str | None) -> str:
        """Counts it, logs it unless it is what was logged before, and returns the reason."""
        self.metrics.reload_failed()
        reason = str(error) or type(error).__name__
        if reason != before:
            log.error(what, extra={"reason": reason})
        return reason
