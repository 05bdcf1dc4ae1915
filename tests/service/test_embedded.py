"""ONNX Runtime in this process: where an inference runs is decided by what it is expected to cost."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from feature_client.contract import discrepancy
from feature_client.golden import Tensors
from feature_client.release import Release
from service.backends import BackendUnavailable
from service.backends.embedded import INLINE_S, Cost, EmbeddedBackend, Graph


class Fixed(Cost):
    """A cost that nothing seen changes."""

    def seen(self, rows: int, seconds: float) -> None:
        pass


class Watched(Graph):
    """Notes down which thread each run is on."""

    def __init__(self, graph: Graph, cost: Cost) -> None:
        self.session, self.outputs, self.explained_rows = graph.session, graph.outputs, graph.explained_rows
        self.cost = cost
        self.threads: list[str] = []
        self.runs: list[int] = []

    def run(self, tensors: Tensors, ends: float) -> Tensors:
        self.threads.append(threading.current_thread().name)
        return super().run(tensors, ends)

    def _run(self, tensors: Tensors, ends: float) -> Sequence[npt.NDArray[Any]]:
        self.runs.append(len(tensors["numeric"]))
        return super()._run(tensors, ends)


def inputs(release: Release, rows: int) -> Tensors:
    with np.load(release.golden) as golden:
        return {name: np.resize(golden[name], (rows, *golden[name].shape[1:])) for name in ("numeric", "categorical")}


def on_loaded(release: Release, scenario: Callable[[EmbeddedBackend], Awaitable[None]]) -> None:
    """Runs the scenario on a backend that has loaded all graphs."""

    async def run() -> None:
        backend = EmbeddedBackend()
        try:
            for graph in release.graphs():
                await backend.load(graph)
            await scenario(backend)
        finally:
            await backend.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("lane", "rows", "row_s", "thread"),
    [
        ("predict", 1, INLINE_S / 2, "MainThread"),
        ("predict", 1, INLINE_S * 2, "scores"),
        ("predict", 9, INLINE_S / 10, "MainThread"),
        ("predict", 11, INLINE_S / 10, "scores"),
        ("explain", 1, INLINE_S / 2, "MainThread"),
        ("explain", 1, INLINE_S * 2, "explanations"),
    ],
)
def test_cheap_batches_run_on_the_loop_and_dear_ones_in_the_thread_of_their_lane(
    release: Release, lane: str, rows: int, row_s: float, thread: str
) -> None:
    name = release.name if lane == "predict" else release.graph_name("fast")

    async def scenario(backend: EmbeddedBackend) -> None:
        graph = backend.graphs[name] = Watched(backend.graphs[name], Fixed(0.0, row_s))
        await backend.infer(name, inputs(release, rows), 10.0)

        assert [name.partition("_")[0] for name in graph.threads] == [thread]

    on_loaded(release, scenario)


def test_a_cost_is_a_line_through_two_measurements_and_never_falls_with_rows() -> None:
    cost = Cost.of((1, 30e-6), (31, 90e-6))

    assert cost.expected_s(1) == pytest.approx(30e-6)
    assert cost.expected_s(16) == pytest.approx(60e-6)
    assert Cost.of((1, 30e-6), (31, 20e-6)).expected_s(1_000) == pytest.approx(30e-6)


def test_what_is_seen_moves_what_is_expected_and_one_outlier_does_not() -> None:
    cost = Cost(100e-6, 0.0)
    cost.seen(1, 10 * 100e-6)
    assert cost.expected_s(1) < INLINE_S

    for _ in range(200):
        cost.seen(1, 3 * 100e-6)
    assert cost.expected_s(1) == pytest.approx(300e-6, rel=0.05)
    for _ in range(200):
        cost.seen(1, 100e-6)
    assert cost.expected_s(1) == pytest.approx(100e-6, rel=0.05)


def test_costs_are_known_before_the_first_request(release: Release) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        for graph in backend.graphs.values():
            assert 0 < graph.cost.expected_s(1) <= graph.cost.expected_s(32) < np.inf

    on_loaded(release, scenario)


@pytest.mark.parametrize("row_s", [0.0, 1.0], ids=["on the loop", "in a thread"])
@pytest.mark.parametrize("rows", [1, 4, 5, 11])
def test_answers_are_the_same_wherever_they_come_from(release: Release, rows: int, row_s: float) -> None:
    """Explanations of more than a few rows come in slices: each row is what it is alone."""

    async def scenario(backend: EmbeddedBackend) -> None:
        for name, graph in backend.graphs.items():
            tensors = inputs(release, rows)
            backend.graphs[name] = Watched(graph, Fixed(0.0, row_s))
            answers = await backend.infer(name, tensors, 10.0)
            for row in range(rows):
                one = {key: tensor[row : row + 1] for key, tensor in tensors.items()}
                alone = dict(zip(graph.outputs, graph.session.run(graph.outputs, one), strict=True))
                for output in graph.outputs:
                    assert answers[output].shape[0] == rows
                    scale = np.abs(alone[output]).sum()
                    assert (discrepancy(answers[output][row : row + 1], alone[output], scale) <= 1).all()

    on_loaded(release, scenario)


def test_one_run_explains_as_many_as_the_explainer_costs_allow(release: Release) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        explainers = release.contract.explanation.explainers
        at_once = {name: backend.graphs[release.graph_name(name)].explained_rows for name in explainers}
        assert at_once == {name: explainer.entities_at_once for name, explainer in explainers.items()}
        assert backend.graphs[release.name].explained_rows is None

        graph = Watched(backend.graphs[release.graph_name("fast")], Fixed(0.0, 0.0))
        graph.explained_rows = 3
        graph.run(inputs(release, 11), time.monotonic() + 60)
        assert graph.runs == [3, 3, 3, 2]

    on_loaded(release, scenario)


@pytest.mark.parametrize("row_s", [0.0, 1.0], ids=["on the loop", "in a thread"])
def test_nothing_is_started_after_its_time(release: Release, row_s: float) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        graph = backend.graphs[release.name] = Watched(backend.graphs[release.name], Fixed(0.0, row_s))
        with pytest.raises(TimeoutError):
            graph.run(inputs(release, 1), time.monotonic() - 1)
        with pytest.raises(TimeoutError):
            await backend.infer(release.name, inputs(release, 1), 0.0)

    on_loaded(release, scenario)


def test_a_model_that_is_not_there_is_unavailable(release: Release) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        await backend.unload(release.name)
        with pytest.raises(BackendUnavailable):
            await backend.infer(release.name, inputs(release, 1), 1.0)

    on_loaded(release, scenario)


def test_inputs_that_are_none_of_the_model_are_an_error_by_name(release: Release) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        wrong = {**inputs(release, 1), "numeric": np.zeros((1, 1), np.float32)}
        with pytest.raises(BackendUnavailable):
            await backend.infer(release.name, wrong, 1.0)

    on_loaded(release, scenario)


def test_bytes_marked_as_onnx_runtimes_own_format_are_read_as_the_onnx_that_was_verified(release: Release) -> None:
    """By itself ONNX Runtime goes by the mark: a file could be one model to whoever checks it and another to it."""
    content = release.graphs()[0].read()
    assert content[:2] == b"\x08\x0a"  # the version of the format; what follows here is a producer's name
    marked = content[:2] + b"\x12\x04ORTM" + content[2:]

    with pytest.raises(Exception, match="ORT model verification failed"):
        ort.InferenceSession(marked, providers=["CPUExecutionProvider"])
    assert EmbeddedBackend()._open(marked, None).outputs == ["scores"]
