"""The shipped fake: a backend without a runtime, for tests of everything around it."""

import asyncio
from collections.abc import Callable

from feature_client.golden import Tensors
from feature_client.release import ReleaseError, ReleaseGraph
from service.backends import BackendUnavailable, check_golden

Answer = Callable[[str, Tensors], Tensors]


class FakeBackend:
    """Answers what `answer(name, tensors)` returns, after `delay_s`. Loads any directory that holds a graph.

    contract: the digest that its graphs claim to carry.
    """

    available = True

    def __init__(self, answer: Answer, contract: str, delay_s: float = 0.0) -> None:
        self.answer = answer
        self.contract = contract
        self.delay_s = delay_s
        self.loaded: set[str] = set()

    async def load(self, graph: ReleaseGraph) -> None:
        if not graph.file.exists():
            raise BackendUnavailable(f"{graph.name}: no graph")
        if graph.contract.digest != self.contract:
            raise ReleaseError(f"{graph.name}: the graph was exported with another contract")
        check_golden(graph, self.answer(graph.name, graph.golden.tensors))
        self.loaded.add(graph.name)

    async def unload(self, name: str) -> None:
        self.loaded.discard(name)

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        if name not in self.loaded:
            raise BackendUnavailable(f"{name} is not loaded")
        async with asyncio.timeout(timeout_s):
            await asyncio.sleep(self.delay_s)
        return self.answer(name, tensors)

    async def close(self) -> None:
        self.loaded.clear()
