"""One connection to Redis that all reads of an event loop share.

Commands of one tick of the loop go out as one write, and replies come back in the order of their commands, so a queue
of who waits is all the bookkeeping there is. redis-py connects (TLS, passwords, databases); then the socket is ours,
because what redis-py itself spends on a reply is twenty times as much (docs/performance.md).
"""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from feature_client.online.reader import (
    FeatureStoreUnavailable,
    StoreDenied,
    StoreDisconnected,
    StoreLoading,
    StoreReadOnly,
    StoreTimeout,
)

MAX_IN_FLIGHT = 10_000
"""Commands sent or waiting to be sent; more are refused."""

MAX_WRITE_BYTES = 65_536
"""Of one tick: a long batch goes out in pieces, between which replies are read."""

RECONNECT_S = 0.02
"""After a failed attempt to connect, whoever asks sooner gets the same failure: nobody hammers a store that is down."""

LOOKS = 2
"""Turns of the event loop in which it looks at its sockets once for certain."""

NOTHING: Any = object()
"""What hiredis says while a reply is incomplete; its own word for that, False, is also a reply (RESP3's `#f`)."""

HUGE = tuple(re.compile(rb"\%c[0-9]{6}" % kind) for kind in b"*~>")
CUT_OFF = re.compile(rb"[*~>][0-9]{0,5}\Z")
"""The header of an aggregate of 100,000 elements or more, whole or cut off by the end of a packet. No reply of ours
has so many, and hiredis makes a list of what is announced before its first element is there: an impostor could stall
us for seconds with twelve bytes. A search for each kind, since with a literal first byte it costs a tenth."""

CODES: dict[str, type[FeatureStoreUnavailable]] = {
    "LOADING": StoreLoading,
    "MASTERDOWN": StoreLoading,
    "READONLY": StoreReadOnly,
    "NOAUTH": StoreDenied,
    "NOPERM": StoreDenied,
    "WRONGPASS": StoreDenied,
}
"""First word of an error reply -> what it means. All others are FeatureStoreUnavailable."""


class Multiplexer:
    """Connects when first used, and again when the connection has ended. Belongs to the event loop that uses it.

    make: a redis-py connection that has not connected yet, with its own limits on connecting. silence_s: a connection
    that owes replies and sent nothing for so long is given up; one caller's own haste is no reason to.
    """

    def __init__(self, make: Callable[[], AbstractConnection], silence_s: float) -> None:
        self.make = make
        self.silence_s = silence_s
        self._link: _Link | None = None
        self._connecting: asyncio.Task[_Link] | None = None
        self._failure: tuple[float, FeatureStoreUnavailable] | None = None  # when (monotonic), and why
        self._closed = False

    async def ask(self, commands: Sequence[bytes], timeout_s: float) -> list[Any]:
        """The replies, in order, as hiredis gives them; error replies are `hiredis.ReplyError` in their places.

        commands: packed (RESP). Asks once more where the connection turns out to be closed, and waits `timeout_s` in
        all. Raises FeatureStoreUnavailable and its sub-classes. When it is cancelled or late, its replies are dropped
        when they come: nobody else gets them.
        """
        if not commands:
            return []
        if timeout_s <= 0:
            raise StoreTimeout
        link = call = None
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._connected()
                try:
                    call = link.send(commands)
                    return await call.future
                except StoreDisconnected:
                    link = await self._connected()
                    call = link.send(commands)
                    return await call.future
        except (TimeoutError, asyncio.CancelledError) as exc:
            if isinstance(exc, TimeoutError) and call is not None and await _has_come(call):
                return call.replies
            if link is not None and link.silent_s() >= self.silence_s:
                # Not slow but stalled, and a new connection may not be.
                link.end(StoreTimeout)
            if isinstance(exc, TimeoutError):
                raise StoreTimeout from exc
            raise

    def drop(self) -> None:
        """The next one who asks gets a new connection: what else lies unread on this one is unknown."""
        if self._link is not None:
            self._link.end(StoreDisconnected)

    async def close(self) -> None:
        """For good: whoever still waits, and whoever asks later, gets StoreDisconnected."""
        self._closed = True
        if self._connecting is not None:
            with contextlib.suppress(FeatureStoreUnavailable):
                await asyncio.shield(self._connecting)  # it has a limit of its own
        if self._link is not None:
            self._link.end(StoreDisconnected)
            await self._link.lost

    async def _connected(self) -> "_Link":
        """Whoever comes while it connects waits for the same attempt."""
        if self._closed:
            raise StoreDisconnected
        if self._link is not None and not self._link.transport.is_closing():
            return self._link
        if self._failure is not None and time.monotonic() - self._failure[0] < RECONNECT_S:
            raise type(self._failure[1])(str(self._failure[1]))
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._settled)
        return await asyncio.shield(self._connecting)

    def _settled(self, task: "asyncio.Task[_Link]") -> None:
        self._connecting = None
        if task.cancelled():
            return
        failure = task.exception()
        if failure is None:
            self._link, self._failure = task.result(), None
        elif isinstance(failure, FeatureStoreUnavailable):
            self._failure = time.monotonic(), failure

    async def _connect(self) -> "_Link":
        connection = self.make()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        # ValueError: redis-py takes a malformed error reply apart while it builds the error.
        except (RedisError, OSError, ValueError) as exc:
            raise _connect_error(exc) from exc
        return _Link(connection)


class _Call:
    """Commands of one caller: `wanted` replies, in order. One whose future is done early is a tombstone."""

    __slots__ = ("future", "replies", "wanted")

    def __init__(self, wanted: int, future: "asyncio.Future[list[Any]]") -> None:
        self.wanted = wanted
        self.future = future
        self.replies: list[Any] = []


async def _has_come(call: _Call) -> bool:
    """Whether it was we who were late: an event loop that stood still finds its timers first, and only then the reply,
    which may have been in the socket all the while."""
    for _ in range(LOOKS):
        await asyncio.sleep(0)
    return len(call.replies) == call.wanted


class _Link(asyncio.Protocol):
    """One live connection. When it ends, for whatever reason, all who wait are told why."""

    def __init__(self, connection: AbstractConnection) -> None:
        # redis-py has no public way to hand its socket over. It forgets it here: it must neither read nor close it.
        writer, connection._reader, connection._writer = connection._writer, None, None  # noqa: SLF001
        if writer is None:
            raise StoreDisconnected
        self.writer = writer  # closes the socket when nobody refers to it any more
        self.transport = writer.transport
        self.loop = asyncio.get_running_loop()
        self.reader = hiredis.Reader(notEnoughData=NOTHING)
        self.calls: deque[_Call] = deque()
        self.outbox: deque[bytes] = deque()
        self.held = b""  # the end of a packet that may be the beginning of a header
        self.in_flight = 0
        self.heard = 0.0  # monotonic: since when it owes replies, or when it last sent something
        self.writable = True
        self.lost = self.loop.create_future()
        self.transport.set_protocol(self)

    def send(self, commands: Sequence[bytes]) -> _Call:
        """The future of the call will have the replies."""
        if self.in_flight + len(commands) > MAX_IN_FLIGHT:
            raise FeatureStoreUnavailable("too many reads are in flight")
        call = _Call(len(commands), self.loop.create_future())
        if not self.calls:
            self.heard = time.monotonic()
        self.in_flight += call.wanted
        self.calls.append(call)
        if not self.outbox:
            self.loop.call_soon(self._flush)
        self.outbox.extend(commands)
        return call

    def silent_s(self) -> float:
        """For how long it has owed replies without sending anything."""
        return time.monotonic() - self.heard if self.calls else 0.0

    def end(self, reason: type[FeatureStoreUnavailable], *message: str) -> None:
        self.transport.abort()
        calls, self.calls = self.calls, deque()
        self.outbox.clear()
        for call in calls:
            if not call.future.done():
                call.future.set_exception(reason(*message))

    def _flush(self) -> None:
        if not self.writable:
            return  # resume_writing goes on
        size, parts = 0, []
        while self.outbox and size < MAX_WRITE_BYTES:
            parts.append(self.outbox.popleft())
            size += len(parts[-1])
        if parts:
            self.transport.write(b"".join(parts))
        if self.outbox:
            self.loop.call_soon(self._flush)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        if self.held:
            data, self.held = self.held + data, b""
        if cut := CUT_OFF.search(data, max(len(data) - 6, 0)):
            # No reply ends in these bytes, so holding them back delays none.
            data, self.held = data[: cut.start()], data[cut.start() :]
        try:
            self._deliver(data)
        except hiredis.ProtocolError:
            self.end(FeatureStoreUnavailable, GARBAGE)

    def _deliver(self, data: bytes) -> None:
        """Raises ProtocolError."""
        fed = 0
        for start in sorted(found.start() for header in HUGE for found in header.finditer(data)):
            self._feed(data[fed:start])
            fed = start
            # Between two elements, these bytes are a header. Within one, they are part of a stored value.
            if not self.reader.has_data():
                raise hiredis.ProtocolError("more elements than any reply has")
        self._feed(data[fed:])

    def _feed(self, data: bytes) -> None:
        self.reader.feed(data)
        gets, calls = self.reader.gets, self.calls
        while (reply := gets()) is not NOTHING:
            if not calls:
                raise hiredis.ProtocolError("a reply to nothing")
            call = calls[0]
            call.replies.append(reply)
            if len(call.replies) == call.wanted:
                calls.popleft()
                self.in_flight -= call.wanted
                if not call.future.done():
                    call.future.set_result(call.replies)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the event loop's signature)
        self.end(StoreDisconnected)
        if not self.lost.done():
            self.lost.set_result(None)


GARBAGE = "Redis sent something that is not the reply to what was asked"


def reply_error(message: str) -> FeatureStoreUnavailable:
    """What an error reply means. All but its first word is left out: the rest may quote keys."""
    code = message.split(" ", 1)[0]
    if not (code.isalpha() and code.isupper()):
        code = "an error"
    return CODES.get(code, FeatureStoreUnavailable)(f"Redis refused: {code}")


def _connect_error(error: Exception) -> FeatureStoreUnavailable:
    if isinstance(error, RedisTimeoutError):
        return StoreTimeout()
    if isinstance(error, AuthenticationError):
        return StoreDenied("Redis refused: the password or user")
    if isinstance(error, BusyLoadingError):
        return StoreLoading("Redis refused: LOADING")
    if isinstance(error, RedisConnectionError | OSError):
        return StoreDisconnected()
    return reply_error(str(error))
