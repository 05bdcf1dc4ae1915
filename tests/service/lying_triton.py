"""A fake Triton, and a liar: it takes every model and answers its golden rows well, and everything else as it is told
to. For replies that no real server can be made to give."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2_grpc

from feature_client.release import ReleaseGraph

Lie = Callable[[pb.ModelInferResponse], None]
"""Changes a good reply."""


def honest(reply: pb.ModelInferResponse) -> None:
    pass


class LyingTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Of one graph. error: what it says to everything but golden rows. held: it does not answer until `gate` is set.

    golden_s: what it takes for golden rows. asked, cancelled: inferences that were not golden; of them, those that
    nobody waited for any more.
    """

    def __init__(self, graph: ReleaseGraph) -> None:
        self.graph = graph
        self.lie: Lie = honest
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.golden_too = False
        self.golden_s = 0.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = self.cancelled = 0
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["LyingTriton"]:
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)

    async def RepositoryModelLoad(  # noqa: N802  (gRPC's names)
        self, request: pb.RepositoryModelLoadRequest, context: grpc.aio.ServicerContext
    ) -> pb.RepositoryModelLoadResponse:
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: grpc.aio.ServicerContext
    ) -> pb.RepositoryModelUnloadResponse:
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        golden = self.graph.golden
        rows = request.inputs[0].shape[0]
        is_golden = request.raw_input_contents[0] == golden.tensors["numeric"].tobytes()
        if is_golden:
            await asyncio.sleep(self.golden_s)
        if not is_golden or self.golden_too:
            self.asked += 1
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            if self.error is not None:
                await context.abort(*self.error)
        reply = pb.ModelInferResponse(model_name=request.model_name, model_version=request.model_version)
        for name in self.graph.outputs(rows):
            values = np.resize(golden.answers[name], (rows, *golden.answers[name].shape[1:]))
            reply.outputs.add(name=name, datatype="FP32", shape=values.shape)
            reply.raw_output_contents.append(values.tobytes())
        if not is_golden or self.golden_too:
            self.lie(reply)
        return reply
