"""What may happen to a Triton."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from feature_client.release import read_release
from feature_client.triton_config import config_json
from service.local_triton import LocalTriton
from tests.faults.promise import MODEL_DOWN, NO_REASONS, OVERLOADED, TOO_LATE
from tests.faults.repository import MODEL
from tests.faults.rig import Rig
from tests.triton_calls import Refused, connected

DOWN = (MODEL_DOWN, TOO_LATE, OVERLOADED, NO_REASONS)
"""What is promised while nobody can answer. Explanations are refused, and left out, where they took long lately."""


@contextmanager
def stopped(server: LocalTriton) -> Iterator[None]:
    """It takes what it is sent and says nothing (SIGSTOP), as long as the block."""
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def kill_backends(server: LocalTriton) -> None:
    """The processes that execute models: Triton itself lives on, and says that it is well."""
    for pid in server.python_processes():
        os.kill(pid, signal.SIGKILL)


def unload(server: LocalTriton, names: Sequence[str]) -> None:
    with connected(server.address) as client, suppress(Refused):  # it may crash on that: see Rig.recover
        for name in names:
            client.unload_model(name)


def replace_models(rig: Rig, server: LocalTriton, version: int, other: int) -> None:
    """Under the names of `version` there are the graphs of `other` now."""
    ours, theirs = (read_release(rig.root, MODEL, one).graphs() for one in (version, other))
    with connected(server.address) as client, suppress(Refused):
        for graph, foreign in zip(ours, theirs, strict=True):
            client.unload_model(graph.name)
            files = {"file:1/model.onnx": foreign.file.read_bytes()}
            client.load_model(graph.name, config=config_json(graph), files=files)
