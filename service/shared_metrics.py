"""The metrics of several workers as one: each keeps its values in files, and a scrape adds them up."""

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable. Others may have set it for themselves (Feast does when it is imported), so it does
not say whether the metrics of this process are shared."""

_shared: list[Path] = []
"""Where they are kept, once they are."""


def share(directory: Path, worker: int) -> None:
    """From now on the metrics of this process are kept in `directory`.

    The files belong to the worker's number, not to its process: whoever takes a dead worker's place goes on counting
    where it stopped, so that counters never fall, and there are never more files than workers have. A worker that is
    killed takes with it what it has counted since its last flush.
    """
    os.environ[DIRECTORY] = str(directory)
    _shared[:] = [directory]
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]


def shared_directory() -> Path | None:
    """Where the metrics of this process are kept; None where they are its own."""
    return _shared[0] if _shared else None


def forget(directory: Path, worker: int) -> None:
    """After a worker's end: what it said of the present (in flight, loaded) no longer holds; its counts remain."""
    mark_process_dead(worker, str(directory))  # type: ignore[no-untyped-call]


def shared_registry(directory: Path) -> CollectorRegistry:
    """The metrics of all workers, each as of its last flush."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    return registry
