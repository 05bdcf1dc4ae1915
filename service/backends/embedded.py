"""In-process ONNX Runtime: on the event loop while a thread would cost more than the inference, else in a thread."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from feature_client.contract import CONTRACT_KEY
from feature_client.golden import Tensors
from feature_client.release import ReleaseError, ReleaseGraph
from service.backends import GOLDEN_TIMEOUT_S, BackendUnavailable, check_golden

INLINE_S = 500e-6
"""A cheaper inference runs on the event loop itself, which then stands still no longer than that. Handing 100 us of
work to a thread takes a busy loop 130 to 160 us, but where both have one core, as with one worker a core, one hand-over
in ten took 2,500: each waits for the other's turn."""

MEASURED_ROWS = 32
"""The costs of one row and of so many give those of all other batches, by a straight line."""

MEASURING_S = 0.05
"""For one batch size: the first runs allocate and find cold caches; the fastest of many is what one costs."""

LEARNING_RATE = 0.05
"""How much of a new measurement goes into what is expected: a few dozen batches change it, one outlier does not."""

ASIDE_NICENESS = 10
"""Of threads whose work must not take a core from predictions: beside a busy one, about a tenth of it."""

NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Cost:
    """What one run of a graph takes of its thread's time, in seconds: a start, and so much a row.

    The line is measured at load; `drift` follows what is seen later.
    """

    def __init__(self, start_s: float, row_s: float) -> None:
        self.start_s = start_s
        self.row_s = row_s
        self.drift = 1.0

    @classmethod
    def of(cls, small: tuple[int, float], large: tuple[int, float]) -> "Cost":
        """From the seconds of two batch sizes."""
        row_s = max(large[1] - small[1], 0.0) / (large[0] - small[0])
        return cls(max(small[1] - small[0] * row_s, 0.0), row_s)

    def expected_s(self, rows: int) -> float:
        return self.drift * (self.start_s + rows * self.row_s)

    def seen(self, rows: int, seconds: float) -> None:
        if (line := self.start_s + rows * self.row_s) > 0:
            self.drift += LEARNING_RATE * (seconds / line - self.drift)


class Graph:
    """A loaded graph with its cost. explained_rows: entities at a time of one that gives reasons; None: it does not."""

    def __init__(self, session: ort.InferenceSession, explained_rows: int | None) -> None:
        self.session = session
        self.explained_rows = explained_rows
        self.outputs = [output.name for output in session.get_outputs()]
        self.cost = self._measured()

    def run(self, tensors: Tensors, ends: float) -> Tensors:
        """Raises TimeoutError where it is not over by `ends` (monotonic), BackendUnavailable."""
        rows = len(tensors["numeric"])
        started = time.thread_time()  # not the clock on the wall, which runs on while others have the core
        if self.explained_rows is not None and rows > self.explained_rows:
            answers = self._in_slices(tensors, rows, self.explained_rows, ends)
        else:
            answers = self._run(tensors, ends)
        self.cost.seen(rows, time.thread_time() - started)
        return dict(zip(self.outputs, answers, strict=True))

    def _run(self, tensors: Tensors, ends: float) -> Sequence[npt.NDArray[Any]]:
        if time.monotonic() >= ends:
            raise TimeoutError
        try:
            answers: Sequence[npt.NDArray[Any]] = self.session.run(self.outputs, tensors)
        except Exception as exc:  # ONNX Runtime's errors share no base but Exception
            raise BackendUnavailable(f"ONNX Runtime: {exc}") from exc
        return answers

    def _in_slices(self, tensors: Tensors, rows: int, at_once: int, ends: float) -> Sequence[npt.NDArray[Any]]:
        slices = [
            self._run({name: tensor[start : start + at_once] for name, tensor in tensors.items()}, ends)
            for start in range(0, rows, at_once)
        ]
        return [np.concatenate(parts) for parts in zip(*slices, strict=True)]

    def _measured(self) -> Cost:
        """Dense networks take the same time for all values: zeros do."""
        fastest = []
        for rows in (1, max(min(MEASURED_ROWS, self.explained_rows or MEASURED_ROWS), 2)):
            tensors = {
                put.name: np.zeros((rows, *put.shape[1:]), NUMPY_TYPES[put.type]) for put in self.session.get_inputs()
            }
            seconds: list[float] = []
            while len(seconds) < 2 or sum(seconds) < MEASURING_S:
                started = time.thread_time()
                self._run(tensors, np.inf)
                seconds.append(time.thread_time() - started)
            fastest.append((rows, min(seconds)))
        return Cost.of(*fastest)


class EmbeddedBackend:
    """threads: of one inference. One inference runs at a time in each lane: scores, explanations, those aside.

    Explanations have a thread of their own, so that a score never queues behind one; so has what nobody waits for.
    """

    available = True

    def __init__(self, threads: int = 1) -> None:
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores from the event loops.
        self.options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Not what the bytes seem to be: what was verified is ONNX.
        self.options.add_session_config_entry("session.load_model_format", "ONNX")
        self.graphs: dict[str, Graph] = {}
        self.scores = ThreadPoolExecutor(1, thread_name_prefix="scores")
        self.explanations = ThreadPoolExecutor(1, thread_name_prefix="explanations", initializer=_step_back)
        self.aside = ThreadPoolExecutor(1, thread_name_prefix="aside", initializer=_step_back)

    async def load(self, graph: ReleaseGraph) -> None:
        name = graph.name
        content = await asyncio.to_thread(graph.read)
        try:
            opened = await asyncio.to_thread(self._open, content, explained_rows_of(graph))
        except Exception as exc:  # ONNX Runtime's errors share no base but Exception
            raise BackendUnavailable(f"{name}: ONNX Runtime cannot load {graph.file.name}: {exc}") from exc
        metadata: dict[str, str] = opened.session.get_modelmeta().custom_metadata_map
        if metadata.get(CONTRACT_KEY) != graph.contract.digest:
            raise ReleaseError(f"{name}: the graph was exported with another contract")
        ends = time.monotonic() + GOLDEN_TIMEOUT_S
        check_golden(graph, await asyncio.to_thread(opened.run, graph.golden.tensors, ends))
        self.graphs[name] = opened

    async def unload(self, name: str) -> None:
        self.graphs.pop(name, None)

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        graph = self._graph(name)
        ends = time.monotonic() + timeout_s
        if graph.cost.expected_s(len(tensors["numeric"])) < INLINE_S:
            return graph.run(tensors, ends)
        pool = self.scores if graph.explained_rows is None else self.explanations
        async with asyncio.timeout(timeout_s):
            return await asyncio.get_running_loop().run_in_executor(pool, graph.run, tensors, ends)

    async def infer_aside(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        """See InfersAside. Never on the event loop, however cheap it looks."""
        graph = self._graph(name)
        ends = time.monotonic() + timeout_s
        async with asyncio.timeout(timeout_s):
            return await asyncio.get_running_loop().run_in_executor(self.aside, graph.run, tensors, ends)

    def _graph(self, name: str) -> Graph:
        graph = self.graphs.get(name)
        if graph is None:
            raise BackendUnavailable(f"{name} is not loaded")
        return graph

    async def close(self) -> None:
        self.graphs.clear()
        for pool in (self.scores, self.explanations, self.aside):
            pool.shutdown(wait=True, cancel_futures=True)

    def _open(self, content: bytes, explained_rows: int | None) -> Graph:
        return Graph(ort.InferenceSession(content, self.options, providers=["CPUExecutionProvider"]), explained_rows)


def _step_back() -> None:
    """This thread runs when the event loop and the scores leave it a core. On Linux, each thread has its niceness."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), ASIDE_NICENESS)


def explained_rows_of(graph: ReleaseGraph) -> int | None:
    """Entities of one run; None where the graph gives no reasons."""
    if graph.explainer is None:
        return None
    return graph.contract.explanation.explainers[graph.explainer].entities_at_once
