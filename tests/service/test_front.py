"""The ASGI layer in front of the router: what it takes, what it leaves, and what it does about clients that go."""

import asyncio
import json
import socket

import pytest
import requests
from redis import Redis
from starlette.types import Message

from feature_client.contract import ATOL, RTOL
from feature_client.release import Release
from service import bodies
from service.exchange import Exchanges
from service.logs import AccessLog
from service.metrics import Metrics
from tests.feast_layout import key_of
from tests.service.conftest import Start
from tests.service.test_errors import golden
from tests.service.test_operations import GOOD, total, until


def request_bytes(body: bytes) -> bytes:
    return b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/explain"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_other_methods_are_405_and_counted_on_their_route(url: str, path: str, method: str) -> None:
    before = total(url, "rapport_requests_total", route=path, code="405")
    refused = requests.request(method, url + path, timeout=5)

    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert refused.headers["x-request-id"]
    assert total(url, "rapport_requests_total", route=path, code="405") == before + 1


def test_a_body_may_come_in_pieces(url: str, customers: list[str]) -> None:
    sent = request_bytes(json.dumps(GOOD).encode())
    with connect(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for first in range(0, len(sent), 20):
            connection.sendall(sent[first : first + 20])
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")


def test_many_requests_on_one_connection_are_answered_in_their_order(url: str, customers: list[str]) -> None:
    asked = ["c1", "c2", "nobody", "c3"]
    sent = [json.dumps({"entities": [{"customer_id": customer}]}).encode() for customer in asked]
    with connect(url) as connection:
        connection.sendall(b"".join(map(request_bytes, sent)))
        answer = b""
        while answer.count(b'"predictions"') < len(asked):
            answer += connection.recv(65_536)

    found = [answer.index(b'{"customer_id":"%s"}' % customer.encode()) for customer in asked]
    assert found == sorted(found)


def test_request_ids_differ_between_requests_and_between_processes() -> None:
    one, two = (Exchanges(Metrics(), AccessLog(enabled=False)) for _ in range(2))
    made = [exchanges.begin("POST", {}, None).request_id for exchanges in (one, two) for _ in range(100)]

    assert len(set(made)) == 200
    assert all(len(request_id) <= 64 for request_id in made)


def test_a_client_that_leaves_the_queue_takes_its_work_along(
    start: Start, customers: list[str], release: Release
) -> None:
    """One batch at a time, and that one takes an hour: whoever comes now waits."""
    backend = golden(release)
    url = start(backend, deadline_ms=30_000, batches_in_flight=1)
    backend.delay_s = 3_600.0
    body = request_bytes(json.dumps(GOOD).encode())
    with connect(url) as running:
        running.sendall(body)
        until(lambda: total(url, "rapport_batch_rows_count", stage="infer") == 1, "never started")
        with connect(url) as waiting:
            waiting.sendall(body)
            until(lambda: total(url, "rapport_inflight", lane="predict") == 2, "never admitted")
        until(lambda: total(url, "rapport_inflight", lane="predict") == 1, "still admitted")
        assert total(url, "rapport_requests_total", code="499") == 1
        assert total(url, "rapport_batch_rows_count", stage="infer") == 1


def test_a_large_request_gets_in_slices_what_it_would_get_at_once(
    start: Start, url: str, customers: list[str], release: Release
) -> None:
    asked = (["c1", "nobody", "c2", "c3"] * 8)[:30]
    features = [{} if row % 3 else {"spend_90d": float(row)} for row in range(30)]
    body = {"entities": [{"customer_id": customer} for customer in asked], "features": features}
    whole = requests.post(f"{url}/v1/predict", json=body, timeout=10).json()["predictions"]
    sliced = requests.post(f"{start(slice_rows=7)}/v1/predict", json=body, timeout=10).json()["predictions"]

    assert [prediction["entity"]["customer_id"] for prediction in sliced] == asked
    for mine, other in zip(sliced, whole, strict=True):
        scores, others = mine.pop("scores"), other.pop("scores")
        assert mine == other
        for task, score in scores.items():
            same = score is others[task] is None or abs(score - others[task]) <= ATOL + RTOL * abs(others[task])
            assert same, task


def test_a_refused_row_is_no_prediction_in_the_metrics(
    start: Start, redis: "Redis", customers: list[str], release: Release
) -> None:
    url = start()
    redis.set(key_of(release.contract.schema, "bad"), "a string")
    body = {"entities": [{"customer_id": "c1"}, {"customer_id": "bad"}]}

    assert requests.post(f"{url}/v1/predict", json=body, timeout=5).status_code == 503
    assert total(url, "rapport_predictions_total") == 0
    assert total(url, "rapport_scores_count") == 0


def test_polling_a_channel_that_has_nothing_leaves_nobody_waiting() -> None:
    async def scenario() -> None:
        channel: asyncio.Queue[Message] = asyncio.Queue()

        assert bodies.poll(channel.get) is None
        assert not bodies.has_gone(channel.get)
        channel.put_nowait({"type": "http.request"})
        channel.put_nowait({"type": "http.disconnect"})
        assert bodies.poll(channel.get) == {"type": "http.request"}
        assert bodies.has_gone(channel.get)
        assert channel.empty()

    asyncio.run(scenario())
