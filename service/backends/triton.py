"""Triton, one or several, over gRPC: every batch goes to an endpoint that has proven the graph, and to another when
that one fails. What was unloaded, restarted or broken is mended here, at best before a request notices.

Triton's own readiness flags are not asked, because they lie when a backend's process has died: golden rows are.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from feature_client.golden import Tensors
from feature_client.release import ReleaseError, ReleaseGraph
from service.backends import BackendUnavailable, BadModelOutput, Unreachable
from service.backends.endpoint import Broken, Endpoint, NotLoaded
from service.backends.replica import FAILURES, Package, Replica, is_over

log = logging.getLogger("rapport.backends.triton")

TICK_S = 0.25
"""How often an endpoint is looked after: graphs out of service there are tried, one idle graph is proven again."""
IDLE_S = 1.0
"""A graph that answered nothing for this long is proven: nobody else would notice that it cannot."""
PROVEN_EVERY_S = 10.0
"""The same for a graph that answers all the time."""

TOGETHER = 4
"""Graphs proven at once: one that waits for a dead process holds up no other, and a Triton that comes back is not given
fifty to load at the same moment."""

Told = Callable[[str, bool], None]
"""Is told of every endpoint (host:port) whether all is well there, whenever it was looked after."""


@dataclass(frozen=True)
class TritonLimits:
    """in_flight: batches of a lane at one endpoint at once. timeout_s: of one inference, within its deadline.

    instances: batches of one graph that an endpoint runs at once.
    """

    in_flight: int = 4
    timeout_s: float = 1.0
    instances: int = 1


class TritonBackend:
    """endpoints: host:port of each Triton's gRPC; they need share nothing, each is sent what it is to run."""

    def __init__(
        self,
        endpoints: Sequence[str],
        limits: TritonLimits = TritonLimits(),
        told: Told = lambda _address, _up: None,
    ) -> None:
        self.limits = limits
        self.told = told
        self.endpoints = [Endpoint(address, limits.in_flight) for address in endpoints]
        self.replicas: dict[str, list[Replica]] = {}  # graph -> one an endpoint
        self._turn = 0
        self._watchers: list[asyncio.Task[None]] = []
        self._wake = {endpoint.address: asyncio.Event() for endpoint in self.endpoints}

    @property
    def available(self) -> bool:
        """Every graph that is loaded can be answered somewhere."""
        return all(any(replica.ready for replica in replicas) for replicas in self.replicas.values())

    async def load(self, graph: ReleaseGraph) -> None:
        """On every endpoint; one that is down or refuses it gets it later, as long as there is another.

        Raises BackendUnavailable, BadModelOutput, ReleaseError, TimeoutError.
        """
        package = await asyncio.to_thread(Package.read, graph, self.limits.instances)
        replicas = [Replica(package, endpoint) for endpoint in self.endpoints]
        outcomes = await asyncio.gather(*(replica.prove() for replica in replicas), return_exceptions=True)
        errors = [outcome for outcome in outcomes if outcome is not None]
        if len(errors) == len(replicas):
            raise min(errors, key=_tells_little)
        for replica in self.replicas.pop(graph.name, ()):
            await replica.drop()
        self.replicas[graph.name] = replicas
        if not self._watchers:
            self._watchers = [asyncio.create_task(self._watch(endpoint)) for endpoint in self.endpoints]
        for endpoint in self.endpoints:
            self._tell(endpoint)

    async def unload(self, name: str) -> None:
        """On every endpoint that answers. Another gateway that still serves it loads it again when it misses it."""
        for replica in self.replicas.pop(name, ()):
            await replica.drop()
        await asyncio.gather(*(self._unload(endpoint, name) for endpoint in self.endpoints))

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        """Raises BackendUnavailable, BadModelOutput; TimeoutError after `timeout_s`."""
        return await self._infer(name, tensors, timeout_s, aside=False)

    async def infer_aside(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        """See InfersAside: one at a time at each endpoint, beside the batches in flight there."""
        return await self._infer(name, tensors, timeout_s, aside=True)

    async def _infer(self, name: str, tensors: Tensors, timeout_s: float, *, aside: bool) -> Tensors:
        ends = time.monotonic() + timeout_s
        replicas = self.replicas.get(name)
        if not replicas:
            raise BackendUnavailable(f"{name} is not loaded")
        request, expected = replicas[0].package.request(tensors)
        replica = await self._choose(replicas, None, ends)
        try:
            return await replica.infer(request, expected, ends, self.limits.timeout_s, aside=aside)
        except (Unreachable, NotLoaded, Broken, TimeoutError) as exc:
            self._wake[replica.endpoint.address].set()
            if is_over(ends):
                raise TimeoutError from exc
            # An inference changes nothing, so it may be asked for twice.
            late = replica if isinstance(exc, TimeoutError) else None
            other = await self._choose(replicas, late, ends)
        except (BackendUnavailable, BadModelOutput):
            self._wake[replica.endpoint.address].set()
            if not any(one.ready for one in replicas if one is not replica):
                raise
            other = await self._choose(replicas, replica, ends)
        try:
            return await other.infer(request, expected, ends, self.limits.timeout_s, aside=aside)
        except TimeoutError as exc:
            if not is_over(ends):
                raise BackendUnavailable(f"{name}: no answer within {self.limits.timeout_s} s") from exc
            raise

    async def close(self) -> None:
        """What is loaded stays loaded: other gateways use it, and the next one finds it."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers.clear()
        for replicas in self.replicas.values():
            for replica in replicas:
                await replica.drop()
        self.replicas.clear()
        for endpoint in self.endpoints:
            await endpoint.close()

    async def _choose(self, replicas: Sequence[Replica], failed: Replica | None, ends: float) -> Replica:
        """The ready one with the least to do, in turn among equals; where none is, the first that can be mended. One in
        doubt comes last: who fails fast has little to do.

        Raises BackendUnavailable, BadModelOutput; TimeoutError at `ends`.
        """
        self._turn += 1
        first = self._turn % len(replicas)
        in_turn = [replica for replica in (*replicas[first:], *replicas[:first]) if replica is not failed]
        if ready := [replica for replica in in_turn if replica.ready]:
            return min(ready, key=lambda replica: (replica.suspect, replica.endpoint.busy))
        name = replicas[0].package.name
        for replica in in_turn:
            if replica.mendable:
                try:
                    async with asyncio.timeout(ends - time.monotonic()):
                        await replica.prove()
                except (ReleaseError, BadModelOutput) as exc:
                    raise BackendUnavailable(str(exc)) from exc
                return replica
        raise BackendUnavailable(f"{name}: no endpoint can answer it")

    async def _watch(self, endpoint: Endpoint) -> None:
        """Looks after one endpoint until cancelled; not even a defect ends that in silence."""
        wake = self._wake[endpoint.address]
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await wake.wait()
            wake.clear()
            try:
                await self._look_after(endpoint)
            except Exception:
                log.exception("looking after an endpoint failed", extra={"endpoint": endpoint.address})

    async def _look_after(self, endpoint: Endpoint) -> None:
        here = [replica for replicas in self.replicas.values() for replica in replicas if replica.endpoint is endpoint]
        due = _due(here)
        for start in range(0, len(due), TOGETHER):
            proofs = [replica.prove() for replica in due[start : start + TOGETHER]]
            outcomes = [one for one in await asyncio.gather(*proofs, return_exceptions=True) if one is not None]
            if defects := [one for one in outcomes if not isinstance(one, FAILURES)]:
                raise defects[0]
            if any(isinstance(one, (Unreachable, TimeoutError)) for one in outcomes):
                break  # the others have the same to say, and one that hangs must not keep them waiting every time
        self._tell(endpoint)

    def _tell(self, endpoint: Endpoint) -> None:
        here = [replica for replicas in self.replicas.values() for replica in replicas if replica.endpoint is endpoint]
        self.told(endpoint.address, endpoint.reachable and all(replica.ready for replica in here))

    async def _unload(self, endpoint: Endpoint, name: str) -> None:
        try:
            await endpoint.unload(name)
        except (BackendUnavailable, TimeoutError) as exc:
            log.warning("not unloaded", extra={"graph": name, "endpoint": endpoint.address, "reason": str(exc)})


def _due(here: Sequence[Replica]) -> list[Replica]:
    """What is to be proven now: all that is out of service or in doubt, and of what seems well the one whose turn it
    is, so that fifty models cost no more than two."""
    now = time.monotonic()
    doubtful = [
        replica
        for replica in here
        if (not replica.ready and now >= replica.try_at) or (replica.suspect and now - replica.tried_at >= TICK_S)
    ]
    well = [
        replica
        for replica in here
        if replica.ready
        and not replica.suspect
        and now - replica.proven_at >= (IDLE_S if now - replica.answered_at >= IDLE_S else PROVEN_EVERY_S)
    ]
    return sorted(doubtful, key=_tried_at) + sorted(well, key=_tried_at)[:1]


def _tried_at(replica: Replica) -> float:
    return replica.tried_at


def _tells_little(error: BaseException) -> tuple[bool, ...]:
    """Of what several endpoints say, what they say about the graph itself tells most."""
    return tuple(isinstance(error, kind) for kind in (Unreachable, TimeoutError, BackendUnavailable))
