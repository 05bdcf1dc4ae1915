"""Our executor of the backend `onnxruntime`, in the real Triton: the same answers, whoever was batched with whom."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from feature_client.contract import discrepancy
from feature_client.golden import Tensors
from feature_client.release import Release, ReleaseGraph
from feature_client.triton_config import config_json
from service.backends.embedded import EmbeddedBackend
from service.local_triton import LocalTriton
from tests.model_export.tiny_release import build_tiny_release
from tests.triton_calls import Refused, batches_when, connected, infer, infer_at_once, loaded

WAITING = {"dynamic_batching": {"preferred_batch_size": [8], "max_queue_delay_microseconds": 10_000_000}}
"""A batch starts when it has 8 rows (or long after): so tests say who is batched with whom. Never in production."""

BAD = 3


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return build_tiny_release(tmp_path_factory.mktemp("backend") / "models")


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedBackend]:
    backend = EmbeddedBackend()
    yield backend
    asyncio.run(backend.close())


def rows_of(graph: ReleaseGraph, rows: int) -> dict[str, npt.NDArray[Any]]:
    """Rows that all differ: the golden ones again and again, with another first number each."""
    again = np.arange(rows) % len(graph.golden)
    tensors = {name: tensor[again].copy() for name, tensor in graph.golden.tensors.items()}
    tensors["numeric"][:, 0] = np.arange(rows) / 7
    return tensors


def warmed_up(graph: ReleaseGraph) -> list[int]:
    """Rows of each run at load, which Triton counts like any other."""
    return [warm["batch_size"] for warm in json.loads(config_json(graph))["model_warmup"]]


def one_by_one(tensors: Tensors) -> list[dict[str, npt.NDArray[Any]]]:
    return [{name: tensor[row : row + 1] for name, tensor in tensors.items()} for row in range(len(tensors["numeric"]))]


@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_scores_are_those_of_onnx_runtime_itself(
    release: Release, triton: LocalTriton, embedded: EmbeddedBackend, rows: int
) -> None:
    graph = release.graphs()[0]
    tensors = rows_of(graph, rows)

    async def expected() -> Tensors:
        await embedded.load(graph)
        return await embedded.infer(graph.name, tensors, 30.0)

    with loaded(triton.address, graph) as client:
        answer = infer(client, graph, tensors)

    np.testing.assert_array_equal(answer["scores"], asyncio.run(expected())["scores"])


def test_a_batch_of_explanations_is_cut_as_in_the_gateway(
    release: Release, triton: LocalTriton, embedded: EmbeddedBackend
) -> None:
    """By every explainer as its own cost says, and so the same to the last bit."""
    for graph in release.graphs()[1:]:
        tensors = rows_of(graph, 30)

        async def expected(graph: ReleaseGraph = graph, tensors: Tensors = tensors) -> Tensors:
            await embedded.load(graph)
            return await embedded.infer(graph.name, tensors, 60.0)

        with loaded(triton.address, graph) as client:
            answer = infer(client, graph, tensors)

        for name, values in asyncio.run(expected()).items():
            np.testing.assert_array_equal(answer[name], values)


def test_requests_of_one_batch_get_each_their_own_answer(release: Release, triton: LocalTriton) -> None:
    """Of several sizes: 1 + 4 + 3 rows."""
    for graph in release.graphs():
        tensors = rows_of(graph, 8)
        parts = [
            {name: tensor[rows] for name, tensor in tensors.items()} for rows in (slice(1), slice(1, 5), slice(5, 8))
        ]
        with loaded(triton.address, graph, WAITING) as client:
            whole = infer(client, graph, tensors)
            answers = infer_at_once(client, graph, parts)
            rows = sum(warmed_up(graph)) + 16
            counted = batches_when(client, graph.name, rows=rows)

        assert counted == (rows, len(warmed_up(graph)) + 2)
        for name, values in whole.items():
            joined = np.concatenate([answer[name] for answer in answers if not isinstance(answer, str)])
            # Their order in the batch is not ours, which may show in the last bits.
            assert (discrepancy(joined, values) <= 1).all()


def test_one_bad_request_does_not_fail_its_neighbours(release: Release, triton: LocalTriton) -> None:
    graph = release.graphs()[0]
    requests = one_by_one(rows_of(graph, 8))
    good = [*requests[:BAD], *requests[BAD + 1 :]]
    # No embedding has so many rows.
    requests[BAD]["categorical"] = np.full_like(requests[BAD]["categorical"], 10**6)
    with loaded(triton.address, graph, WAITING) as client:
        answers = infer_at_once(client, graph, requests)
        warm = len(warmed_up(graph))
        _, runs = batches_when(client, graph.name, runs=warm + 1)
        alone = [infer(client, graph, {name: np.repeat(row, 8, axis=0) for name, row in one.items()}) for one in good]

    assert runs == warm + 1
    refused = answers.pop(BAD)
    assert isinstance(refused, str)
    assert "ONNX Runtime" in refused
    for answer, expected in zip(answers, alone, strict=True):
        assert not isinstance(answer, str)
        assert (discrepancy(answer["scores"], expected["scores"][:1]) <= 1).all()


def test_a_graph_that_cannot_be_read_is_refused_and_the_server_goes_on(release: Release, triton: LocalTriton) -> None:
    graph = release.graphs()[0]
    pid = triton.pid
    with connected(triton.address) as client, pytest.raises(Refused, match="onnx"):
        client.load_model("garbage", config='{"backend": "onnxruntime"}', files={"file:1/model.onnx": b"garbage"})

    with loaded(triton.address, graph) as client:
        graph.golden.check(infer(client, graph, graph.golden.tensors))
    assert triton.pid == pid
