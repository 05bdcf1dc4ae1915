"""Predict straight from uvicorn's parser, in front of ASGI: a small request that arrives whole, as nearly all do.

An ASGI application costs uvicorn a scope, a cycle, a task and several coroutines for every request, which together are
more than all that Rapport does for a prediction. So where a request for predict is plain (see `_is_plain`) and soon
complete, it goes from the parser into the queue, and its answer from there to the socket. Whatever is unusual about it,
an error in it included, and everything else goes the ordinary way: uvicorn is handed the request as it came.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import Overloaded
from service.exchange import Exchange, problem_response
from service.front import Front, encoded
from service.protocol import PredictResponse

PATH = b"/v1/predict"

HELD_S = 0.02
HELD_BYTES = 65_536
"""How long, and up to which size, a request is held while its body arrives: many clients send it behind the headers,
in a packet of its own. Slow and large bodies are uvicorn's, whose reading of them has limits."""


class _Cycle:
    """What uvicorn asks of the request that a connection is answering, while the answer is ours."""

    def __init__(self, flow: FlowControl) -> None:
        self.flow = flow
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.message_event = self

    def set(self) -> None:
        """uvicorn wakes whoever waits for a message; nobody does."""

    def has_left(self) -> bool:
        # Behind requests that wait their turn nothing is read, not even that nobody is there.
        self.flow.resume_reading()
        return self.disconnected


def direct(front: Front) -> type[HttpToolsProtocol]:
    """For `uvicorn.Config(http=...)`, which makes one for every connection."""
    return type("DirectProtocol", (DirectProtocol,), {"front": front})


class DirectProtocol(HttpToolsProtocol):
    """Relies on the insides of uvicorn's own protocol: its version is pinned, and tests/service run the same tests over
    HTTP with this class and without it."""

    front: Front
    rendered: ClassVar[tuple[object, bytes]] = (None, b"")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: bytes | None = None  # the body so far of a request that may be answered here
        self.held_headers: Mapping[bytes, bytes] = {}
        self.held_since = 0.0  # monotonic
        self.held_until: asyncio.TimerHandle | None = None
        self.answering: _Cycle | RequestResponseCycle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.held is not None and self.held_until is None:
            self.held_until = self.loop.call_later(HELD_S, self._hold_no_longer)

    def on_headers_complete(self) -> None:
        if self.url == PATH and self._is_plain():
            self.held_headers = dict(self.headers)
            # A body in chunks may have headers behind it, too.
            if b"transfer-encoding" not in self.held_headers:
                self.held, self.held_since = b"", time.monotonic()
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.held is None:
            super().on_body(body)
        else:
            self.held += body
            if len(self.held) > HELD_BYTES:
                self._hold_no_longer()

    def on_message_complete(self) -> None:
        if self.held is None:
            super().on_message_complete()
            return
        body, cycle, headers = self._release(), _Cycle(self.flow), self.held_headers
        exchange = self.front.exchanges.begin("POST", headers, cycle.has_left, self.held_since)
        before, self.cycle = self.cycle, cycle  # type: ignore[assignment]
        try:
            self.front.take(exchange, headers, body, lambda outcome: self._answer(cycle, exchange, outcome))
        except Overloaded as exc:
            # Refusing must be cheap, and is counted once.
            self._answer(cycle, exchange, exc)
        except Exception:  # noqa: BLE001  (it comes again, and is answered, on the ordinary way)
            self.cycle = before
            self._hand_over(body, exchange)
            super().on_message_complete()
        else:
            self.answering = cycle

    def connection_lost(self, exc: Exception | None) -> None:
        self._release()
        if self.answering is not None:
            self.answering.disconnected = True
            self.answering.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # uvicorn itself tells only the last of several requests that their client has left.
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        if self.held is not None:
            self._hold_no_longer()  # begun, so it is answered
        super().shutdown()

    def _is_plain(self) -> bool:
        """One request at a time, without anything that HTTP has for special cases, from a client that reads answers."""
        parser = self.parser
        return (
            parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and not self.expect_100_continue
        )

    def _release(self) -> bytes:
        """What was held; from now on the request is somebody's."""
        body, self.held = self.held or b"", None
        if self.held_until is not None:
            self.held_until.cancel()
            self.held_until = None
        return body

    def _hold_no_longer(self) -> None:
        exchange = self.front.exchanges.begin("POST", self.held_headers, None, self.held_since)
        self._hand_over(self._release(), exchange)

    def _hand_over(self, body: bytes, exchange: Exchange) -> None:
        # What is known of the request by now, its first instant and its key above all, is not asked twice.
        self.scope["rapport.exchange"] = exchange  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if body:
            super().on_body(body)

    def _answer(self, cycle: _Cycle, exchange: Exchange, outcome: PredictResponse | Exception) -> None:
        if isinstance(outcome, Exception):
            response = problem_response(outcome, exchange)
            exchange.status, headers, body = response.status_code, [*response.raw_headers], bytes(response.body)
        else:
            body = encoded(outcome, exchange)
            exchange.status = 200
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        self.front.exchanges.end(exchange)
        cycle.response_complete = True
        if cycle.disconnected or self.transport.is_closing():
            return
        headers += exchange.headers()
        if not cycle.keep_alive:  # uvicorn is shutting down
            headers.append((b"connection", b"close"))
        lines = b"".join([part for name, value in headers for part in (name, b": ", value, b"\r\n")])
        self.transport.write(b"%b%b%b\r\n%b" % (STATUS_LINE[exchange.status], self._default_lines(), lines, body))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _default_lines(self) -> bytes:
        """Date and the like, which uvicorn renews every second for all connections."""
        headers = self.server_state.default_headers
        if headers is not DirectProtocol.rendered[0]:
            lines = b"".join([b"%b: %b\r\n" % header for header in headers])
            DirectProtocol.rendered = headers, lines
        return DirectProtocol.rendered[1]
