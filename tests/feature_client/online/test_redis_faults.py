"""What a reader does when Redis is down, slow, refuses or answers something else: it says so, in time."""

import asyncio
import contextlib
import math
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis import Redis

from feature_client.online.compat import CompatReader
from feature_client.online.compat_plan import CompatColumn, CompatPlan, CompatView
from feature_client.online.local_redis import LocalRedis
from feature_client.online.plan import EntityKey, ReadPlan
from feature_client.online.reader import FeatureStoreUnavailable, StoreDenied
from feature_client.online.redis_reader import RedisReader, _Style
from feature_client.schema import FeatureBatch
from tests import feast_layout
from tests.feature_client.online.shop import NOW, SHOP, feature, schema_of

SCHEMA = schema_of(
    feature("orders", "orders", "int64"),
    feature("orders", "city", "string"),
    entity=SHOP.entity,
    orders="customer_copy",
)
PLAN = ReadPlan(SCHEMA)
TIMEOUT_S = 0.05
"""Where a read must run into it."""

PATIENCE_S = 5.0
"""Where it must not, on a busy machine."""

AT_ONCE_S = 2.0
"""Every failure is there by then; redis-py's own defaults take from 4 seconds to a minute."""

SECRET = "secret-canary"

RealRedis = Any
"""redis.Redis; its annotations know neither bytes as keys nor that this client is not async."""


def put(address: str, customer: str, orders: int, owner: str | None = None) -> None:
    host, _, port = address.rpartition(":")
    with Redis(host, int(port)) as client:
        fields: dict[str, feast_layout.Value] = {"orders": orders, "city": "Paris", "customer_copy": owner or customer}
        feast_layout.store(client, SCHEMA, customer, {"orders": (NOW, fields)})


@asynccontextmanager
async def reading(address: str, timeout_s: float = PATIENCE_S) -> AsyncIterator[RedisReader]:
    reader = RedisReader.from_connection_string(address, timeout_s)
    try:
        yield reader
    finally:
        await reader.close()


def keys_of(*customers: str) -> list[EntityKey]:
    return PLAN.keys([{"customer_id": customer} for customer in customers])


async def fetch(reader: RedisReader, *customers: str, timeout_s: float = PATIENCE_S) -> FeatureBatch:
    batch = await reader.fetch(PLAN, keys_of(*customers), timeout_s)
    if reason := batch.refusal(slice(0, len(batch))):
        raise FeatureStoreUnavailable(reason)
    return batch


async def fails(reader: RedisReader, customer: str = SECRET, timeout_s: float = PATIENCE_S) -> str:
    """Why, after checking that it was at once and names no value."""
    started = time.monotonic()
    with pytest.raises(FeatureStoreUnavailable) as caught:
        await fetch(reader, customer, timeout_s=timeout_s)
    assert time.monotonic() - started < AT_ONCE_S
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[LocalRedis]:
    """One that a test may hurt."""
    with LocalRedis(tmp_path / "redis", persistent=True) as redis:
        yield redis


def test_nothing_listens_is_said_at_once(own_redis: LocalRedis) -> None:
    os.kill(own_redis.pid, signal.SIGKILL)

    async def scenario() -> None:
        async with reading(own_redis.address) as reader:
            assert "closed or refused" in await fails(reader)
            with pytest.raises(FeatureStoreUnavailable):
                await reader.ping(PATIENCE_S)

    asyncio.run(scenario())


def test_a_stalled_redis_costs_the_timeout_and_is_used_again_when_it_wakes(own_redis: LocalRedis) -> None:
    put(own_redis.address, "a", 1)
    put(own_redis.address, "b", 2)

    async def scenario() -> None:
        async with reading(own_redis.address) as reader:
            await fetch(reader, "a")
            os.kill(own_redis.pid, signal.SIGSTOP)
            try:
                for _ in range(3):
                    assert "did not answer in time" in await fails(reader, "a", TIMEOUT_S)
                # The limit of one reply, where the whole read has more time.
                async with reading(own_redis.address, TIMEOUT_S) as impatient:
                    assert "did not answer in time" in await fails(impatient, "a")
            finally:
                os.kill(own_redis.pid, signal.SIGCONT)
            async with reading(own_redis.address) as patient:
                await patient.ping(PATIENCE_S)
            # The late answers for `a` must not be taken for `b`'s.
            batch = await fetch(reader, "b")
            assert batch.numbers[0, 0] == 2

    asyncio.run(scenario())


def test_one_retry_hides_a_restart(own_redis: LocalRedis) -> None:
    put(own_redis.address, "a", 1)

    async def scenario() -> None:
        async with reading(own_redis.address) as reader:
            # Several connections, all of which the restart closes.
            await asyncio.gather(*(fetch(reader, "a") for _ in range(4)))
            own_redis.__exit__(None, None, None)
            with LocalRedis(own_redis.directory, own_redis.port, persistent=True):
                batch = await fetch(reader, "a")
                assert batch.numbers[0, 0] == 1

    asyncio.run(scenario())


def test_a_connection_that_the_server_closed_is_opened_again(redis: RealRedis, redis_url: str) -> None:
    put(redis_url, "a", 1)

    async def scenario() -> None:
        async with reading(redis_url) as reader:
            await fetch(reader, "a")
            for _ in range(5):
                redis.client_kill_filter(_type="normal", skipme=True)
                assert (await fetch(reader, "a")).numbers[0, 0] == 1

    asyncio.run(scenario())


def test_a_key_of_another_type_is_an_outage_not_a_value(redis: RealRedis, redis_url: str) -> None:
    [key] = PLAN.keys([{"customer_id": SECRET}])
    redis.set(key.redis_keys[0], "x")
    put(redis_url, "a", 1)

    async def scenario() -> None:
        async with reading(redis_url) as reader:
            assert await fails(reader) == "Redis refused: WRONGTYPE"
            assert (await fetch(reader, "a")).numbers[0, 0] == 1

    asyncio.run(scenario())


def test_a_password_that_is_missing_or_wrong_is_an_outage(own_redis: LocalRedis) -> None:
    put(own_redis.address, "a", 1)
    with Redis(port=own_redis.port) as client:
        client.config_set("requirepass", "1e5")

    async def scenario() -> None:
        for wrong in ("", ",password=wrong"):
            async with reading(own_redis.address + wrong) as reader:
                assert "refused" in await fails(reader)
        # Feast would make a number of this one.
        async with reading(own_redis.address + ",password=1e5") as reader:
            assert (await fetch(reader, "a")).numbers[0, 0] == 1

    asyncio.run(scenario())


def test_a_row_of_another_entity_is_refused_and_the_connection_dropped(redis: RealRedis, redis_url: str) -> None:
    put(redis_url, "a", 1, owner=SECRET)
    put(redis_url, "b", 2)

    async def scenario() -> None:
        async with reading(redis_url) as reader:
            await fetch(reader, "b")
            before = connections(redis)
            with pytest.raises(FeatureStoreUnavailable, match="another entity") as caught:
                await fetch(reader, "b", "a")
            assert SECRET not in str(caught.value)
            assert (await fetch(reader, "b")).numbers[0, 0] == 2
            assert not before & connections(redis)

    asyncio.run(scenario())


def connections(redis: RealRedis) -> set[str]:
    """Ids of the clients that read features."""
    return {client["id"] for client in redis.client_list() if client["cmd"] == "hmget"}


def test_damaged_values_are_missing_and_reported_for_their_own_row(redis: RealRedis, redis_url: str) -> None:
    put(redis_url, "a", 1)
    put(redis_url, "b", 2)
    [key] = PLAN.keys([{"customer_id": "a"}])
    whole = redis.hgetall(key.redis_keys[0])

    async def read() -> FeatureBatch:
        async with reading(redis_url) as reader:
            return await fetch(reader, "a", "b")

    for damaged, corrupt in (
        (feast_layout.field_of("orders", "orders"), {"orders"}),
        (feast_layout.field_of("orders", "city"), {"city"}),
        (feast_layout.field_of("orders", "customer_copy"), {"orders", "city"}),
        (b"_ts:orders", {"orders", "city"}),
    ):
        redis.hset(key.redis_keys[0], mapping=whole)
        redis.hset(key.redis_keys[0], damaged, b"\xff\xfe")
        batch = asyncio.run(read())
        assert batch.corrupt == {(0, name) for name in corrupt}
        encoded = SCHEMA.encode(batch, NOW)
        assert encoded.defaulted.tolist() == [["orders" in corrupt, "city" in corrupt], [False, False]]
        assert batch.numbers[1, 0] == 2


def test_values_without_an_event_time_are_no_row(redis: RealRedis, redis_url: str) -> None:
    put(redis_url, "a", 1)
    [key] = PLAN.keys([{"customer_id": "a"}])
    redis.hdel(key.redis_keys[0], "_ts:orders")

    async def scenario() -> None:
        async with reading(redis_url) as reader:
            encoded = SCHEMA.encode(await fetch(reader, "a"), NOW)
            assert encoded.unknown[0]
            assert encoded.defaulted.all()

    asyncio.run(scenario())


def test_cancelled_reads_leave_nothing_for_the_next_one(redis: RealRedis, redis_url: str) -> None:
    customers = [f"c{number}" for number in range(20)]
    for number, customer in enumerate(customers):
        put(redis_url, customer, number)
    draw = random.Random(3)

    async def scenario() -> None:
        async with reading(redis_url) as reader:
            for _ in range(200):
                abandoned = asyncio.create_task(fetch(reader, *customers))
                for _ in range(draw.randrange(12)):
                    await asyncio.sleep(0)
                abandoned.cancel()
                asked = draw.randrange(20)
                assert (await fetch(reader, customers[asked])).numbers[0, 0] == asked
                await asyncio.gather(abandoned, return_exceptions=True)

    asyncio.run(scenario())


class Impostor:
    """Answers every command with the same bytes, and counts the reads."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.reads = 0
        self.handlers: set[asyncio.Task[Any] | None] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handlers.add(asyncio.current_task())
        with contextlib.suppress(ConnectionResetError):
            await self._answer(reader, writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(65_536):
            if b"HMGET" in command or b"HGETALL" in command:
                self.reads += 1
                writer.write(self.answer)
                if not self.answer:
                    break
            # redis-py introduces itself first, and our reader asks how keys are stored.
            writer.write(b"+OK\r\n" * command.count(b"CLIENT") + b"$-1\r\n:0\r\n" * command.count(b"OBJECT"))


@asynccontextmanager
async def impostor(answer: bytes) -> AsyncIterator[tuple[Impostor, RedisReader]]:
    handler = Impostor(answer)
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with reading(f"127.0.0.1:{port}") as reader:
            yield handler, reader
    finally:
        server.close()
        await asyncio.gather(*filter(None, handler.handlers))


VALUE = b"$2\r\n\x20\x07\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "refused: LOADING"),
        (b"-NOAUTH Authentication required.\r\n", "refused: NOAUTH"),
        (b"-READONLY You can't write against a read only replica.\r\n", "refused: READONLY"),
        (b"-NOPERM this user has no permissions\r\n", "refused: NOPERM"),
        (b"-OOM command not allowed\r\n", "refused: OOM"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "refused"),
        (b"-MOVED 1234 10.0.0.1:6379\r\n", "refused"),
        (b"-MOVED nonsense\r\n", "refused"),
        (b"-ERR unknown command 'HMGET', with args beginning with: secret-canary\r\n", "refused: "),
        (b"-secret-canary\r\n", "refused: "),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Redis"),
        (b"\x16\x03\x01\x00\x05hello", "Redis"),
        (b"*3\r\n" + VALUE * 3, "not the reply"),
        (b"*5\r\n" + VALUE * 5, "not the reply"),
        (b"*0\r\n", "not the reply"),
        (b"*-1\r\n", "not the reply"),
        (b"$5\r\nhello\r\n", "not the reply"),
        (b":4\r\n", "not the reply"),
        (b"*4\r\n:1\r\n:2\r\n:3\r\n:4\r\n", "not the reply"),
        (b"*4\r\n" + VALUE * 3 + b"-ERR secret-canary\r\n", "not the reply"),
        (b"*4\r\n" + VALUE * 2, "in time"),
        # Not a thousand times more: hiredis makes room for what is announced, and Python walks through it for seconds.
        (b"*1000000\r\n", "not the reply"),
        (b"$500000000\r\nx", "in time"),
        (b"*4\r\n$2\r\n\x20\x07\r\n$2\r\n\x12\x00\r\n$3\r\n\x12\x01x\r\n$2\r\n\x08\x01\r\n", "another entity"),
    ],
)
def test_answers_that_are_none_are_outages_asked_for_once(answer: bytes, reason: str) -> None:
    async def scenario() -> None:
        async with impostor(answer) as (server, reader):
            assert reason in await fails(reader, timeout_s=TIMEOUT_S if reason == "in time" else PATIENCE_S)
            # Somebody else's row is asked for once more on a new connection: it may have been a mix-up on the old one.
            assert server.reads == (2 if reason == "another entity" else 1)

    asyncio.run(scenario())


def test_a_connection_that_closes_under_every_read_is_tried_twice_and_no_more() -> None:
    async def scenario() -> None:
        async with impostor(b"") as (server, reader):
            assert "closed or refused" in await fails(reader)
            assert server.reads == 2

    asyncio.run(scenario())


def test_after_a_wrong_answer_nothing_unread_is_taken_for_the_next_one() -> None:
    """Two replies to one question: the second must not answer the next customer."""
    ours = b"*4\r\n$2\r\n\x20\x07\r\n$2\r\n\x12\x00\r\n$3\r\n\x12\x01a\r\n$2\r\n\x08\x01\r\n"

    async def scenario() -> None:
        async with impostor(ours * 2) as (server, reader):
            assert (await fetch(reader, "a")).numbers[0, 0] == 7
            await asyncio.sleep(0.01)
            assert "another entity" in await fails(reader, "b")
            assert server.reads == 3  # and once more on a new connection, in case it was a mix-up

    asyncio.run(scenario())


class Liar:
    """Redis behind a proxy that spoils replies now and then: swapped, short, long, garbage, of another type."""

    def __init__(self, redis: RealRedis, draw: random.Random, others: list[bytes]) -> None:
        self.redis = redis
        self.others = others  # of another type
        self.draw = draw
        self.lies = 0
        self.handlers: set[asyncio.Task[Any] | None] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handlers.add(asyncio.current_task())
        commands = hiredis.Reader()
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(1 << 16):
                commands.feed(data)
                replies = []
                while (command := commands.gets()) is not False:
                    known = command[0] != b"CLIENT"
                    replies.append(resp(self.redis.execute_command(*command)) if known else b"+OK\r\n")
                if len(replies) > 1 and self.draw.random() < 0.5:
                    replies = self.spoiled(replies)
                writer.write(b"".join(replies))
        writer.close()

    def spoiled(self, replies: list[bytes]) -> list[bytes]:
        self.lies += 1
        one, other = self.draw.sample(range(len(replies)), 2)
        match self.draw.randrange(6):
            case 0:
                replies[one], replies[other] = replies[other], replies[one]
            case 1:
                replies.insert(one, replies[other])
            case 2:
                replies[one] = replies[one][: self.draw.randrange(len(replies[one]))]
            case 3:
                replies[one] = self.draw.choice(self.others)
            case 4:
                replies[one] = self.draw.randbytes(self.draw.randrange(40))
            case _:
                del replies[one]
        return replies


def resp(value: Any) -> bytes:
    match value:
        case None:
            return b"$-1\r\n"
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(resp, value))
        case dict():
            return resp([part for pair in value.items() for part in pair])
        case int():
            return b":%d\r\n" % value
        case _:
            raw = value.encode() if isinstance(value, str) else value
            return b"$%d\r\n%b\r\n" % (len(raw), raw)


@pytest.mark.parametrize("whole", [False, True], ids=["hmget", "hgetall"])
def test_a_spoiled_reply_never_becomes_somebodys_value(redis: RealRedis, redis_url: str, whole: bool) -> None:  # noqa: FBT001
    customers = [f"c{number}" for number in range(40)]
    for number, customer in enumerate(customers):
        put(redis_url, customer, number)

    async def scenario() -> int:
        draw = random.Random(17)
        # All of a hash that is not there is `*0`, so that of a hash is no lie that could be noticed.
        empty = [] if whole else [b"*0\r\n"]
        liar = Liar(redis, draw, [b":7\r\n", b"$-1\r\n", b"+OK\r\n", b"-ERR no\r\n", *empty])
        server = await asyncio.start_server(liar, "127.0.0.1", 0)
        right = 0
        async with reading(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", 0.1) as reader:
            reader._styles[PLAN.hashes[0]] = _Style(whole, math.inf)
            for _ in range(400):
                asked = draw.sample(range(40), 4)
                try:
                    batch = await reader.fetch(PLAN, keys_of(*(customers[number] for number in asked)), PATIENCE_S)
                except FeatureStoreUnavailable:
                    continue
                for row, number in enumerate(asked):
                    if row not in batch.refused and (row, "orders") not in batch.corrupt:
                        assert batch.numbers[row, 0] == number
                        right += 1
            server.close()
        await asyncio.gather(*filter(None, liar.handlers))
        assert liar.lies > 100
        return right

    assert asyncio.run(scenario()) > 300


NO_HASHES = [
    b"*1\r\n:1\r\n",
    b"*2\r\n:1\r\n:2\r\n",
    b"*2\r\n-ERR a\r\n:1\r\n",
    b"*3\r\n" + VALUE * 3,
    b"*4\r\n" + VALUE * 4,
]


@pytest.mark.parametrize("reply", NO_HASHES)
def test_garbage_for_all_of_a_hash_is_no_unknown_customer(reply: bytes) -> None:
    async def scenario() -> None:
        async with impostor(reply) as (_, reader):
            reader._styles[PLAN.hashes[0]] = _Style(whole=True, sample_at=math.inf)
            assert "not the reply" in await fails(reader)

    asyncio.run(scenario())


def test_a_row_that_stays_wrong_costs_nobody_a_connection(redis: RealRedis, redis_url: str) -> None:
    put(redis_url, "a", 1, owner=SECRET)
    put(redis_url, "b", 2)

    async def asks(reader: RedisReader, customer: str) -> None:
        for _ in range(100):
            batch = await reader.fetch(PLAN, keys_of(customer), PATIENCE_S)
            assert (batch.refused == {}) == (customer == "b")

    async def scenario() -> None:
        async with reading(redis_url) as reader:
            await asks(reader, "a")
            before = redis.info("stats")["total_connections_received"]
            await asyncio.gather(*(asks(reader, customer) for customer in "aaaabbbb"))
            assert redis.info("stats")["total_connections_received"] == before

    asyncio.run(scenario())


@pytest.mark.parametrize("probes", [("+object|encoding", "+hlen"), ("+object|encoding",), ()], ids=len)
def test_a_user_who_may_read_fields_alone_reads_fields(own_redis: LocalRedis, probes: tuple[str, ...]) -> None:
    put(own_redis.address, "a", 1)
    with Redis(port=own_redis.port) as client:
        major = int(client.info("server")["redis_version"].partition(".")[0])
        commands = ["+hmget", "+ping", *probes]
        allowed = commands if major >= 7 else [command.replace("|encoding", "") for command in commands]
        client.acl_setuser("reader", enabled=True, passwords=["+secret"], keys=["*"], commands=allowed)

    async def scenario() -> None:
        async with reading(f"{own_redis.address},username=reader,password=secret") as reader:
            answers = []
            for _ in range(20):
                with contextlib.suppress(StoreDenied):
                    answers.append((await fetch(reader, "a")).numbers[0, 0])
                await asyncio.sleep(0.01)  # the style is sampled beside
            assert len(answers) >= 19
            assert set(answers) == {1.0}

    asyncio.run(scenario())


NO_ROWS = [b"*0\r\n", b":1\r\n", b"+OK\r\n", b"*-1\r\n", b"*2\r\n:1\r\n:2\r\n", b"*1\r\n$0\r\n\r\n"]


@pytest.mark.parametrize("reply", NO_ROWS)
def test_compat_mode_takes_no_garbage_for_an_answer_either(reply: bytes) -> None:
    view = CompatView("orders", {"customer_id": "customer_id"}, (CompatColumn("orders", "orders"),))
    plan = CompatPlan("shop", "service", {"customer_id": "string"}, (view,))

    async def scenario() -> None:
        handler = Impostor(reply)
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        reader = CompatReader.from_connection_string(plan, address, PATIENCE_S)
        with pytest.raises(FeatureStoreUnavailable):
            await reader.get_online_features([{"customer_id": SECRET}])
        await reader.close()
        server.close()
        await asyncio.gather(*filter(None, handler.handlers))

    asyncio.run(scenario())
