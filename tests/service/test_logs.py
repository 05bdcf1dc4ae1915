"""The access log: the lines that logging would write, cheaply, and never a wait for whoever reads them."""

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from feature_client.release import Release
from service import logs
from service.logs import FLUSH_BYTES, MAX_BYTES, AccessLog
from tests.service.conftest import wait_ready
from tests.service.test_operations import GOOD, gateway_process, until

FIELDS = [
    "time", "level", "logger", "event",
    "request_id", "trace_id", "method", "route", "status", "code", "key", "rows", "duration_ms",
]  # fmt: skip


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Read end, write end."""
    read, write = os.pipe()
    yield read, write
    for end in (read, write):
        os.close(end)


def write(access: AccessLog, request_id: str = "r-1", key: str | None = "shop") -> None:
    access.write(request_id, "a" * 32, "POST", "/v1/predict", 503, "overloaded", key, 7, 0.0123456)


def write_many(access: AccessLog, lines: int, *, then_close: bool = True) -> None:
    async def scenario() -> None:
        for n in range(lines):
            write(access, str(n))
        if then_close:
            access.close()

    asyncio.run(scenario())


def parsed(lines: bytes) -> list[dict[str, Any]]:
    assert lines.endswith(b"\n") or not lines
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize("key", ["shop", None, 'a\r\nb\x1b[31m"},{"event": "forged"} %s ${jndi} é\u2028'])
def test_a_line_is_what_logging_would_write(tmp_path: Path, key: str | None) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure("info")
        handler = root.handlers[0]
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(io.StringIO())
        fields = {
            "request_id": "r-1", "trace_id": "a" * 32, "method": "POST", "route": "/v1/predict", "status": 503,
            "code": "overloaded", "key": key, "rows": 7, "duration_ms": 12.346,
        }  # fmt: skip
        logging.getLogger("rapport.access").info("request", extra=fields)
        expected = json.loads(handler.stream.getvalue())
    finally:
        root.handlers[:], root.level = before

    with (tmp_path / "log").open("wb") as file:
        access = AccessLog(descriptor=file.fileno())

        async def scenario() -> None:
            write(access, key=key)
            access.close()

        asyncio.run(scenario())
    written = (tmp_path / "log").read_bytes()
    assert written.count(b"\n") == 1
    [line] = parsed(written)
    assert list(line) == list(expected) == FIELDS
    assert len(line["time"]) == len(expected["time"])
    assert line["time"][:10] == expected["time"][:10] or line["time"] > expected["time"]
    assert {**line, "time": None} == {**expected, "time": None}


def test_lines_are_gathered_and_written_soon(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("wb") as stream:
        access = AccessLog(descriptor=stream.fileno())

        async def scenario() -> None:
            for round_of_lines in (1, 2):  # the second after a pause
                write(access)
                write(access)
                assert len(parsed(file.read_bytes())) == 2 * (round_of_lines - 1)
                while len(parsed(file.read_bytes())) < 2 * round_of_lines:  # noqa: ASYNC110  (a file tells nobody)
                    await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(scenario(), 20))


def test_many_lines_are_not_kept_until_then(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("wb") as stream:
        write_many(AccessLog(descriptor=stream.fileno()), 1_000, then_close=False)

    written = parsed(file.read_bytes())
    assert [line["request_id"] for line in written] == [str(n) for n in range(len(written))]
    assert 1_000 - len(written) < FLUSH_BYTES / 200


def test_nobody_who_does_not_read_stops_the_gateway_or_fills_its_memory(pipe: tuple[int, int]) -> None:
    read, end = pipe
    access = AccessLog(descriptor=end)
    asked = 4 * MAX_BYTES // 250
    write_many(access, asked, then_close=False)  # returns, though nobody reads

    assert access.dropped > 0
    assert len(access._buffer) < MAX_BYTES + 1_000
    received = bytearray()

    def collect() -> None:
        while chunk := os.read(read, 65_536):
            received.extend(chunk)
            if received.count(b"\n") == asked - dropped:
                return

    dropped = access.dropped
    reader = threading.Thread(target=collect)
    reader.start()
    access.close()
    reader.join(20)
    assert [line["request_id"] for line in parsed(bytes(received))] == [str(n) for n in range(asked - dropped)]


def test_dropped_lines_are_reported(pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    access = AccessLog(descriptor=pipe[1])
    access.dropped = 5

    write_many(access, 1)

    [record] = caplog.records
    assert (record.levelname, record.__dict__["lines"], access.dropped) == ("WARNING", 5, 0)


def test_a_reader_that_has_gone_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    read, end = os.pipe()
    access = AccessLog(descriptor=end)
    os.close(read)

    write_many(access, 3)

    [record] = caplog.records
    assert record.__dict__["lines"] == 3
    os.close(end)


WRITER = """
import asyncio, sys
from service.logs import AccessLog

access = AccessLog(descriptor=int(sys.argv[1]))

async def main():
    for n in range(3_000):
        access.write(f"{sys.argv[2]}-{n}", None, "POST", "/v1/predict", 200, None, "k" * (n % 300), 1, 0.001)
        if n % 50 == 0:
            await asyncio.sleep(0)
            access.flush(10.0)
    access.flush(10.0)

asyncio.run(main())
"""


def test_lines_of_several_workers_never_mix() -> None:
    read, end = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(end), name], pass_fds=[end]) for name in ("a", "b", "c")
    ]
    os.close(end)
    with open(read, "rb", buffering=0) as stream:  # noqa: PTH123  (a descriptor)
        received = bytearray()
        while chunk := stream.read(1_000):
            received.extend(chunk)

    assert [writer.wait(20) for writer in writers] == [0, 0, 0]
    by_writer: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for line in parsed(bytes(received)):
        name, _, number = line["request_id"].partition("-")
        by_writer[name].append(int(number))
    assert set(map(tuple, by_writer.values())) == {tuple(range(3_000))}


def test_no_access_log_costs_and_says_nothing(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        write_many(AccessLog(enabled=False, descriptor=file.fileno()), 10)

    assert (tmp_path / "log").read_bytes() == b""


def test_every_request_is_one_line_of_the_log_of_a_gateway(
    tmp_path: Path, release: Release, redis_url: str, customers: list[str]
) -> None:
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    with gateway_process(tmp_path, release, redis_url) as (_, url):
        wait_ready(url)
        for number in range(3):
            headers = {"X-Request-Id": f"logged-{number}", "traceparent": parent}
            requests.post(f"{url}/v1/predict", json=GOOD, headers=headers, timeout=5)
        requests.post(f"{url}/v1/predict", json={"secret": "c1"}, headers={"X-Request-Id": "refused"}, timeout=5)
        until(lambda: "refused" in (tmp_path / "log").read_text(), "never logged")

    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    logged = {line["request_id"]: line for line in lines if line["event"] == "request" and line["route"] != "/readyz"}
    assert list(logged) == ["logged-0", "logged-1", "logged-2", "refused"]
    assert len([line for line in lines if line.get("request_id") in logged]) == len(logged)
    for name, line in logged.items():
        assert list(line) == FIELDS
        assert (line["level"], line["logger"]) == ("INFO", "rapport.access")
        assert (line["method"], line["route"], line["key"]) == ("POST", "/v1/predict", "anonymous")
        assert 0 < line["duration_ms"] < 20_000
        assert "c1" not in json.dumps({**line, "time": ""})
        if name == "refused":
            assert (line["status"], line["code"], line["rows"], line["trace_id"]) == (422, "invalid_request", 0, None)
        else:
            assert (line["status"], line["code"], line["rows"], line["trace_id"]) == (200, None, 1, "a" * 32)
