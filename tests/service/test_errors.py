"""Every error of the API, through HTTP: its status, its code, its size, and nothing of the input in it."""

import asyncio
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import requests
from redis import Redis

from feature_client.golden import Tensors
from feature_client.release import Release
from service.auth import add_key
from service.backends.fake import FakeBackend
from service.errors import INTERNAL, TABLE
from tests.feast_layout import store
from tests.service.conftest import Start, rows_of, wait_ready

SECRET = "canary4711"
GOOD = {"entities": [{"customer_id": "c1"}]}
PATIENT = {"X-Deadline-Ms": "30000"}
JSON = {"Content-Type": "application/json"}


def check(response: requests.Response, status: int, code: str) -> dict:  # type: ignore[type-arg]
    """The response is this problem and nothing else."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) <= 1_000
    assert SECRET not in response.text
    problem: dict[str, object] = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


NOT_JSON = {
    "empty": b"",
    "text": b"hello " + SECRET.encode(),
    "truncated": b'{"entities": [{"customer_id": "c1"}]',
    "trailing": b'{"entities": [{"customer_id": "c1"}]} x',
    "bom": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "bad utf-8": b'{"entities": [{"customer_id": "\xff\xfe"}]}',
    "lone surrogate": b'{"entities": [{"customer_id": "\\ud800"}]}',
    "NaN": b'{"entities": [{"customer_id": "c1"}], "features": [{"orders_30d": NaN}]}',
    "Infinity": b'{"entities": [{"customer_id": "c1"}], "features": [{"orders_30d": Infinity}]}',
    "deep arrays": b"[" * 100_000,
    "deep closed arrays": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep inside": b'{"entities": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "mismatch, then truncated": b'{"entities": [{"customer_id": 1}',
}


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/explain"])
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_400(url: str, path: str, body: bytes) -> None:
    check(requests.post(url + path, data=body, headers=JSON, timeout=10), 400, "invalid_json")


CANNOT_BE: dict[str, object] = {
    "null": None,
    "array": [],
    "no entities": {},
    "empty entities": {"entities": []},
    "entities of ids": {"entities": [SECRET]},
    "integer id": {"entities": [{"customer_id": 17850}]},
    "null id": {"entities": [{"customer_id": None}]},
    "nested id": {"entities": [{"customer_id": {"a": SECRET}}]},
    "unknown field": {**GOOD, SECRET: 1},
    "model is a number": {**GOOD, "model": 1},
    "features is a string": {**GOOD, "features": SECRET},
    "feature is an array": {**GOOD, "features": [{"orders_30d": [1]}]},
    "feature is true": {**GOOD, "features": [{"orders_30d": True}]},
}
INVALID_FEATURES = {
    "unknown name": {SECRET: 1},
    "1e39": {"orders_30d": 1e39},
    "-1e39": {"orders_30d": -1e39},
    "text for a number": {"orders_30d": SECRET},
    "NaN as text": {"orders_30d": "NaN"},
    "number for a category": {"country": 44},
}
INVALID_ENTITIES = {
    "wrong key": {SECRET: "1"},
    "no key": {},
    "one key too many": {"customer_id": "c1", SECRET: "x"},
    "empty id": {"customer_id": ""},
    "long id": {"customer_id": SECRET * 1_000},
}


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/explain"])
@pytest.mark.parametrize("body", CANNOT_BE.values(), ids=CANNOT_BE.keys())
def test_what_parses_but_cannot_be_is_422(url: str, path: str, body: object) -> None:
    sent = requests.post(url + path, data=json.dumps(body), headers=JSON, timeout=10)
    problem = check(sent, 422, "invalid_request")

    assert problem["detail"]


@pytest.mark.parametrize("features", INVALID_FEATURES.values(), ids=INVALID_FEATURES.keys())
def test_a_feature_that_cannot_be_used_says_which_row(url: str, features: object) -> None:
    body = {"entities": [{"customer_id": "c1"}, {"customer_id": "c2"}], "features": [{}, features]}
    problem = check(requests.post(f"{url}/v1/predict", json=body, timeout=10), 422, "invalid_feature")

    assert str(problem["detail"]).startswith("features[1]")


@pytest.mark.parametrize("entity", INVALID_ENTITIES.values(), ids=INVALID_ENTITIES.keys())
def test_an_entity_that_cannot_be_a_key_says_which_row(url: str, entity: object) -> None:
    body = {"entities": [{"customer_id": "c1"}, entity]}
    problem = check(requests.post(f"{url}/v1/predict", json=body, timeout=10), 422, "invalid_entity")

    assert str(problem["detail"]).startswith("entities[1]")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/predict", {"entities": [{"customer_id": "c1"}] * 1_001}),
        ("/v1/explain", {"entities": [{"customer_id": "c1"}] * 33}),
        ("/v1/predict", {"entities": [{"customer_id": "c1"}] * 33, "explain": 1}),
        ("/v1/predict", {**GOOD, "explain": 0}),
        ("/v1/explain", {**GOOD, "top": 0}),
        ("/v1/explain", {**GOOD, "tasks": []}),
        ("/v1/explain", {**GOOD, "tasks": [SECRET]}),
        ("/v1/explain", {**GOOD, "space": "logit"}),
        ("/v1/explain", {**GOOD, "detail": "everything"}),
        ("/v1/explain", {**GOOD, "tolerance": -0.01}),
        ("/v1/explain", {**GOOD, "tolerance": 1.01}),
        ("/v1/explain", {**GOOD, "budget_ms": 0}),
        ("/v1/explain", {**GOOD, "budget_ms": 60_001}),
        ("/v1/predict", {**GOOD, "explain": 1, "space": "margin"}),
        ("/v1/predict", {"entities": [{"customer_id": "c1"}] * 3, "features": [{}, {}]}),
    ],
)
def test_limits_and_choices_of_the_api_are_422(url: str, path: str, body: object) -> None:
    check(requests.post(url + path, json=body, timeout=10), 422, "invalid_request")


def test_the_largest_requests_are_answered(url: str, redis: "Redis", release: Release) -> None:
    entities = [{"customer_id": f"many-{n}"} for n in range(1_000)]
    for entity in entities:
        store(redis, release.contract.schema, entity["customer_id"], rows_of(entity["customer_id"]))
    batch = requests.post(f"{url}/v1/predict", json={"entities": entities}, headers=PATIENT, timeout=30)
    explained = requests.post(f"{url}/v1/explain", json={"entities": entities[:32]}, headers=PATIENT, timeout=30)

    assert [prediction["status"] for prediction in batch.json()["predictions"]] == ["ok"] * 1_000
    assert len(explained.json()["predictions"]) == 32


def test_a_number_that_json_has_and_no_float_holds_is_422(url: str) -> None:
    body = b'{"entities": [{"customer_id": "c1"}], "features": [{"orders_30d": 1e999}]}'

    check(requests.post(f"{url}/v1/predict", data=body, headers=JSON, timeout=10), 422, "invalid_request")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "abc", "", "99999999999", "1 0", "\u0661"])
def test_a_deadline_header_that_is_no_deadline_is_422(url: str, value: str) -> None:
    headers = {"X-Deadline-Ms": value.encode()}

    check(requests.post(f"{url}/v1/predict", json=GOOD, headers=headers, timeout=10), 422, "invalid_request")


def test_unknown_models_and_versions_are_404(url: str) -> None:
    for more in ({"model": SECRET}, {"version": "999"}, {"version": "../1"}, {"model": "engagement.1"}):
        check(requests.post(f"{url}/v1/predict", json={**GOOD, **more}, timeout=10), 404, "unknown_model")
    check(requests.get(f"{url}/v1/models/{SECRET}", timeout=10), 404, "unknown_model")


def test_unknown_paths_and_methods(url: str) -> None:
    check(requests.get(f"{url}/v1/{SECRET}", timeout=10), 404, "not_found")
    refused = requests.get(f"{url}/v1/predict", timeout=10)
    check(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"
    check(requests.put(f"{url}/livez", timeout=10), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": ""},
        {**JSON, "Content-Encoding": "gzip"},
    ],
)
def test_other_media_types_are_415(url: str, headers: dict[str, str]) -> None:
    body = json.dumps(GOOD)

    check(requests.post(f"{url}/v1/predict", data=body, headers=headers, timeout=10), 415, "unsupported_media_type")


def test_a_charset_is_no_other_media_type(url: str) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}

    assert requests.post(f"{url}/v1/predict", data=json.dumps(GOOD), headers=headers, timeout=10).status_code == 200


def test_a_large_body_is_413_as_soon_as_it_is_too_large(start: Start, customers: list[str]) -> None:
    url = start(max_body_bytes=2_000)
    body = json.dumps(GOOD) + " " * 3_000

    check(requests.post(f"{url}/v1/predict", data=body, headers=JSON, timeout=10), 413, "body_too_large")

    # Chunked, without a length, and never ending: answered all the same.
    chunk = b"3E8\r\n" + b" " * 1_000 + b"\r\n"
    answer = raw(url, b"Transfer-Encoding: chunked\r\n", chunk * 3)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_slow_body_is_408(start: Start, customers: list[str]) -> None:
    answer = raw(start(body_timeout_ms=100), b"Content-Length: 100\r\n", b'{"entities"')

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"slow_body" in answer


def raw(url: str, headers: bytes, body: bytes) -> bytes:
    """What comes back for a request written by hand, until the server closes."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + headers + b"\r\n" + body
        )
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
        return answer


def test_without_a_valid_key_it_is_401_and_always_the_same(start: Start, customers: list[str], keys_file: Path) -> None:
    add_key(keys_file, "app", ("predict",))
    url = start(keys_file=keys_file)
    bodies = set()
    for headers in ({}, {"Authorization": "Bearer " + SECRET}, {"Authorization": SECRET}):
        response = requests.post(
            f"{url}/v1/predict?key={SECRET}", json=GOOD, headers={**headers, "X-Request-Id": "one"}, timeout=10
        )
        check(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"] == "Bearer"
        bodies.add(response.content)

    assert len(bodies) == 1


def test_scopes_are_403_on_every_route(start: Start, customers: list[str], keys_file: Path) -> None:
    tokens = {scope: add_key(keys_file, scope, (scope,)) for scope in ("predict", "explain", "admin")}
    url = start(keys_file=keys_file)
    asked = {
        ("POST", "/v1/predict"): "predict",
        ("POST", "/v1/explain"): "explain",
        ("GET", "/v1/models"): "predict",
        ("GET", "/v1/models/engagement"): "predict",
        ("GET", "/metrics"): "admin",
    }

    for (method, path), needed in asked.items():
        for scope, token in tokens.items():
            body = GOOD if method == "POST" else None
            headers = {"Authorization": f"Bearer {token}"}
            response = requests.request(method, url + path, json=body, headers=headers, timeout=10)
            if scope == needed:
                assert response.status_code == 200, (path, scope)
            else:
                check(response, 403, "forbidden")


def test_reasons_in_predict_need_the_scope_explain(start: Start, customers: list[str], keys_file: Path) -> None:
    token = add_key(keys_file, "app", ("predict",))
    headers = {"Authorization": f"Bearer {token}"}
    url = start(keys_file=keys_file)

    check(
        requests.post(f"{url}/v1/predict", json={**GOOD, "explain": 1}, headers=headers, timeout=10), 403, "forbidden"
    )


def test_a_quota_is_429_with_retry_after(start: Start, customers: list[str], keys_file: Path) -> None:
    headers = {"Authorization": f"Bearer {add_key(keys_file, 'app', ('predict',), rate=0.01)}"}
    url = start(keys_file=keys_file)

    assert requests.post(f"{url}/v1/predict", json=GOOD, headers=headers, timeout=10).status_code == 200
    response = requests.post(f"{url}/v1/predict", json=GOOD, headers=headers, timeout=10)
    check(response, 429, "quota_exceeded")
    assert int(response.headers["retry-after"]) >= 1


def golden(release: Release, *, delay_s: float = 0.0) -> FakeBackend:
    """Gives the golden answers to golden questions, so that the release is taken; zeros to everything else."""
    graphs = {graph.name: graph for graph in release.graphs()}

    def answer(name: str, tensors: Tensors) -> Tensors:
        graph, rows = graphs[name], len(tensors["numeric"])
        if rows == len(graph.golden):
            return graph.golden.answers
        return {output: np.zeros(shape, np.float32) for output, shape in graph.outputs(rows).items()}

    return FakeBackend(answer, release.contract.digest, delay_s)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_502(
    start: Start, customers: list[str], release: Release, value: float
) -> None:
    backend = golden(release)
    url = start(backend)
    zeros = backend.answer
    backend.answer = lambda name, tensors: {
        key: array + np.float32(value) for key, array in zeros(name, tensors).items()
    }

    check(requests.post(f"{url}/v1/predict", json=GOOD, timeout=10), 502, "bad_model_output")
    check(requests.post(f"{url}/v1/explain", json=GOOD, timeout=10), 502, "bad_model_output")


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"scores": np.zeros((0, 3), np.float32)},
        {"scores": np.zeros((2, 3), np.float32)},
        {"scores": np.zeros((1, 2), np.float32)},
        {"scores": np.zeros((1, 3), np.float64)},
        {"other": np.zeros((1, 3), np.float32)},
    ],
    ids=["nothing", "no rows", "two rows", "two tasks", "float64", "other name"],
)
def test_an_answer_of_the_wrong_form_is_502(
    start: Start,
    customers: list[str],
    release: Release,
    reply: Tensors,
) -> None:
    backend = golden(release)
    url = start(backend)
    backend.answer = lambda name, tensors: reply

    check(requests.post(f"{url}/v1/predict", json=GOOD, timeout=10), 502, "bad_model_output")


def test_a_model_that_is_gone_is_503(start: Start, customers: list[str], release: Release) -> None:
    backend = golden(release)
    url = start(backend)
    backend.loaded.clear()

    response = requests.post(f"{url}/v1/predict", json=GOOD, timeout=10)
    check(response, 503, "model_unavailable")
    assert int(response.headers["retry-after"]) >= 1


def test_a_store_that_is_down_is_503_and_says_which(start: Start, release: Release) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    url = start(redis=nobody, ready=False)
    wait_ready(url, "release", "loaded")

    response = requests.post(f"{url}/v1/predict", json=GOOD, timeout=10)
    check(response, 503, "feature_store_unavailable")
    assert int(response.headers["retry-after"]) >= 1


def test_more_rows_than_can_be_in_flight_are_503(start: Start, customers: list[str], release: Release) -> None:
    url = start(golden(release, delay_s=0.5), max_inflight_rows=1_000, deadline_ms=5_000)

    async def flood() -> list[requests.Response]:
        body = {"entities": [{"customer_id": "c1"}] * 600}
        ask = [asyncio.to_thread(requests.post, f"{url}/v1/predict", json=body, timeout=10) for _ in range(3)]
        return await asyncio.gather(*ask)

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 1 <= len(refused) < len(answers)
    for response in refused:
        check(response, 503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1


def test_a_deadline_that_passes_is_504(start: Start, customers: list[str], release: Release) -> None:
    backend = golden(release)
    url = start(backend)
    backend.delay_s = 3_600.0

    # The client waits 10 s, the model an hour: an answer is the deadline's.
    response = requests.post(f"{url}/v1/predict", json=GOOD, headers={"X-Deadline-Ms": "50"}, timeout=10)

    check(response, 504, "deadline_exceeded")


def test_before_a_release_is_loaded_it_is_503(start: Start, tmp_path: Path, redis_url: str) -> None:
    url = start(models=tmp_path, ready=False)

    check(requests.post(f"{url}/v1/predict", json=GOOD, timeout=10), 503, "not_ready")
    assert requests.get(f"{url}/readyz", timeout=5).status_code == 503


def test_a_defect_is_500_with_its_trace_in_the_log_only(
    start: Start, customers: list[str], release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    backend = golden(release)
    url = start(backend)

    def broken(name: str, tensors: Tensors) -> Tensors:
        raise KeyError(SECRET)

    backend.answer = broken
    check(requests.post(f"{url}/v1/predict", json=GOOD, timeout=10), 500, "internal")
    assert [record for record in caplog.records if record.exc_info and "request failed" in record.message]


def test_every_error_of_the_table_has_a_test_here() -> None:
    """499 has no reader; its test is test_operations.py's, of work that is dropped."""
    source = Path(__file__).read_text()
    codes = {entry.code for entry in [*TABLE.values(), INTERNAL]} - {"client_closed"}

    assert [code for code in sorted(codes) if f'"{code}"' not in source] == []
