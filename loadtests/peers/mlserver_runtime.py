"""Peer: a custom MLServer runtime; its adaptive batching hands over the ids of up to 64 requests at once."""

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec, StringCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from loadtests.peers.encode import Columns
from loadtests.peers.job import Job


class Runtime(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self.job = Job.from_environment()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        features = await self.features(StringCodec.decode_input(payload.inputs[0]))
        scores = NumpyCodec.encode_output("scores", self.job.model.score(features))
        return InferenceResponse(model_name=self.name, outputs=[scores])

    async def features(self, customers: list[str]) -> Columns:
        return await self.job.read_async(customers)


class BlockingRuntime(Runtime):
    """With Feast's other call: what it costs the event loop it saves in CPU time, and there is one core."""

    async def features(self, customers: list[str]) -> Columns:
        return self.job.read(customers)
