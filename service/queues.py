"""One queue for each graph that is asked, as long as its release is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from service.coalescer import Coalescer, Item, Result, Run
from service.releases import Loaded, Releases

EXPLAINED_ROWS = 8
"""Entities in one batch of explanations, a quarter of the largest request: reading and writing for more at once would
hold up predictions on the same event loop."""


@dataclass(frozen=True)
class Limits:
    """See Settings for how to choose."""

    batch_rows: int
    slice_rows: int
    batches_in_flight: int


class Queues(Generic[Item, Result]):
    """run: what answers the batches of a graph, given its release and its explainer (None: the score graph)."""

    def __init__(
        self, releases: Releases, limits: Limits, run: Callable[[Loaded, str | None], Run[Item, Result]]
    ) -> None:
        self.releases = releases
        self.limits = limits
        self.run = run
        self._queues: dict[str, tuple[Loaded, Coalescer[Item, Result]]] = {}  # graph -> whose it is, and its queue

    def of(self, loaded: Loaded, explainer: str | None) -> Coalescer[Item, Result]:
        name = loaded.release.graph_name(explainer)
        owner, queue = self._queues.get(name, (None, None))
        # What a release reads changes with its neighbours: whoever waits in the queue before goes on in there.
        if queue is None or owner is not loaded:
            live = self.releases.graphs()
            self._queues = {graph: entry for graph, entry in self._queues.items() if graph in live}
            queue = Coalescer(
                self.run(loaded, explainer),
                max_rows=self.limits.batch_rows if explainer is None else EXPLAINED_ROWS,
                slice_rows=self.limits.slice_rows if explainer is None else EXPLAINED_ROWS,
                in_flight=self.limits.batches_in_flight if explainer is None else 1,
            )
            self._queues[name] = loaded, queue
        return queue

    def close(self) -> None:
        for _, queue in self._queues.values():
            queue.close()
