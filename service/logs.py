"""Structured logs: one event is one JSON line on stderr, whatever a client put into its request."""

import asyncio
import logging
import os
import select
import time
from datetime import UTC, datetime

import msgspec
from pythonjsonlogger.json import JsonFormatter

STDERR = 2
FLUSH_S = 0.1
FLUSH_BYTES = 65_536
MAX_BYTES = 1_048_576
"""Beyond it, lines are dropped and counted: whoever reads the log too slowly must not fill the gateway's memory."""
CLOSE_S = 1.0
"""At the end, whoever reads the log gets this long."""


class _Formatter(JsonFormatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 (logging's)
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def configure(level: str) -> None:
    """For the process of `rapport serve`; libraries and tests configure their own."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Formatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "message": "event"},
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _Line(msgspec.Struct, gc=False):
    time: str
    level: str
    logger: str
    event: str
    request_id: str
    trace_id: str | None
    method: str
    route: str
    status: int
    code: str | None
    key: str | None
    rows: int
    duration_ms: float


class AccessLog:
    """One line a request, as `configure` would write it, for a twentieth of what `logging` takes.

    Lines are gathered, and written once they are 100 ms old or 64 KiB, and on `close`. The event loop never waits for
    whoever reads them: what cannot be written now is kept, up to 1 MiB. Several workers may write to one pipe: a write
    is whole lines of at most PIPE_BUF bytes, which the system never mixes with another's.
    """

    def __init__(self, *, enabled: bool = True, descriptor: int = STDERR) -> None:
        self.enabled = enabled
        self.descriptor = descriptor
        self.dropped = 0
        self._buffer = bytearray()
        self._encoder = msgspec.json.Encoder()
        self._second = -1
        self._date = ""
        self._timer: asyncio.TimerHandle | None = None
        self._writable = select.poll()
        self._writable.register(descriptor, select.POLLOUT)

    def write(
        self,
        request_id: str,
        trace_id: str | None,
        method: str,
        route: str,
        status: int,
        code: str | None,
        key: str | None,
        rows: int,
        seconds: float,
    ) -> None:
        """Only in a running event loop. seconds: from the first byte to the answer."""
        if not self.enabled:
            return
        buffer = self._buffer
        if len(buffer) > MAX_BYTES:
            self.dropped += 1
            return
        line = _Line(
            self._now(), "INFO", "rapport.access", "request",
            request_id, trace_id, method, route, status, code, key, rows, round(seconds * 1_000, 3),
        )  # fmt: skip
        self._encoder.encode_into(line, buffer, -1)
        buffer += b"\n"
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._tick)
        elif FLUSH_BYTES <= len(buffer) < 2 * FLUSH_BYTES:  # and no more: then it cannot be written, and the timer asks
            self.flush()

    def flush(self, wait_s: float = 0.0) -> None:
        """Writes what can be written; waits up to `wait_s` for whoever reads it."""
        buffer, start = self._buffer, 0
        ends = time.monotonic() + wait_s
        while start < len(buffer) and self._writable.poll(max(0.0, ends - time.monotonic()) * 1_000):
            end = buffer.rfind(b"\n", start, start + select.PIPE_BUF) + 1 or buffer.index(b"\n", start) + 1
            try:
                start += os.write(self.descriptor, buffer[start:end])
            except OSError:  # nobody reads it any more, or the disk is full
                self.dropped += buffer.count(b"\n", start, end)
                start = end
        del buffer[:start]
        if self.dropped and len(buffer) < FLUSH_BYTES:
            dropped, self.dropped = self.dropped, 0
            logging.getLogger("rapport.access").warning("lines of the access log dropped", extra={"lines": dropped})

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flush(CLOSE_S)

    def _tick(self) -> None:
        self.flush()
        left = bool(self._buffer)
        self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._tick) if left else None

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._date = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._date}.{int((now - second) * 1_000):03d}+00:00"
