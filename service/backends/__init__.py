"""What runs models: the protocol every backend keeps, and what can go wrong."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from feature_client.golden import GoldenError, Tensors
from feature_client.release import ReleaseError, ReleaseGraph

GOLDEN_TIMEOUT_S = 30.0
"""For the golden rows of a graph that was just loaded: the first run allocates."""


class BackendUnavailable(Exception):
    """The backend did not answer, or does not have the model."""


class Unreachable(BackendUnavailable):
    """Nothing answers where the backend should be: that says nothing about any model."""


class BadModelOutput(Exception):
    """The backend answered something that cannot be an answer: wrong name, shape or dtype, or not finite."""


Infer = Callable[[str, Tensors, float], Awaitable[Tensors]]
"""`Backend.infer`, or what keeps its promise."""


class Backend(Protocol):
    @property
    def available(self) -> bool:
        """Everything that is loaded can be answered, as far as is known."""

    async def load(self, graph: ReleaseGraph) -> None:
        """Makes the model `graph.name` ready, and proves it wherever it will run: the golden rows give the golden
        answers (`check_golden`). What fails leaves nothing loaded.

        Raises BackendUnavailable, BadModelOutput, ReleaseError, TimeoutError.
        """

    async def unload(self, name: str) -> None:
        """Lets go of the model; one that is not loaded is no error."""

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        """Outputs by name, as the model gave them: whoever uses them checks them (`check_outputs`).

        Raises BackendUnavailable; TimeoutError after `timeout_s`.
        """

    async def close(self) -> None: ...


@runtime_checkable
class InfersAside(Protocol):
    """What a backend has beyond the protocol where its models would otherwise wait for each other's turn."""

    async def infer_aside(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        """As `infer`, for what nobody waits for: no other inference ever waits for this one."""


def infer_aside(backend: Backend) -> Infer:
    return backend.infer_aside if isinstance(backend, InfersAside) else backend.infer


def check_outputs(name: str, outputs: Tensors, expected: Mapping[str, tuple[int, ...]]) -> None:
    """expected: output -> shape. Raises BadModelOutput where these outputs are not float32, of that shape, finite."""
    for output, shape in expected.items():
        values = outputs.get(output)
        if values is None or values.dtype != np.float32 or values.shape != shape:
            found = "missing" if values is None else f"{values.dtype} {list(values.shape)}"
            raise BadModelOutput(f"{name}: {output} is {found}, not float32 {list(shape)}")
        if not np.isfinite(values).all():
            raise BadModelOutput(f"{name}: {output} is not finite")


def check_golden(graph: ReleaseGraph, outputs: Tensors) -> None:
    """outputs: of the graph's golden rows, on some backend. Raises BadModelOutput, ReleaseError."""
    check_outputs(graph.name, outputs, graph.outputs(len(graph.golden)))
    try:
        graph.golden.check(outputs)
    except GoldenError as exc:
        raise ReleaseError(f"{graph.name}: {exc} on this backend") from exc
