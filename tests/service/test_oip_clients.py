"""Clients of others, as they are published: Triton's in this process, KServe's in an environment of its own."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests
import tritonclient.http as triton  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]

from feature_client.contract import discrepancy
from feature_client.release import Release
from loadtests.peers import venvs
from service.auth import add_key
from tests.service.conftest import Start
from tests.service.test_oip import runtime

CLIENTS = Path(__file__).parent / "clients"
ASKED = ["c1", "c3", "nobody"]


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="session")
def rows(release: Release) -> dict[str, npt.NDArray[Any]]:
    with np.load(release.golden) as file:
        return {name: file[name] for name in ("numeric", "categorical")}


def given(name: str, datatype: str, array: npt.NDArray[Any], *, binary: bool = True) -> triton.InferInput:
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


def tensors(rows: dict[str, npt.NDArray[Any]], *, binary: bool = True) -> list[triton.InferInput]:
    return [
        given("numeric", "FP32", rows["numeric"], binary=binary),
        given("categorical", "INT64", rows["categorical"], binary=binary),
    ]


def ids(*customers: str, binary: bool = True) -> list[triton.InferInput]:
    return [given("customer_id", "BYTES", np.array(customers, object), binary=binary)]


def of_v1(url: str, *customers: str) -> list[dict[str, Any]]:
    body = {"entities": [{"customer_id": customer} for customer in customers]}
    answer = requests.post(f"{url}/v1/predict", json=body, timeout=10).json()
    return answer["predictions"]  # type: ignore[no-any-return]


def scores_of(predictions: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
    """NaN where a task is not defined for a customer."""
    return np.array([list(prediction["scores"].values()) for prediction in predictions], dtype=np.float64)


def same(actual: npt.ArrayLike, expected: npt.NDArray[Any]) -> bool:
    """NaN where NaN is expected, and nowhere else."""
    actual = np.asarray(actual, dtype=np.float64)
    nowhere = np.isnan(expected)
    return bool((np.isnan(actual) == nowhere).all() and (discrepancy(actual[~nowhere], expected[~nowhere]) <= 1).all())


def test_triton_finds_server_and_models(client: triton.InferenceServerClient, release: Release) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("engagement")
    assert client.is_model_ready("engagement.explain", release.version)
    assert not client.is_model_ready("engagement", "99")
    assert not client.is_model_ready("churn")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert [one["name"] for one in client.get_model_metadata("engagement")["inputs"]] == ["numeric", "categorical"]
    assert client.get_model_config("engagement")["max_batch_size"] == 1_000
    names = [one["name"] for one in client.get_model_repository_index()]
    assert names[:2] == ["engagement", "engagement.explain"]
    assert "engagement.explain_exact" in names
    assert all(client.is_model_ready(name, release.version) for name in names)


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_triton_infers_tensors(
    client: triton.InferenceServerClient,
    release: Release,
    rows: dict[str, npt.NDArray[Any]],
    *,
    binary_in: bool,
    binary_out: bool,
) -> None:
    if not binary_in:
        # What it would write for NaN is no JSON.
        rows = {name: np.nan_to_num(tensor) for name, tensor in rows.items()}
    outputs = [triton.InferRequestedOutput("scores", binary_data=binary_out)]
    result = client.infer("engagement", tensors(rows, binary=binary_in), outputs=outputs, request_id="42")

    assert same(result.as_numpy("scores"), runtime(release, rows, None)["scores"])
    assert result.get_response()["id"] == "42"
    assert result.get_response()["model_version"] == release.version


@pytest.mark.parametrize("binary", [True, False])
def test_triton_infers_customers(client: triton.InferenceServerClient, url: str, *, binary: bool) -> None:
    names = ("scores", "status", "applicable", "version")
    outputs = None if binary else [triton.InferRequestedOutput(name, binary_data=False) for name in names]
    result = client.infer("engagement", ids(*ASKED, binary=binary), outputs=outputs)

    predictions = of_v1(url, *ASKED)
    assert result.as_numpy("scores").dtype == np.float32
    assert same(result.as_numpy("scores"), scores_of(predictions))
    statuses = [text if isinstance(text, str) else text.decode() for text in result.as_numpy("status")]
    assert statuses == [prediction["status"] for prediction in predictions]
    assert (result.as_numpy("applicable") == ~np.isnan(scores_of(predictions))).all()
    assert not result.as_numpy("applicable").all()


def test_triton_gets_reasons(client: triton.InferenceServerClient, url: str) -> None:
    outputs = [
        triton.InferRequestedOutput("attributions"),
        triton.InferRequestedOutput("base", binary_data=False),
        triton.InferRequestedOutput("scores"),
    ]
    result = client.infer("engagement.explain", ids(*ASKED), outputs=outputs)

    scores = scores_of(of_v1(url, *ASKED))
    total = result.as_numpy("base") + result.as_numpy("attributions").sum(axis=-1, dtype=np.float64)
    assert same(result.as_numpy("scores"), scores)
    assert (np.isnan(total) == np.isnan(scores)).all()
    assert np.nanmax(np.abs(total - scores) / (1 + np.abs(scores))) < 1e-3


def test_triton_infers_in_the_background(
    client: triton.InferenceServerClient, release: Release, rows: dict[str, npt.NDArray[Any]]
) -> None:
    waiting = [client.async_infer("engagement", tensors(rows)) for _ in range(3)]

    expected = runtime(release, rows, None)["scores"]
    assert all(same(one.get_result().as_numpy("scores"), expected) for one in waiting)


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        ({"request_compression_algorithm": "gzip"}, "415", "uncompressed"),
        ({"sequence_id": 7, "sequence_start": True}, "422", "sequence_id"),
        ({"outputs": [triton.InferRequestedOutput("scores", class_count=2)]}, "422", "classification"),
        ({"outputs": [triton.InferRequestedOutput("attributions")]}, "422", "scores, status, applicable, version"),
        ({"model_version": "99"}, "404", "version"),
    ],
)
def test_triton_is_told_what_is_wrong(
    client: triton.InferenceServerClient, options: dict[str, Any], status: str, says: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer("engagement", ids("c1"), **options)

    assert refused.value.status() == status
    assert says in refused.value.message()


def test_triton_needs_a_key(start: Start, customers: list[str], keys_file: Path) -> None:
    headers = {"Authorization": f"Bearer {add_key(keys_file, 'app', ('predict',))}"}
    with triton.InferenceServerClient(start(keys_file=keys_file).removeprefix("http://")) as client:
        assert client.infer("engagement", ids("c1"), headers=headers).as_numpy("status").tolist() == [b"ok"]
        for given, status in ((None, "401"), (headers, "403")):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("engagement.explain", ids("c1"), headers=given)
            assert refused.value.status() == status


def test_kserve(
    start: Start, customers: list[str], release: Release, rows: dict[str, npt.NDArray[Any]], keys_file: Path
) -> None:
    """All of it at once: starting a Python that imports KServe takes seconds."""
    key = add_key(keys_file, "app", ("predict", "explain"))
    url = start(keys_file=keys_file)
    question = {"key": key, "customers": ASKED, **{name: tensor.tolist() for name, tensor in rows.items()}}
    python = venvs.ensure("kserve", Path(sys.prefix) / "clients", CLIENTS)
    command = [str(python), str(CLIENTS / "kserve_client.py"), url]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["live"] is found["ready"] is found["model_ready"] is True
    for name, asked in (("json", {one: np.nan_to_num(tensor) for one, tensor in rows.items()}), ("binary", rows)):
        assert same(found[f"tensors, {name}"]["scores"], runtime(release, asked, None)["scores"])
        by_id = found[f"ids, {name}"]
        assert by_id["status"] == ["ok", "ok", "unknown_entity"]
        assert by_id["version"] == [release.version] * 3
        assert by_id["applicable"][0] == [True, True, True]
        assert by_id["applicable"][1] == [True, False, True]
        explained = found[f"explained, {name}"]
        assert same(explained["scores"], np.array(by_id["scores"], dtype=np.float64))
        assert np.shape(explained["attributions"]) == (3, 3, 8)
        assert math.isnan(explained["base"][1][1])
    assert list(found["some outputs"]) == ["status", "scores"]
    assert found["some outputs"]["status"] == ["ok"]
    assert "customer_id: its datatype is BYTES" in found["error"]
