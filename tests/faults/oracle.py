"""Every answer that every version may give, computed offline: no line of the gateway's is involved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from feature_client.contract import ATOL, EXPLAINERS, RTOL
from feature_client.golden import Tensors
from feature_client.release import Release, graph_file
from tests.faults.world import EXPLAINED, NOW, Store

AT_ONCE = 4
"""Rows of one run of an explanation graph, which needs tens of megabytes a row."""


@dataclass(frozen=True)
class Reasons:
    base: float
    contributions: Mapping[str, float]

    @property
    def scale(self) -> float:
        """The size of what is split up: float32 cannot resolve a part below the rounding of its whole."""
        return abs(self.base) + sum(map(abs, self.contributions.values()))


@dataclass(frozen=True)
class Answer:
    """What one version says of one customer. reasons: of the explained customers, for tasks that have a score."""

    status: str
    scores: Mapping[str, float | None]
    reasons: Mapping[str, Reasons]


class Oracle:
    """answers: version -> customer -> answer."""

    def __init__(self, answers: Mapping[str, Mapping[str, Answer]]) -> None:
        self.answers = dict(answers)

    @classmethod
    def of_releases(cls, store: Store, releases: list[Release]) -> "Oracle":
        return cls({release.version: answers_of(store, release) for release in releases})

    def same(self, version: int, source: int) -> None:
        """`version` was published from what `source` was made of."""
        self.answers[str(version)] = self.answers[str(source)]


def answers_of(store: Store, release: Release) -> dict[str, Answer]:
    contract = release.contract
    encoded = contract.schema.encode(store.batch(contract.schema), NOW)
    eligible = contract.eligible(encoded)
    tensors = encoded.tensors
    scores = Graph(release.directory).run(tensors)["scores"]
    explain = Graph(release.root / release.graph_name(EXPLAINERS[0]))  # nobody here asks for another
    parts = [
        explain.run({name: values[at : at + AT_ONCE] for name, values in tensors.items()})
        for at in range(0, EXPLAINED, AT_ONCE)
    ]
    attributions, base = (np.concatenate([part[name] for part in parts]) for name in ("attributions", "base"))
    listed = encoded.defaulted | encoded.stale
    answers = {}
    for row, customer in enumerate(store.customers):
        status = "unknown_entity" if encoded.unknown[row] else "degraded" if listed[row].any() else "ok"
        given = {
            task: float(scores[row, column]) if eligible[row, column] else None
            for column, task in enumerate(contract.task_names)
        }
        reasons = {
            task: Reasons(
                float(base[row, column]),
                dict(zip(contract.schema.groups, attributions[row, column].tolist(), strict=True)),
            )
            for column, task in enumerate(contract.task_names)
            if row < EXPLAINED and eligible[row, column]
        }
        answers[customer] = Answer(status, given, reasons)
    return answers


def equal(actual: float | None, expected: float | None, scale: float = 0.0) -> bool:
    """DESIGN.md 3; NaN equals nothing."""
    if actual is None or expected is None:
        return actual is expected
    return abs(actual - expected) <= ATOL + RTOL * max(abs(expected), scale)


class Graph:
    def __init__(self, directory: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph_file(directory), options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, tensors: Tensors) -> dict[str, npt.NDArray[np.float32]]:
        return dict(zip(self.names, self.session.run(self.names, dict(tensors)), strict=True))
