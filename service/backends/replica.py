"""One graph on one Triton: brought there, proven by its golden rows, and taken out of service when it fails."""

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-untyped]

from feature_client.golden import Tensors
from feature_client.onnx_file import GraphError, check_graph
from feature_client.release import ReleaseError, ReleaseGraph
from feature_client.triton_config import config_json
from service.backends import GOLDEN_TIMEOUT_S, BackendUnavailable, BadModelOutput, Unreachable, check_golden
from service.backends.endpoint import Broken, Endpoint, Lane, NotLoaded, is_cancelled
from service.backends.messages import infer_request, outputs_of

log = logging.getLogger("rapport.backends.triton")

PROBE_TIMEOUT_S = 2.0
"""For the golden rows of a graph that is loaded. A dead stub process is reported after one second."""
SPREAD_S = 0.5
MENDED_S = 0.3
"""For one golden row of a graph whose process was dead: within it, whoever has mended it is seen to have."""

LATE_AT_MOST = 3
"""So many inferences in a row that were late take the graph out of service here."""
PATIENCE_S = 0.05
PATIENCE = 3
"""One that was given less than PATIENCE_S, or than so many times what golden rows take there, for as many rows, says
nothing about the server: clients choose their deadlines."""

EJECTED_FIRST_S, EJECTED_AT_MOST_S = 0.25, 5.0
REFUSED_FIRST_S, REFUSED_AT_MOST_S = 0.5, 30.0
STEADY_S = 30.0
"""In service for this long, and the next failure counts as the first."""

TIMER_S = 0.005
"""How early a timer may be: event loops count in milliseconds."""

FAILURES = (BackendUnavailable, BadModelOutput, ReleaseError, TimeoutError)
"""What proving may raise."""


@dataclass(frozen=True, eq=False)
class Package:
    """What is sent to Triton: the bytes of the graph as they were read once, under a version that they determine.

    Triton runs the version it is asked for or none: whatever else is loaded under the same name, by hand, from its own
    repository, by a gateway with another repository, cannot be taken for this graph.
    """

    graph: ReleaseGraph
    content: bytes
    version: str
    config: str

    @property
    def name(self) -> str:
        return self.graph.name

    @classmethod
    def read(cls, graph: ReleaseGraph, instances: int = 1) -> "Package":
        """instances: batches that each Triton runs at once, on each GPU or on its CPUs.

        Raises ReleaseError where it is not there as it was verified, or is no graph of its contract.
        """
        content = graph.read()
        try:
            check_graph(content, graph.contract, graph.explainer)
        except GraphError as exc:
            raise ReleaseError(f"{graph.name}: {exc}") from exc
        # Triton's versions are numbers of 63 bits.
        version = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1
        return cls(graph, content, str(version), config_json(graph, version=version, instances=instances))

    def request(self, tensors: Tensors) -> tuple[pb.ModelInferRequest, Mapping[str, tuple[int, ...]]]:
        """With the outputs that are expected of it. Raises BackendUnavailable."""
        expected = self.graph.outputs(len(next(iter(tensors.values()))))
        return infer_request(self.name, self.version, tensors, expected), expected


class Replica:
    """proven_in: the endpoint's epoch in which the golden rows gave the golden answers; None where they do not."""

    def __init__(self, package: Package, endpoint: Endpoint) -> None:
        self.package = package
        self.endpoint = endpoint
        self.proven_in: int | None = None
        self.proven_at = self.answered_at = -STEADY_S  # monotonic
        self.tried_at = self.try_at = 0.0
        self.suspect = self.hangs = self.broken = False
        self.refusal: str | None = None
        self._late = 0
        self._golden_s = 0.0  # what golden rows took last
        self._fell = 0  # how often it went out of service without a steady while between
        self._was_ready: bool | None = None
        self._proving: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.endpoint.reachable and self.proven_in == self.endpoint.epoch

    @property
    def mendable(self) -> bool:
        """It may be worth a request's while to wait until it is proven."""
        if not self.endpoint.reachable or self.hangs:
            return False
        return self._proving is not None or time.monotonic() >= self.try_at

    async def infer(
        self,
        request: pb.ModelInferRequest,
        expected: Mapping[str, tuple[int, ...]],
        ends: float,
        cap_s: float,
        *,
        aside: bool = False,
    ) -> Tensors:
        """aside: nobody waits for it.

        Raises BackendUnavailable and its sub-classes; TimeoutError where it ended by `ends` or after `cap_s`.
        """
        lane: Lane = "aside" if aside else "explanations" if self.package.graph.explains else "scores"
        async with self.endpoint.slot(lane, ends):
            seconds = min(ends - time.monotonic(), cap_s)
            try:
                reply = await self.endpoint.infer(request, seconds)
                outputs = outputs_of(reply, self.package.name, self.package.version, expected)
            except (NotLoaded, Broken) as exc:
                self._out(exc)
                raise
            except (TimeoutError, asyncio.CancelledError) as exc:
                # Whoever waits may end this at the deadline, a moment before gRPC does.
                self.suspect = True
                was_given_enough = seconds >= min(self._patience_s(expected), cap_s)
                self._late += was_given_enough and (isinstance(exc, TimeoutError) or is_over(ends))
                if self._late >= LATE_AT_MOST:
                    self._eject(exc)
                raise
            except (BackendUnavailable, BadModelOutput):
                self.suspect = True
                raise
        self._late = 0
        self.answered_at = time.monotonic()
        return outputs

    async def prove(self) -> None:
        """The golden rows give the golden answers, if need be after the graph was loaded. Who comes while somebody
        does this waits for the outcome of that.

        Raises BackendUnavailable and its sub-classes, BadModelOutput, ReleaseError, TimeoutError.
        """
        if self._proving is None:
            self._proving = asyncio.create_task(self._prove())
            self._proving.add_done_callback(self._proved)
        proving = self._proving
        try:
            await asyncio.shield(proving)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise BackendUnavailable(f"{self.package.name} was unloaded") from None

    async def drop(self) -> None:
        """Nothing is brought there any more."""
        if self._proving is not None:
            self._proving.cancel()
            await asyncio.wait([self._proving])

    def _proved(self, task: "asyncio.Task[None]") -> None:
        self._proving = None
        if not task.cancelled():
            task.exception()  # whoever waited has it; where nobody did, _prove has noted it

    async def _prove(self) -> None:
        self.tried_at = time.monotonic()
        epoch = self.endpoint.epoch
        try:
            await self._bring()
        except Unreachable as exc:
            self._out(exc)
            raise
        except TimeoutError as exc:
            self._eject(exc)
            raise
        except FAILURES as exc:
            self._refuse(exc)
            raise
        # It may have gone and come back meanwhile, and be another by now.
        self.proven_in, self.proven_at = epoch if self.endpoint.epoch == epoch else None, time.monotonic()
        self.suspect = self.hangs = self.broken = False
        self.refusal, self._late = None, 0
        self._note()

    async def _bring(self) -> None:
        if self.broken:
            # Every gateway was told so at the same moment: mostly one of them mends it for all. Triton 2.51 has crashed
            # where several loaded and unloaded one model at once.
            await asyncio.sleep(random.uniform(0.0, SPREAD_S))  # noqa: S311  (no secret)
        try:
            # One that has proven them all is asked for one, now and then: seventeen explanations every second would
            # take Triton a tenth of a core, for each gateway that has nothing to do.
            once_proven = self.ready or self.broken
            await self._golden(MENDED_S if self.broken else PROBE_TIMEOUT_S, rows=1 if once_proven else None)
        except NotLoaded:
            pass
        except (Broken, BadModelOutput, ReleaseError, TimeoutError) as exc:
            if isinstance(exc, TimeoutError) and not self.broken:
                raise
            self.proven_in = None
            # A load alone would do nothing: Triton has this model with this config.
            await self.endpoint.unload(self.package.name)
        else:
            return
        try:
            await self._load()
        except (NotLoaded, Broken):
            # Another gateway unloaded it in between, to mend what is mended by now.
            await self._load()

    async def _load(self) -> None:
        self.proven_in = None
        package = self.package
        await self.endpoint.load(package.name, package.config, f"{package.version}/model.onnx", package.content)
        try:
            await self._golden(GOLDEN_TIMEOUT_S)
        except (BadModelOutput, ReleaseError):
            with contextlib.suppress(*FAILURES):
                await self.endpoint.unload(package.name)
            raise

    async def _golden(self, timeout_s: float, rows: int | None = None) -> None:
        """rows: the first of them; None: all."""
        graph = self.package.graph
        if rows is not None:
            graph = replace(graph, golden=graph.golden.first(rows))
        request, expected = self.package.request(graph.golden.tensors)
        started = time.monotonic()
        reply = await self.endpoint.infer(request, timeout_s)
        if rows is None:
            self._golden_s = time.monotonic() - started
        check_golden(graph, outputs_of(reply, self.package.name, self.package.version, expected))

    def _patience_s(self, expected: Mapping[str, tuple[int, ...]]) -> float:
        rows = max(shape[0] for shape in expected.values())
        return max(PATIENCE_S, PATIENCE * self._golden_s * max(rows / len(self.package.graph.golden), 1.0))

    def _out(self, error: BaseException | None) -> None:
        # Once it was: what never proved all of its golden rows is not asked for one.
        self.broken = isinstance(error, Broken) and (self.broken or self.proven_in is not None)
        self.proven_in = None
        self._note(error)

    def _eject(self, error: BaseException) -> None:
        """Until it has answered golden rows; one that falls again and again stays out for longer."""
        if self.ready:
            self._wait(EJECTED_FIRST_S, EJECTED_AT_MOST_S)
        self.hangs, self._late = True, 0
        self._out(error)

    def _refuse(self, error: Exception) -> None:
        self._wait(REFUSED_FIRST_S, REFUSED_AT_MOST_S)
        self.hangs = False
        reason = str(error)
        if reason != self.refusal:
            log.error("a graph is kept out", extra=self._where | {"reason": reason[:500]})
        self.refusal = reason
        self._out(None)

    def _wait(self, first_s: float, at_most_s: float) -> None:
        now = time.monotonic()
        self._fell = 0 if now - self.try_at > STEADY_S else self._fell + 1
        self.try_at = now + min(first_s * 2**self._fell, at_most_s)

    def _note(self, error: BaseException | None = None) -> None:
        if self.ready != self._was_ready and (self._was_ready is not None or self.ready):
            said = self._where | ({"reason": (str(error) or type(error).__name__)[:500]} if error else {})
            log.log(logging.INFO if self.ready else logging.WARNING, "ready" if self.ready else "not ready", extra=said)
        self._was_ready = self.ready

    @property
    def _where(self) -> dict[str, Any]:
        return {"graph": self.package.name, "endpoint": self.endpoint.address}


def is_over(ends: float) -> bool:
    return ends - time.monotonic() < TIMER_S
