"""What one feature read costs this process's CPU, through our reader and through Feast's SDK, on one store.

    python -m feature_client.offline.read_cost --workspace .rapport/generated --redis 127.0.0.1:6379

Both read the same features of the same customers, and what they read must be equal. Prints one JSON object:

    single       one customer a read, 64 reads at once: CPU microseconds a read, one figure a round
    coalesced    the same 64 through our reader as the gateway does it, in one read: CPU microseconds a customer
    batch        100 customers a read, one read at a time
    encode       from what was read to the model's input tensors, of 1 and of 100 customers (Feast has no such step)
    by_features  our reader alone on made-up views of 10 to 300 numbers: single reads, and batches of 100

Reads are `feast` = get_online_features_async(...).to_dict() and `ours` = keys and RedisReader.fetch, that is values
with event times and statuses, not yet tensors. Both run on uvloop, as the gateway does.
"""

import argparse
import asyncio
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from feast import FeatureStore
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]
from redis import Redis

from feature_client.errors import RapportError
from feature_client.offline.store import open_store
from feature_client.offline.workspace import Workspace
from feature_client.online import wire
from feature_client.online.local_redis import LocalRedis
from feature_client.online.plan import ReadPlan
from feature_client.online.redis_reader import RedisReader
from feature_client.release import read_release
from feature_client.routes import read_routes
from feature_client.schema import Feature, FeatureBatch, FeatureSchema, JoinKey

CONCURRENT = 64
BATCH = 100
COMPARED = 500
"""Customers whose values are compared before anything is measured."""
WIDTHS = (10, 40, 100, 300)
MADE_UP = 500
TIMEOUT_S = 30.0

Read = Callable[[Sequence[str]], Awaitable[Any]]
"""Customers to what the store holds for them."""


class Different(RapportError):
    """Our reader and Feast's disagree; the message says where."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="with a published release")
    parser.add_argument("--redis", required=True, help="where its features are: host:port")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            result = runner.run(measure(Workspace(options.workspace, options.redis), options.seconds, options.rounds))
        except RapportError as exc:
            sys.exit(f"read_cost: {exc}")
    print(json.dumps(result))  # noqa: T201


async def measure(workspace: Workspace, seconds: float, rounds: int) -> dict[str, Any]:
    """Raises Different, and what the readers raise."""
    schema, as_of = served_schema(workspace), workspace.dataset().as_of.timestamp()
    customers = workspace.customers.read_text(encoding="utf-8").split()
    reader = RedisReader.from_connection_string(workspace.redis, TIMEOUT_S)
    ours, feast = our_read(reader, schema), feast_read(open_store(workspace), schema)
    try:
        sample = customers[:COMPARED]
        batch = await ours(sample)
        compare(schema, batch, await feast(sample))
        result: dict[str, Any] = {
            "features": len(stored_names(schema)),
            "compared": len(sample),
            "single": {"feast_us": [], "ours_us": []},
            "coalesced": {"feast_us": [], "ours_us": []},
            "batch": {"feast_us": [], "ours_us": []},
            "encode": {"1": [], str(BATCH): []},
        }
        for _ in range(rounds):
            for case, size, at_once in (("single", 1, CONCURRENT), ("batch", BATCH, 1)):
                for name, read in (("ours", ours), ("feast", feast)):
                    result[case][f"{name}_us"].append(await cost_us(read, customers, size, at_once, seconds))
            together = await cost_us(ours, customers, CONCURRENT, 1, seconds)
            result["coalesced"]["ours_us"].append(round(together / CONCURRENT, 2))
            result["coalesced"]["feast_us"].append(result["single"]["feast_us"][-1])
            for size in (1, BATCH):
                result["encode"][str(size)].append(encode_us(schema, await ours(customers[:size]), as_of, seconds))
    finally:
        await reader.close()
    result["by_features"] = {str(width): await made_up_us(width, seconds) for width in WIDTHS}
    return result


def served_schema(workspace: Workspace) -> FeatureSchema:
    """The champion's, with its vocabularies."""
    [(model, route)] = read_routes(workspace.models).items()
    return read_release(workspace.models, model, route.champion).contract.schema


def our_read(reader: RedisReader, schema: FeatureSchema) -> Callable[[Sequence[str]], Awaitable[FeatureBatch]]:
    plan, [join_key] = ReadPlan(schema), schema.entity

    async def read(customers: Sequence[str]) -> FeatureBatch:
        keys = plan.keys([{join_key.name: customer} for customer in customers])
        return await reader.fetch(plan, keys, TIMEOUT_S)

    return read


def feast_read(
    store: FeatureStore, schema: FeatureSchema
) -> Callable[[Sequence[str]], Awaitable[Mapping[str, Sequence[Any]]]]:
    features, [join_key] = [f"{view}:{field}" for view, field in stored_names(schema)], schema.entity

    async def read(customers: Sequence[str]) -> Mapping[str, Sequence[Any]]:
        rows = [{join_key.name: customer} for customer in customers]
        response = await store.get_online_features_async(features, rows, full_feature_names=True)
        values: dict[str, list[Any]] = response.to_dict()
        return values

    return read


def stored_names(schema: FeatureSchema) -> list[tuple[str, str]]:
    """(view, field) of everything our reader reads: the features, and the copies of the entity id."""
    features = (*schema.stored_numbers, *schema.categorical)
    copies = [(view, schema.entity_fields[view]) for view in schema.views if view in schema.entity_fields]
    return [(str(feature.view), str(feature.field)) for feature in features] + copies


def compare(schema: FeatureSchema, batch: FeatureBatch, feast: Mapping[str, Sequence[Any]]) -> None:
    """To the last bit. Raises Different."""
    columns: list[tuple[Feature, list[Any]]] = [
        *((feature, batch.numbers[:, at].tolist()) for at, feature in enumerate(schema.stored_numbers)),
        *((feature, batch.strings[:, at].tolist()) for at, feature in enumerate(schema.categorical)),
    ]
    if batch.refused or np.isnan(batch.event_times).all(axis=1).any():
        raise Different("our reader refused a customer, or does not know one")
    for feature, ours in columns:
        theirs = [_plain(value) for value in feast[f"{feature.view}__{feature.field}"]]
        for row, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if not (one == other or (_missing(one) and _missing(other))):
                raise Different(f"{feature.name} of customer {row + 1} is {one!r}, and {other!r} through Feast")


async def cost_us(read: Read, customers: Sequence[str], size: int, at_once: int, seconds: float) -> float:
    """CPU microseconds of this process, a read of `size` random customers."""
    rng = random.Random(0)  # noqa: S311  (whom to ask about)
    reads = 0

    async def ask(ends: float) -> None:
        nonlocal reads
        while True:
            await read(rng.choices(customers, k=size))
            reads += 1
            if time.monotonic() >= ends:
                return

    # Connected and warm first.
    await asyncio.gather(*(ask(0.0) for _ in range(at_once)))
    reads, started = 0, time.process_time()
    await asyncio.gather(*(ask(time.monotonic() + seconds) for _ in range(at_once)))
    return round((time.process_time() - started) / reads * 1e6, 2)


def encode_us(schema: FeatureSchema, batch: FeatureBatch, as_of: float, seconds: float) -> float:
    """CPU microseconds, one batch to tensors."""
    times = 0
    ends, started = time.monotonic() + seconds / 4, time.process_time()
    while time.monotonic() < ends:
        schema.encode(batch, as_of)
        times += 1
    return round((time.process_time() - started) / times * 1e6, 2)


async def made_up_us(width: int, seconds: float) -> dict[str, float]:
    """Our reader on a view of `width` numbers, in a store of its own."""
    features = tuple(
        Feature(f"f{number}", "numeric", "all", f"f{number}", "", "wide", f"f{number}", "float64", default=0.0)
        for number in range(width)
    )
    schema = FeatureSchema("read_cost", (JoinKey("customer_id"),), features, {}, {"all": "All"})
    customers = [str(number) for number in range(MADE_UP)]
    with tempfile.TemporaryDirectory() as directory, LocalRedis(Path(directory)) as server:
        write_made_up(server.address, schema, customers)
        reader = RedisReader.from_connection_string(server.address, TIMEOUT_S)
        read = our_read(reader, schema)
        try:
            batch = await read(customers[:2])
            if not (batch.numbers == [[row + at for at in range(width)] for row in range(2)]).all():
                raise Different(f"the made-up view of {width} numbers was not read as written")
            return {
                "single_us": await cost_us(read, customers, 1, CONCURRENT, seconds),
                "batch_us": await cost_us(read, customers, BATCH, 1, seconds),
            }
        finally:
            await reader.close()


def write_made_up(address: str, schema: FeatureSchema, customers: Sequence[str]) -> None:
    """Feature `at` of customer `row` is row + at."""
    host, _, port = address.rpartition(":")
    written_at = Timestamp(seconds=int(time.time())).SerializeToString()
    with Redis(host, int(port)) as redis, redis.pipeline(transaction=False) as pipeline:
        for row, key in enumerate(ReadPlan(schema).keys([{"customer_id": customer} for customer in customers])):
            fields: dict[bytes, bytes] = {
                wire.value_name(view, field): Value(double_val=float(row + at)).SerializeToString()
                for at, (view, field) in enumerate(stored_names(schema))
            }
            fields |= {wire.event_time_name(view): written_at for view in schema.views}
            pipeline.hset(key.redis_keys[0], mapping=fields)
        pipeline.execute()


def _plain(value: object) -> object:
    """Timestamps as our reader gives them: epoch seconds."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


if __name__ == "__main__":
    main()
