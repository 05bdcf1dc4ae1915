"""One body for every backend: in-process ONNX Runtime, a real Triton, and the shipped fake."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import requests

from feature_client.contract import discrepancy
from feature_client.golden import Golden, Tensors
from feature_client.release import Release, ReleaseError, ReleaseGraph
from service.backends import Backend, BackendUnavailable, check_outputs
from service.backends.embedded import EmbeddedBackend
from service.backends.fake import FakeBackend
from service.backends.triton import TritonBackend
from tests.service.conftest import Start

BATCHES = [("predict", 1), ("predict", 64), ("predict", 1_000), ("explain", 1), ("explain", 32)]

Make = Callable[[], Backend]
Scenario = Callable[[Backend], Awaitable[None]]


class Offline:
    """What the graphs of some releases answer, computed without any backend."""

    def __init__(self, *releases: Release) -> None:
        self.sessions = {
            graph.name: ort.InferenceSession(str(graph.file), providers=["CPUExecutionProvider"])
            for release in releases
            for graph in release.graphs()
        }

    def __call__(self, name: str, tensors: Tensors) -> Tensors:
        session = self.sessions[name]
        outputs = [output.name for output in session.get_outputs()]
        return dict(zip(outputs, session.run(outputs, dict(tensors)), strict=True))


@pytest.fixture(scope="session")
def offline(release: Release) -> Offline:
    return Offline(release)


@pytest.fixture(params=["embedded", "triton", "fake"])
def make(request: pytest.FixtureRequest, release: Release) -> Make:
    if request.param == "embedded":
        return EmbeddedBackend
    if request.param == "fake":
        offline: Offline = request.getfixturevalue("offline")
        return lambda: FakeBackend(offline, release.contract.digest)
    address = request.getfixturevalue("triton").address
    return lambda: TritonBackend([address])


def run(make: Make, scenario: Scenario) -> None:
    async def whole() -> None:
        backend = make()
        try:
            await scenario(backend)
        finally:
            await backend.close()

    asyncio.run(whole())


def graph_of(release: Release, lane: str) -> ReleaseGraph:
    scores, explanations, *_ = release.graphs()
    return explanations if lane == "explain" else scores


def inputs(graph: ReleaseGraph, rows: int) -> Tensors:
    """The golden rows again and again, no two neighbours alike."""
    return {name: np.resize(tensor, (rows, *tensor.shape[1:])) for name, tensor in graph.golden.tensors.items()}


@pytest.mark.parametrize(("lane", "rows"), BATCHES)
def test_answers_are_those_of_the_graph_row_by_row(
    make: Make, release: Release, offline: Offline, lane: str, rows: int
) -> None:
    graph = graph_of(release, lane)
    tensors = inputs(graph, rows)
    expected = offline(graph.name, tensors)

    async def scenario(backend: Backend) -> None:
        await backend.load(graph)
        outputs = await backend.infer(graph.name, tensors, 30.0)

        assert set(outputs) == set(graph.outputs(rows))
        check_outputs(graph.name, outputs, graph.outputs(rows))
        for name, values in outputs.items():
            scale = np.abs(expected[name]).max()
            assert (discrepancy(values, expected[name], scale) <= 1).all(), name
        await backend.unload(graph.name)

    run(make, scenario)


@pytest.mark.parametrize("lane", ["predict", "explain"])
def test_what_was_not_loaded_or_was_unloaded_is_unavailable(make: Make, release: Release, lane: str) -> None:
    graph = graph_of(release, lane)

    async def scenario(backend: Backend) -> None:
        await backend.unload(graph.name)
        for _ in range(2):
            with pytest.raises(BackendUnavailable):
                await backend.infer(graph.name, inputs(graph, 1), 5.0)
            await backend.load(graph)
            await backend.infer(graph.name, inputs(graph, 1), 30.0)
            await backend.unload(graph.name)

    run(make, scenario)


def test_loading_again_changes_nothing(make: Make, release: Release) -> None:
    graph = graph_of(release, "predict")

    async def scenario(backend: Backend) -> None:
        for _ in range(3):
            await backend.load(graph)
            await backend.infer(graph.name, inputs(graph, 1), 30.0)
        await backend.unload(graph.name)

    run(make, scenario)


@pytest.mark.parametrize("lane", ["predict", "explain"])
def test_other_golden_answers_leave_nothing_loaded(make: Make, release: Release, lane: str) -> None:
    graph = graph_of(release, lane)
    golden = Golden(graph.golden.tensors, {**graph.golden.answers, "scores": graph.golden.answers["scores"] + 0.01})

    async def scenario(backend: Backend) -> None:
        with pytest.raises(ReleaseError, match="differ from the golden answers"):
            await backend.load(replace(graph, golden=golden))
        with pytest.raises(BackendUnavailable):
            await backend.infer(graph.name, inputs(graph, 1), 5.0)

    run(make, scenario)


def test_a_graph_of_another_contract_is_refused(make: Make, release: Release) -> None:
    graph = graph_of(release, "predict")
    contract = replace(graph.contract, digests={**graph.contract.digests, "data": "another"})

    async def scenario(backend: Backend) -> None:
        with pytest.raises(ReleaseError, match="another contract"):
            await backend.load(replace(graph, contract=contract))
        with pytest.raises(BackendUnavailable):
            await backend.infer(graph.name, inputs(graph, 1), 5.0)

    run(make, scenario)


def test_a_graph_that_is_not_there_cannot_be_loaded(make: Make, release: Release, tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        with pytest.raises((BackendUnavailable, ReleaseError)):
            await backend.load(replace(graph_of(release, "predict"), directory=tmp_path))

    run(make, scenario)


def test_nothing_is_answered_after_its_time(make: Make, release: Release) -> None:
    graph = graph_of(release, "predict")

    async def scenario(backend: Backend) -> None:
        await backend.load(graph)
        with pytest.raises(TimeoutError):
            await backend.infer(graph.name, inputs(graph, 1), 0.0)
        await backend.unload(graph.name)

    run(make, scenario)


@pytest.mark.parametrize("kind", ["embedded", "triton"])
def test_two_versions_answer_side_by_side_each_as_itself(
    request: pytest.FixtureRequest, versions: tuple[Release, Release], kind: str
) -> None:
    graphs = [graph_of(release, lane) for release in versions for lane in ("predict", "explain")]
    tensors, offline = inputs(graphs[0], 5), Offline(*versions)
    address = request.getfixturevalue("triton").address if kind == "triton" else ""

    async def scenario(backend: Backend) -> None:
        for graph in graphs:
            await backend.load(graph)
        scores = [(await backend.infer(graph.name, tensors, 30.0))["scores"] for graph in graphs]

        for graph, given in zip(graphs, scores, strict=True):
            assert (discrepancy(given, offline(graph.name, tensors)["scores"], 0.0) <= 1).all()
        assert not (discrepancy(scores[0], scores[2], 0.0) <= 1).all()
        for graph in graphs:
            await backend.unload(graph.name)

    run(lambda: TritonBackend([address]) if kind == "triton" else EmbeddedBackend(), scenario)


@pytest.mark.parametrize(("lane", "rows"), BATCHES)
def test_the_gateway_answers_the_same_on_every_backend(
    make: Make, start: Start, customers: list[str], lane: str, rows: int
) -> None:
    asked = [*customers, "nobody"]
    body = {"entities": [{"customer_id": asked[row % len(asked)]} for row in range(rows)]}
    answers = [
        requests.post(f"{gateway}/v1/{lane}", json=body, headers={"X-Deadline-Ms": "30000"}, timeout=60)
        for gateway in [start(backend, redis_timeout_ms=10_000) for backend in (EmbeddedBackend(), make())]
    ]

    assert [answer.status_code for answer in answers] == [200, 200], answers[-1].text
    usual, this = (answer.json() for answer in answers)
    assert len(this["predictions"]) == rows
    assert alike(this | {"request_id": usual["request_id"]}, usual)


def alike(this: object, usual: object) -> bool:
    """Equal but for the last digits of numbers that a graph gave."""
    if isinstance(this, dict) and isinstance(usual, dict):
        return this.keys() == usual.keys() and all(alike(this[key], usual[key]) for key in this)
    if isinstance(this, list) and isinstance(usual, list):
        return len(this) == len(usual) and all(map(alike, this, usual))
    if isinstance(this, float) and isinstance(usual, float):
        return this == pytest.approx(usual, rel=1e-4, abs=1e-4)
    return this == usual
