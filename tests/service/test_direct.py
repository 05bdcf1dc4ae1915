"""The lane from uvicorn's parser into the queue: the same answers as over ASGI, however a request arrives."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from feature_client.release import Release
from service import direct
from service.auth import add_key
from service.front import Front
from tests.service.conftest import Start
from tests.service.test_errors import golden
from tests.service.test_operations import GOOD, gateway_process, total, until

BODY = json.dumps(GOOD).encode()
REASONED = json.dumps({**GOOD, "explain": 2}).encode()
PLAIN = (b"Content-Type: application/json",)


def head(*headers: bytes, size: int = len(BODY), method: bytes = b"POST", target: bytes = b"/v1/predict") -> bytes:
    lines = (method + b" " + target + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % size, *(headers or PLAIN))
    return b"\r\n".join(lines) + b"\r\n\r\n"


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def answer(connection: socket.socket, rest: bytes = b"") -> tuple[int, dict[bytes, bytes], bytes, bytes]:
    """Status, headers, body, and what came behind it."""
    data = rest
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    top, _, data = data.partition(b"\r\n\r\n")
    status, *lines = top.split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    size = int(headers.get(b"content-length", b"0"))
    while len(data) < size:
        data += receive(connection)
    return int(status.split()[1]), headers, data[:size], data[size:]


def receive(connection: socket.socket) -> bytes:
    part = connection.recv(65_536)
    assert part, "closed in the middle of an answer"
    return part


def scores(body: bytes) -> object:
    return [prediction["scores"] for prediction in json.loads(body)["predictions"]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Bodies that went straight into the queue. (Watches; nothing is replaced.)"""
    bodies: list[bytes] = []
    take = Front.take

    def watched(self: Front, exchange, headers, body, done) -> None:  # type: ignore[no-untyped-def]
        take(self, exchange, headers, body, done)
        bodies.append(body)

    monkeypatch.setattr(Front, "take", watched)
    return bodies


def test_a_plain_request_goes_straight_and_is_answered_as_over_asgi(
    start: Start, customers: list[str], taken: list[bytes]
) -> None:
    url = start()
    with connected(url) as connection:
        connection.sendall(head() + BODY)
        status, headers, body, rest = answer(connection)
        assert (status, taken, rest) == (200, [BODY], b"")

        # Held no longer: uvicorn takes it.
        connection.sendall(head() + BODY[:7])
        time.sleep(5 * direct.HELD_S)
        connection.sendall(BODY[7:])
        same_status, same_headers, same_body, _ = answer(connection)

    assert taken == [BODY]
    assert (same_status, scores(same_body)) == (200, scores(body))
    assert headers.keys() == same_headers.keys()
    assert {b"date", b"x-request-id", b"server-timing", b"content-type"} <= headers.keys()
    assert headers[b"content-type"] == same_headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"] == json.loads(body)["request_id"].encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head(*PLAIN, b"Connection: close") + BODY, 200),
        (head(*PLAIN, b"Expect: 100-continue") + BODY, 200),
        (head(target=b"/v1/predict?x=1") + BODY, 200),
        (head(target=b"/v1/%70redict") + BODY, 200),
        (head(b"Content-Type: text/plain") + BODY, 415),
        (head(*PLAIN, b"Content-Encoding: gzip") + BODY, 415),
        (head(*PLAIN, b"X-Deadline-Ms: never") + BODY, 422),
        (head(size=1) + b"{", 400),
        (head(size=0), 400),
        (head(method=b"PUT") + BODY, 405),
        (head(target=b"/v1/nothing") + BODY, 404),
        (head(size=len(REASONED)) + REASONED, 200),
    ],
)
def test_what_is_unusual_or_wrong_goes_the_ordinary_way(
    start: Start, customers: list[str], taken: list[bytes], sent: bytes, status: int
) -> None:
    with connected(start()) as connection:
        connection.sendall(sent)
        found, _, body, rest = answer(connection)
        if found == 100:
            found, _, body, _ = answer(connection, body + rest)

    assert (found, taken) == (status, [])
    assert json.loads(body)


def test_a_body_behind_its_headers_still_goes_straight(
    start: Start, customers: list[str], taken: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "HELD_S", 20.0)
    with connected(start()) as connection:
        for part in (head(), BODY[:9], BODY[9:]):
            connection.sendall(part)
            time.sleep(0.02)  # so that each is a packet of its own
        assert answer(connection)[0] == 200

    assert taken == [BODY]


def test_a_large_body_is_not_held(
    start: Start, customers: list[str], taken: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "HELD_S", 3_600.0)
    large = BODY + b" " * 2 * direct.HELD_BYTES
    with connected(start(body_timeout_ms=200)) as connection:
        connection.sendall(head(size=len(large) + 1) + large)
        assert answer(connection)[0] == 408

    assert taken == []


def test_a_client_that_leaves_while_its_body_is_held_leaves_nothing(
    start: Start, customers: list[str], taken: list[bytes]
) -> None:
    url = start()
    for _ in range(3):
        with connected(url) as connection:
            connection.sendall(head() + BODY[:7])
    time.sleep(5 * direct.HELD_S)

    assert requests.post(f"{url}/v1/predict", json=GOOD, timeout=5).status_code == 200
    assert taken == [json.dumps(GOOD).encode()]


def test_requests_behind_each_other_are_answered_in_their_order(start: Start, customers: list[str]) -> None:
    asked = ["c1", "nobody", "c2", "c3", "c1", "nobody"]
    bodies = [json.dumps({"entities": [{"customer_id": customer}]}).encode() for customer in asked]
    with connected(start()) as connection:
        connection.sendall(b"".join(head(size=len(body)) + body for body in bodies))
        found, rest = [], b""
        for _ in asked:
            status, _, body, rest = answer(connection, rest)
            assert status == 200
            found += [prediction["entity"]["customer_id"] for prediction in json.loads(body)["predictions"]]

    assert found == asked


def test_a_refused_request_is_charged_and_counted_once(
    start: Start, customers: list[str], keys_file: Path, taken: list[bytes]
) -> None:
    """It is looked at twice: straight, and again on the ordinary way."""
    token = add_key(keys_file, "three", ("predict",), rate=3.0)
    wrong = {"entities": [{"nobody": "c1"}]}
    charged, counting = start(keys_file=keys_file), start()
    headers = {"Authorization": f"Bearer {token}"}

    refused = [requests.post(f"{charged}/v1/predict", json=wrong, headers=headers, timeout=5) for _ in range(3)]
    requests.post(f"{counting}/v1/predict", json=wrong, timeout=5)

    assert [answer.status_code for answer in refused] == [422, 422, 422]
    assert total(counting, "rapport_requests_total", code="422") == 1
    assert taken == []


def test_who_is_refused_at_the_door_is_counted_once(start: Start, customers: list[str], release: Release) -> None:
    backend = golden(release)
    url = start(backend, deadline_ms=60_000, max_inflight_rows=1_000)
    backend.delay_s = 3_600.0
    many = json.dumps({"entities": [{"customer_id": "c1"}] * 999}).encode()
    with connected(url) as full, connected(url) as refused:
        full.sendall(head(size=len(many)) + many)
        until(lambda: total(url, "rapport_inflight", lane="predict") == 999, "never admitted")
        refused.sendall(2 * (head(size=len(many)) + many))
        first, headers, _, rest = answer(refused)
        second, *_ = answer(refused, rest)

    assert (first, second, headers[b"retry-after"]) == (503, 503, b"1")
    assert total(url, "rapport_shed_total", lane="predict") == 2
    assert total(url, "rapport_requests_total", route="/v1/predict", code="503") == 2


@pytest.mark.parametrize("first", [b"/v1/predict", b"/v1/predict?asgi"])
def test_clients_that_leave_several_requests_behind_are_noticed_and_make_no_defects(
    start: Start, customers: list[str], release: Release, first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    backend = golden(release)
    url = start(backend, deadline_ms=60_000)
    backend.delay_s = 3_600.0
    for _ in range(5):
        with connected(url) as connection:
            connection.sendall(head(target=first) + BODY + (head() + BODY) * 2)
    until(lambda: total(url, "rapport_requests_total", code="499") >= 5, "nobody was missed")
    until(lambda: total(url, "rapport_inflight", lane="predict") == 0, "still admitted")

    assert total(url, "rapport_requests_total", code="500") == 0
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_body_in_chunks_goes_the_ordinary_way_and_what_stands_behind_it_is_no_header(
    start: Start, customers: list[str], taken: list[bytes]
) -> None:
    top = (b"POST /v1/predict HTTP/1.1", b"Host: x", *PLAIN, b"Transfer-Encoding: chunked", b"", b"")
    with connected(start()) as connection:
        connection.sendall(b"\r\n".join(top) + b"%x\r\n%b\r\n" % (len(BODY), BODY))
        time.sleep(0.02)
        connection.sendall(b"0\r\nContent-Type: text/plain\r\n\r\n")
        assert answer(connection)[0] == 200

    assert taken == []


@pytest.mark.parametrize("target", [b"/v1/predict", b"/v1/predict?asgi"])
def test_what_outlives_the_drain_is_told_so(
    tmp_path: Path, release: Release, redis_url: str, redis: Any, customers: list[str], target: bytes
) -> None:
    patience = {"RAPPORT_REDIS_TIMEOUT_MS": "30000", "RAPPORT_DRAIN_S": "1"}
    with gateway_process(tmp_path, release, redis_url, **patience) as (process, url):
        until(lambda: requests.get(f"{url}/readyz", timeout=5).status_code == 200, "never ready")
        with connected(url) as connection:
            redis.execute_command("CLIENT", "PAUSE", "4000", "ALL")
            connection.sendall(head(*PLAIN, b"X-Deadline-Ms: 60000", target=target) + BODY)
            time.sleep(0.3)  # until it waits for Redis
            process.terminate()
            status, _, body, _ = answer(connection)
        assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
        process.wait(20)
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    [line] = [event for event in events if event.get("route") == "/v1/predict"]
    assert (line["status"], line["code"]) == (504, "deadline_exceeded")


def test_a_failure_behind_the_queue_is_the_problem_that_it_is(
    start: Start, customers: list[str], release: Release, taken: list[bytes]
) -> None:
    backend = golden(release)
    url = start(backend, deadline_ms=200)
    backend.delay_s = 3_600.0

    refused = requests.post(f"{url}/v1/predict", json=GOOD, timeout=20)

    assert len(taken) == 1
    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")
    assert refused.headers["content-type"] == "application/problem+json"
    assert total(url, "rapport_requests_total", code="504") == 1


def test_a_client_that_leaves_the_queue_is_noticed(
    start: Start, customers: list[str], release: Release, taken: list[bytes]
) -> None:
    backend = golden(release)
    url = start(backend, deadline_ms=60_000)
    backend.delay_s = 3_600.0
    with connected(url) as connection:
        connection.sendall(head() + BODY)
        until(lambda: total(url, "rapport_inflight", lane="predict") == 1, "never admitted")

    until(lambda: total(url, "rapport_inflight", lane="predict") == 0, "still admitted")
    assert len(taken) == 1
    assert total(url, "rapport_requests_total", code="499") == 1


def test_what_is_in_flight_at_sigterm_is_answered_and_its_connection_closed(
    tmp_path: Path, release: Release, redis_url: str, customers: list[str]
) -> None:
    with gateway_process(tmp_path, release, redis_url) as (process, url):
        until(lambda: requests.get(f"{url}/readyz", timeout=5).status_code == 200, "never ready")
        with connected(url) as connection:
            connection.sendall(head() + BODY)
            assert answer(connection)[0] == 200
            connection.sendall(head() + BODY)
            process.terminate()
            status, headers, body, _ = answer(connection)
            assert (status, len(json.loads(body)["predictions"])) == (200, 1)
            assert headers.get(b"connection") in (None, b"close")
            assert connection.recv(1) == b""
        assert process.wait(20) in (0, -15, 143)
