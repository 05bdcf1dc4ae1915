"""One connection for all who read: everybody gets the replies to their own commands, or none."""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis import Redis

from feature_client.online import multiplexer
from feature_client.online.connection import Address, connect, parse
from feature_client.online.local_redis import LocalRedis
from feature_client.online.multiplexer import Multiplexer
from feature_client.online.reader import FeatureStoreUnavailable, StoreDisconnected, StoreTimeout

PATIENCE_S = 5.0


def packed(*words: str | bytes) -> bytes:
    raw = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)


def echo(text: str | bytes) -> bytes:
    return packed("ECHO", text)


@asynccontextmanager
async def connected(address: Address, silence_s: float = PATIENCE_S) -> AsyncIterator[Multiplexer]:
    redis = Multiplexer(connect(address, PATIENCE_S).connection_pool.make_connection, silence_s)
    try:
        yield redis
    finally:
        await redis.close()


class Server:
    """A fake Redis that writes what it is told, packet by packet, whatever is asked; it keeps what it is sent."""

    def __init__(self, *packets: bytes) -> None:
        self.packets = packets
        self.received: list[bytes] = []
        self.handlers: set[asyncio.Task[Any] | None] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handlers.add(asyncio.current_task())
        try:
            while command := await reader.read(1 << 20):
                if b"CLIENT" in command:
                    writer.write(b"+OK\r\n" * command.count(b"CLIENT"))
                    continue
                self.received.append(command)
                for packet in self.packets:
                    writer.write(packet)
                    await writer.drain()
                    await asyncio.sleep(0.001)  # so that each is a packet of its own
        except ConnectionResetError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Multiplexer]:
    listener = await asyncio.start_server(server, "127.0.0.1", 0)
    try:
        async with connected(Address("127.0.0.1", listener.sockets[0].getsockname()[1])) as redis:
            yield redis
    finally:
        listener.close()
        await asyncio.gather(*filter(None, server.handlers))


def test_everybody_gets_their_own_replies(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(parse(redis_url)) as redis:

            async def asks(who: int) -> None:
                for turn in range(20):
                    words = [f"{who}-{turn}-{n}" for n in range(who % 4 + 1)]
                    assert await redis.ask(list(map(echo, words)), PATIENCE_S) == [word.encode() for word in words]

            await asyncio.gather(*map(asks, range(64)))

    asyncio.run(scenario())


def test_two_hundred_cancelled_reads_leave_no_wrong_answer(redis_url: str) -> None:
    async def scenario() -> None:
        draw = random.Random(5)
        async with connected(parse(redis_url)) as redis:
            await redis.ask([echo("warm")], PATIENCE_S)
            link = redis._link
            gone = [asyncio.create_task(redis.ask([echo(f"gone-{n}")] * 3, PATIENCE_S)) for n in range(200)]
            stay = [asyncio.create_task(redis.ask([echo(f"stay-{n}")] * 2, PATIENCE_S)) for n in range(200)]
            for task in gone:
                if draw.random() < 0.1:
                    await asyncio.sleep(0)
                task.cancel()
            answers = await asyncio.gather(*stay)
            assert answers == [[f"stay-{n}".encode()] * 2 for n in range(200)]
            assert await redis.ask([echo("after")], PATIENCE_S) == [b"after"]
            # All of that on one connection: tombstones took the replies that nobody waits for any more.
            assert redis._link is link
            assert link is not None
            assert (len(link.calls), link.in_flight) == (0, 0)

    asyncio.run(scenario())


def test_commands_of_one_tick_are_one_write(redis_url: str) -> None:
    async def scenario() -> None:
        server = Server(b"+1\r\n" * 10)
        async with serving(server) as redis:
            await redis._connected()
            await asyncio.gather(*(redis.ask([echo(str(n))], PATIENCE_S) for n in range(10)))
            assert server.received == [b"".join(echo(str(n)) for n in range(10))]

    asyncio.run(scenario())


def test_a_long_batch_goes_out_in_pieces_and_complete(own_redis: LocalRedis) -> None:
    async def scenario() -> None:
        words = [f"{n}".encode() * 500 for n in range(2_000)]
        async with connected(parse(own_redis.address)) as redis:
            writes: list[int] = []
            link = await redis._connected()
            link.transport = Watched(link.transport, writes)  # type: ignore[assignment]
            assert await redis.ask([echo(word) for word in words], PATIENCE_S) == words
            assert len(writes) > 10
            assert max(writes) <= multiplexer.MAX_WRITE_BYTES + len(echo(words[-1]))

    asyncio.run(scenario())


class Watched:
    """A transport that says how much each write was."""

    def __init__(self, transport: asyncio.WriteTransport, writes: list[int]) -> None:
        self.transport = transport
        self.writes = writes

    def write(self, data: bytes) -> None:
        self.writes.append(len(data))
        self.transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


def test_more_than_can_be_in_flight_is_refused_and_harms_nobody(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(parse(redis_url)) as redis:
            await redis.ask([echo("warm")], PATIENCE_S)
            most = asyncio.create_task(redis.ask([echo("x")] * multiplexer.MAX_IN_FLIGHT, PATIENCE_S))
            await asyncio.sleep(0)
            with pytest.raises(FeatureStoreUnavailable, match="too many"):
                await redis.ask([echo("y")], PATIENCE_S)
            assert await most == [b"x"] * multiplexer.MAX_IN_FLIGHT
            assert await redis.ask([echo("z")], PATIENCE_S) == [b"z"]

    asyncio.run(scenario())


SLOW = packed("EVAL", "local t = redis.call('TIME') while redis.call('TIME')[1] - t[1] < 2 do end", "0")
"""Redis answers nobody meanwhile."""


def test_one_callers_haste_is_nobody_elses_and_a_late_reply_goes_to_nobody(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(parse(redis_url)) as redis:
            await redis.ask([echo("warm")], PATIENCE_S)
            link = redis._link
            patient = asyncio.create_task(redis.ask([echo("before"), SLOW, echo("behind")], PATIENCE_S))
            await asyncio.sleep(0)
            for haste_s in (0.05, 0.001, 0.0, -1.0):
                with pytest.raises(StoreTimeout):
                    await redis.ask([echo("late")], haste_s)
            before, _, behind = await patient
            assert (before, behind) == (b"before", b"behind")
            assert await redis.ask([echo("next")], PATIENCE_S) == [b"next"]
            assert redis._link is link

    asyncio.run(scenario())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_loop_that_stood_still_finds_the_reply_that_came_meanwhile(run: Callable[..., None], redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(parse(redis_url), silence_s=0.05) as redis:
            await redis.ask([echo("warm")], PATIENCE_S)
            link = redis._link
            for number in range(5):
                asked = asyncio.create_task(redis.ask([echo(f"{number}"), echo("too")], 0.05))
                await asyncio.sleep(0)  # it asks
                await asyncio.sleep(0)  # and the command is on its way
                time.sleep(0.08)  # noqa: ASYNC251  (that is the fault)
                assert await asked == [f"{number}".encode(), b"too"]
            assert redis._link is link

    run(scenario())


def test_a_connection_that_owes_replies_and_is_silent_is_given_up(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(parse(redis_url), silence_s=0.05) as redis:
            await redis.ask([echo("warm")], PATIENCE_S)
            patient = asyncio.create_task(redis.ask([SLOW], PATIENCE_S))
            await asyncio.sleep(0)
            with pytest.raises(StoreTimeout):
                await redis.ask([echo("late")], 0.1)
            with pytest.raises(StoreTimeout):
                await patient
            assert await redis.ask([echo("next")], PATIENCE_S) == [b"next"]

    asyncio.run(scenario())


def test_one_that_is_silent_is_given_up_also_by_callers_who_are_cancelled(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(parse(redis_url), silence_s=0.05) as redis:
            await redis.ask([echo("warm")], PATIENCE_S)
            patient = asyncio.create_task(redis.ask([SLOW], PATIENCE_S))
            hasty = asyncio.create_task(redis.ask([echo("late")], PATIENCE_S))
            await asyncio.wait([hasty], timeout=0.1)
            hasty.cancel()
            with pytest.raises(StoreTimeout):
                await patient
            assert hasty.cancelled()

    asyncio.run(scenario())


def test_nothing_to_ask_is_answered_without_redis_and_keeps_nobody_waiting(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(parse(redis_url)) as redis:
            assert await redis.ask([], PATIENCE_S) == []
            assert await redis.ask([echo("x")], PATIENCE_S) == [b"x"]

    asyncio.run(scenario())


def test_a_reply_that_hiredis_calls_false_is_a_reply() -> None:
    async def scenario() -> None:
        async with serving(Server(b"#f\r\n$1\r\n2\r\n$1\r\n3\r\n")) as redis:
            assert await redis.ask([echo("1"), echo("2"), echo("3")], PATIENCE_S) == [False, b"2", b"3"]

    asyncio.run(scenario())


def test_who_waits_when_it_closes_is_told_so_in_our_words(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(parse(redis_url)) as redis:
            first = asyncio.create_task(redis.ask([SLOW], PATIENCE_S))  # still connecting
            await asyncio.sleep(0)
            closing = asyncio.create_task(redis.close())
            for task in (first, asyncio.create_task(redis.ask([echo("later")], PATIENCE_S))):
                with pytest.raises(StoreDisconnected):
                    await task
            await closing

    asyncio.run(scenario())


def test_a_store_that_is_down_is_not_hammered(own_redis: LocalRedis) -> None:
    attempts = 0

    async def scenario() -> None:
        nonlocal attempts
        make = connect(parse(own_redis.address), PATIENCE_S).connection_pool.make_connection

        def counted() -> Any:
            nonlocal attempts
            attempts += 1
            return make()  # type: ignore[no-untyped-call]

        redis = Multiplexer(counted, PATIENCE_S)
        own_redis.__exit__(None, None, None)
        ends = asyncio.get_running_loop().time() + 10 * multiplexer.RECONNECT_S
        asked = 0
        while asyncio.get_running_loop().time() < ends:
            with pytest.raises(StoreDisconnected):
                await redis.ask([echo("x")], PATIENCE_S)
            asked += 1
            await asyncio.sleep(0)
        assert asked > attempts
        await redis.close()

    asyncio.run(scenario())
    assert 1 <= attempts <= 11


@pytest.mark.parametrize("header", [b"*1000000000\r\n", b"~1000000000\r\n", b">1000000000\r\n"])
@pytest.mark.parametrize("before", [b"", b"*2\r\n$1\r\nx\r\n", b"$1\r\nx\r\n"])
def test_an_announcement_beyond_all_reason_is_refused_wherever_it_is_cut(header: bytes, before: bytes) -> None:
    """hiredis would make room for a billion elements first."""

    async def scenario(cut: int) -> None:
        answer = before + header
        async with serving(Server(*filter(None, [answer[:cut], answer[cut:]]))) as redis:
            with pytest.raises(FeatureStoreUnavailable, match="not the reply") as caught:
                await redis.ask([echo("a"), echo("b")], PATIENCE_S)
            assert not isinstance(caught.value, StoreTimeout | StoreDisconnected)

    for cut in range(len(before) + len(header)):
        asyncio.run(scenario(cut))


@pytest.mark.parametrize(
    "value", [b"*1000000", b"x*1000000\r\n", b"*", b"*1", b">999999999\r\n*123456", b"\x29~000000"]
)
def test_a_stored_value_may_look_like_one(value: bytes) -> None:
    async def scenario(cut: int) -> None:
        answer = b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(value), value, len(value), value)
        async with serving(Server(*filter(None, [answer[:cut], answer[cut:]]))) as redis:
            assert await redis.ask([echo("a")], PATIENCE_S) == [[value, value]]

    for cut in range(len(value) * 2 + 20):
        asyncio.run(scenario(cut))


def test_a_closed_connection_is_opened_again_once(own_redis: LocalRedis) -> None:
    async def scenario() -> None:
        async with connected(parse(own_redis.address)) as redis:
            await redis.ask([echo("x")], PATIENCE_S)
            with Redis(port=own_redis.port) as other:
                other.client_kill_filter(_type="normal", skipme=True)
            assert await asyncio.gather(*(redis.ask([echo(str(n))], PATIENCE_S) for n in range(5))) == [
                [str(n).encode()] for n in range(5)
            ]
            with Redis(port=own_redis.port) as other:
                assert len([c for c in other.client_list() if c["id"] != str(other.client_id())]) == 1

    asyncio.run(scenario())


def test_a_unix_socket_is_read_like_any_other() -> None:
    async def scenario(path: Path) -> None:
        async with connected(parse(f"unix:{path}")) as redis:
            assert await redis.ask([echo("x")], PATIENCE_S) == [b"x"]

    # The path of a socket has room for 107 bytes, which a test's own directory may exceed.
    with tempfile.TemporaryDirectory(prefix="redis") as directory:
        path = Path(directory) / "socket"
        with LocalRedis(Path(directory), socket_path=path):
            asyncio.run(scenario(path))


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[LocalRedis]:
    with LocalRedis(tmp_path / "redis") as redis:
        yield redis
