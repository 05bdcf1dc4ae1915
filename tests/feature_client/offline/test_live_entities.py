"""Finding live entities by SCAN: only those asked for, bounded, and whatever bytes their keys hold."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from feature_client.offline import live_entities
from feature_client.offline.live_entities import Scan, find, live_rows
from feature_client.online import entity_key
from feature_client.online.compat_plan import CompatColumn, CompatPlan, CompatView
from feature_client.online.connection import connect, parse

Answer = TypeVar("Answer")


@pytest.fixture
def ask(redis_url: str) -> Callable[[Callable[["AsyncRedis"], Awaitable[Any]]], Any]:
    def run(question: Callable[["AsyncRedis"], Awaitable[Answer]]) -> Answer:
        async def scenario() -> Answer:
            client = connect(parse(redis_url), 5.0)
            try:
                return await question(client)
            finally:
                await client.aclose()

        return asyncio.run(scenario())

    return run


def put(redis: "Redis", project: str, **values: tuple[str, Any]) -> None:
    redis.hset(entity_key.encode(values, project), "_ts:v", b"")  # type: ignore[arg-type]


@pytest.mark.parametrize("project", ["shop", "s*p", "[shop]", "s?op", "sh\\op", "^"])
def test_only_entities_of_this_kind_and_project_are_found(project: str, redis: "Redis", ask: Any) -> None:
    names = ["*", "[a-z]", "?", "\\", "x" * 42, "x" * 63, "x" * 91]  # lengths that are * ? [ as bytes
    for name in names:
        put(redis, project, customer=("string", name))
    put(redis, project, customer=("string", "x"), shop=("int64", 1))
    put(redis, project, other=("string", "x"))
    put(redis, "pre" + project, customer=("string", "not ours"))
    put(redis, "shoop", customer=("string", "not ours"))
    redis.set(b"\x01\x00\x00\x00rubbish" + project.encode(), "x")

    scan: Scan = ask(lambda client: find(client, project, ["customer"], 100))

    assert scan.complete
    assert sorted(str(entity["customer"][1]) for entity in scan.found) == sorted(names)


def test_the_search_ends_with_the_sample_or_after_its_steps(
    redis: "Redis", ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3_000):
        put(redis, "shop", customer=("int64", number))

    sample: Scan = ask(lambda client: find(client, "shop", ["customer"], 7))
    assert (len(sample.found), sample.complete) == (7, True)

    monkeypatch.setattr(live_entities, "MAX_STEPS", 1)
    cut: Scan = ask(lambda client: find(client, "shop", ["customer"], 5_000))
    assert 0 < len(cut.found) < 3_000
    assert not cut.complete


def test_rows_ask_for_every_entity_and_fill_in_the_others_keys(redis: "Redis", ask: Any) -> None:
    plan = CompatPlan(
        project="shop",
        service="s",
        keys={"city": "string", "customer": "string", "unused": None, "friend": "string"},
        views=(
            CompatView("v", {"customer": "customer"}, (CompatColumn("f", "f"),)),
            CompatView("v", {"customer": "friend"}, (CompatColumn("f", "g"),)),
            CompatView("w", {"customer": "customer", "city": "city"}, (CompatColumn("h", "h"),)),
        ),
    )
    for name in "abc":
        put(redis, "shop", customer=("string", name))
    put(redis, "shop", customer=("int64", 7))

    live = ask(lambda client: live_rows(client, plan, 100))

    assert [list(row) for row in live.rows] == [["city", "customer", "friend"]] * 3
    assert {row["customer"] for row in live.rows} == {row["friend"] for row in live.rows} == set("abc")
    assert all(row["customer"] != row["friend"] and row["city"] == "nobody" for row in live.rows)
    assert live.warnings == ["1 keys by customer are of another type than declared: Feast does not find them"]
