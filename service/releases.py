"""The model repository as the gateway sees it: which releases are loaded, which one answers, and when that changes."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_client.contract import attribution_scale, discrepancy
from feature_client.errors import RapportError
from feature_client.online.plan import ReadPlan
from feature_client.release import Release, ReleaseError, Route, list_versions, read_release, read_routes
from service.backends import Backend, BackendUnavailable, BadModelOutput, check_outputs
from service.errors import NotReady, UnknownModel
from service.metrics import Metrics

log = logging.getLogger("rapport.releases")

GOLDEN_TIMEOUT_S = 30.0
STANDBY = 1
"""How many versions besides the champion stay loaded, newest first: the one that a rollback goes to."""


@dataclass(frozen=True)
class Loaded:
    """A release that gave its golden answers on this backend."""

    release: Release
    plan: ReadPlan


@dataclass(frozen=True)
class Served:
    route: Route
    versions: Mapping[str, Loaded]

    @property
    def champion(self) -> Loaded:
        return self.versions[str(self.route.champion)]


class Releases:
    """Loads what routes.toml names. A change that cannot be loaded leaves everything as it was, and is counted."""

    def __init__(self, root: Path, backend: Backend, metrics: Metrics) -> None:
        self.root = root
        self.backend = backend
        self.metrics = metrics
        self.served: Mapping[str, Served] = {}
        self.failure: str | None = None
        self._seen: object = None

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
        loaded = [version.release for model in self.served.values() for version in model.versions.values()]
        return {name for release in loaded for name in (release.name, release.explain_name)}

    async def watch(self, every_s: float) -> None:
        """Looks at the repository until cancelled."""
        while True:
            try:
                await self.refresh()
            except Exception:
                # A defect must not end the watch in silence: what is loaded goes on answering.
                log.exception("looking at the model repository failed")
            await asyncio.sleep(every_s)

    async def refresh(self) -> None:
        """Loads what has changed since the last look; failures are logged once, counted, and tried again."""
        seen = await asyncio.to_thread(self._fingerprint)
        if seen == self._seen:
            return
        try:
            await self._load()
        except (RapportError, BackendUnavailable, BadModelOutput, TimeoutError, OSError) as exc:
            self._failed(str(exc) or type(exc).__name__)
            return
        self._seen, self.failure = seen, None

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
        served = {model: await self._serve(model, route) for model, route in routes.items()}
        before = self.graphs()
        self.served = served
        for name in before - self.graphs():
            await self.backend.unload(name)
        roles = [
            (loaded.release, "champion" if loaded is model.champion else "standby")
            for model in served.values()
            for loaded in model.versions.values()
        ]
        self.metrics.releases(roles)
        log.info("releases loaded", extra={"releases": {release.name: role for release, role in roles}})

    async def _serve(self, model: str, route: Route) -> Served:
        versions = {str(route.champion): await self._version(model, route.champion)}
        others = [version for version in list_versions(self.root, model) if version != route.champion]
        for version in reversed(others[-STANDBY:]):
            try:
                versions[str(version)] = await self._version(model, version)
            except (RapportError, BackendUnavailable, BadModelOutput, TimeoutError, OSError) as exc:
                # The champion answers; a broken neighbour must not keep it from doing so.
                self._failed(f"standby {model}.{version}: {exc}")
        return Served(route, versions)

    async def _version(self, model: str, version: int) -> Loaded:
        if model in self.served and str(version) in self.served[model].versions:
            return self.served[model].versions[str(version)]
        release = await asyncio.to_thread(read_release, self.root, model, version)
        for name, directory in (
            (release.name, release.directory),
            (release.explain_name, release.explain_directory),
        ):
            if await self.backend.load(name, directory) != release.contract.digest:
                raise ReleaseError(f"{name}: the graph was exported with another contract")
        await self._check_golden(release)
        return Loaded(release, ReadPlan(release.contract.schema))

    async def _check_golden(self, release: Release) -> None:
        """The golden rows must give the golden answers on this very backend; this also warms it up."""
        with np.load(release.golden, allow_pickle=False) as file:
            golden = dict(file)
        tensors = {name: golden[name] for name in ("numeric", "categorical")}
        scale = attribution_scale(golden["attributions"], golden["base"])
        rows = len(golden["numeric"])
        for name, explained in ((release.name, False), (release.explain_name, True)):
            answers = await self.backend.infer(name, tensors, GOLDEN_TIMEOUT_S)
            expected = release.contract.outputs(rows, explained=explained)
            check_outputs(name, answers, expected)
            for output in expected:
                size = scale if output == "attributions" else 0.0
                if not (discrepancy(answers[output], golden[output], size) <= 1).all():
                    raise ReleaseError(f"{name}: {output} differ from the golden answers on this backend")

    def _failed(self, reason: str) -> None:
        self.metrics.reload_failed()
        if reason != self.failure:
            log.error("release not loaded", extra={"reason": reason})
        self.failure = reason
