"""One Triton as the gateway reaches it: a gRPC channel, what is called over it, and what its errors mean."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2_grpc

from service.backends import BackendUnavailable, Unreachable

LOAD_TIMEOUT_S = 60.0
UNLOAD_TIMEOUT_S = 5.0

OPTIONS = (
    # Triton bounds neither; what is sent here is bounded by the rows of a batch, what comes is checked.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own back-off grows to two minutes: a restarted Triton would be found that much later.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # how long one attempt may take
    # Bytes that nobody acknowledges for this long end the connection, else TCP would go on for a quarter of an hour.
    # The pings that belong to it come as rarely as servers allow by default: golden rows tell more, and sooner.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # A proxy of the environment is for the internet. Each endpoint has connections of its own, with its own history.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

UNKNOWN_MODEL = "Request for unknown model"
"""How Triton begins NOT_FOUND; and UNAVAILABLE where the model has just been unloaded."""
STUB_DIED = "is not healthy"
"""In an INTERNAL error: the process that a python-based backend runs the model in has died."""


Lane = Literal["scores", "explanations", "aside"]
"""aside: what nobody waits for, one batch at a time."""


class NotLoaded(BackendUnavailable):
    """The endpoint answers and does not have the model: it was restarted, or somebody unloaded it."""


class Broken(BackendUnavailable):
    """The endpoint has the model, and the process that runs it has died."""


def is_cancelled() -> bool:
    """Whether a CancelledError is this task's own, and not what became of something it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Endpoint:
    """address: host:port of Triton's gRPC. max_in_flight: batches of scores that it works on for this process at once,
    and as many of explanations. Lanes do not share: a score never waits behind explanations.

    reachable: whether it answered last time, whatever it said. epoch: counts how often it went away: what was known of
    its models is not known any more.
    """

    def __init__(self, address: str, max_in_flight: int) -> None:
        self.address = address
        self.reachable = True
        self.epoch = 0
        self.busy = 0  # batches that run or wait for a slot
        self._slots = {
            "scores": asyncio.Semaphore(max_in_flight),
            "explanations": asyncio.Semaphore(max_in_flight),
            "aside": asyncio.Semaphore(1),
        }
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    @contextlib.asynccontextmanager
    async def slot(self, lane: Lane, ends: float) -> AsyncIterator[None]:
        """One of the lane's places for a batch. Raises TimeoutError where none is free by `ends` (monotonic)."""
        slots = self._slots[lane]
        self.busy += 1
        try:
            if slots.locked():
                async with asyncio.timeout(ends - time.monotonic()):
                    await slots.acquire()
            else:
                await slots.acquire()
            try:
                yield
            finally:
                slots.release()
        finally:
            self.busy -= 1

    async def infer(self, request: pb.ModelInferRequest, timeout_s: float) -> pb.ModelInferResponse:
        """Raises TimeoutError, BackendUnavailable and its sub-classes. Cancelled, it cancels what Triton has queued."""
        reply: pb.ModelInferResponse = await self._call("ModelInfer", request, timeout_s)
        return reply

    async def load(self, name: str, config: str, file: str, content: bytes) -> None:
        """The model as it is given, whatever the server's own repository holds. file: `<version>/model.onnx`.

        Raises TimeoutError, BackendUnavailable and its sub-classes.
        """
        parameters = {
            "config": pb.ModelRepositoryParameter(string_param=config),
            f"file:{file}": pb.ModelRepositoryParameter(bytes_param=content),
        }
        request = pb.RepositoryModelLoadRequest(model_name=name, parameters=parameters)
        await self._call("RepositoryModelLoad", request, LOAD_TIMEOUT_S)

    async def unload(self, name: str) -> None:
        """One that is not loaded is no error. Raises TimeoutError, BackendUnavailable and its sub-classes."""
        with contextlib.suppress(NotLoaded):
            request = pb.RepositoryModelUnloadRequest(model_name=name)
            await self._call("RepositoryModelUnload", request, UNLOAD_TIMEOUT_S)

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        if timeout_s <= 0:
            raise TimeoutError
        if self._channel is None:  # not before: a channel belongs to the event loop that runs when it is made
            self._channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        call: Callable[..., Any] = getattr(self._stub, method)
        try:
            reply = await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as exc:
            error = self._meaning(exc)
            self._answered(reachable=None if isinstance(error, TimeoutError) else not isinstance(error, Unreachable))
            raise error from exc
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            # gRPC says it like this when it is the channel that was closed.
            raise Unreachable(f"{self.address}: closed") from None
        self._answered(reachable=True)
        return reply

    def _answered(self, *, reachable: bool | None) -> None:
        if reachable is False and self.reachable:
            self.epoch += 1
        if reachable is not None:
            self.reachable = reachable

    def _meaning(self, error: grpc.aio.AioRpcError) -> Exception:
        code, details = error.code(), error.details() or ""
        said = f"{self.address}: {code.name}: {details[:300]}"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return TimeoutError(said)
        if code is grpc.StatusCode.NOT_FOUND or UNKNOWN_MODEL in details:
            return NotLoaded(said)
        if code is grpc.StatusCode.INTERNAL and STUB_DIED in details:
            return Broken(said)
        # A reset stream is what some proxies make of a server that went away.
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or "RST_STREAM" in details:
            return Unreachable(said)
        return BackendUnavailable(said)
