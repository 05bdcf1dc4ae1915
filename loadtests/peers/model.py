"""The release as a peer runs it: features in, scores out, on ONNX Runtime with the one thread that its core has."""

from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime

from loadtests.peers.encode import Columns, Encoder

REPO, RELEASE, AS_OF = "PEER_REPO", "PEER_RELEASE", "PEER_AS_OF"
"""A peer's environment: the folder with feature_store.yaml, the release's folder, epoch seconds to answer as of."""


class Model:
    def __init__(self, release: Path, as_of: float) -> None:
        """as_of: epoch seconds; the data set is served at an instant of its own."""
        self.encoder = Encoder.of_release(release)
        self.as_of = as_of
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(release / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    @property
    def tasks(self) -> list[str]:
        return self.encoder.tasks

    def score(self, columns: Columns) -> npt.NDArray[Any]:
        """float32 [rows, tasks]."""
        tensors = self.encoder.encode(columns, self.as_of)
        scores: npt.NDArray[Any] = self.session.run(["scores"], tensors)[0]
        return scores

    def named(self, columns: Columns) -> list[dict[str, float]]:
        """One object a row: task -> score."""
        return [dict(zip(self.tasks, row, strict=True)) for row in self.score(columns).tolist()]
