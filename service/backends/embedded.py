"""In-process ONNX Runtime."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from feature_client.contract import CONTRACT_KEY
from feature_client.release import graph_file
from service.backends import BackendUnavailable, Tensors

EXPLAINED_ROWS = 4
"""Entities of one run of an explanation graph: it works on coalitions x background rows for each, so more at once are
no faster (cost grows with rows), but 32 hold 330 MB more memory than 4."""


class EmbeddedBackend:
    """threads: of one inference. One inference runs at a time in each lane: scores, explanations.

    Explanations have a thread of their own, so that a score never queues behind one.
    """

    def __init__(self, threads: int = 1) -> None:
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1
        self.sessions: dict[str, ort.InferenceSession] = {}
        self.scores = ThreadPoolExecutor(1, thread_name_prefix="scores")
        self.explanations = ThreadPoolExecutor(1, thread_name_prefix="explanations")

    async def load(self, name: str, directory: Path) -> str:
        path = graph_file(directory)
        try:
            session = await asyncio.to_thread(
                ort.InferenceSession, str(path), self.options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # ONNX Runtime's errors share no base but Exception
            raise BackendUnavailable(f"{name}: ONNX Runtime cannot load {path.name}: {exc}") from exc
        self.sessions[name] = session
        metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        return metadata.get(CONTRACT_KEY, "")

    async def unload(self, name: str) -> None:
        self.sessions.pop(name, None)

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        session = self.sessions.get(name)
        if session is None:
            raise BackendUnavailable(f"{name} is not loaded")
        pool = self.explanations if name.endswith(".explain") else self.scores
        rows = EXPLAINED_ROWS if pool is self.explanations else len(tensors["numeric"])
        ends = time.monotonic() + timeout_s
        async with asyncio.timeout(timeout_s):
            return await asyncio.get_running_loop().run_in_executor(pool, _run, session, tensors, rows, ends)

    async def close(self) -> None:
        self.sessions.clear()
        for pool in (self.scores, self.explanations):
            pool.shutdown(wait=True, cancel_futures=True)


def _run(session: ort.InferenceSession, tensors: Tensors, rows: int, ends: float) -> Tensors:
    """Runs `rows` rows at a time, one after the other; none is started after `ends` (monotonic)."""
    names = [output.name for output in session.get_outputs()]
    starts = range(0, len(tensors["numeric"]), max(rows, 1))
    slices = []
    for start in starts:
        if time.monotonic() >= ends:
            raise TimeoutError
        part = {name: tensor[start : start + rows] for name, tensor in tensors.items()}
        try:
            slices.append(session.run(names, part))
        except Exception as exc:  # ONNX Runtime's errors share no base but Exception
            raise BackendUnavailable(f"ONNX Runtime: {exc}") from exc
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*slices, strict=True), strict=True)}
