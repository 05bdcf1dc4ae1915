"""Compat mode against Feast itself, over one Redis: equal answers, and named errors where Feast is silently wrong."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from feature_client.offline.comparison import Mismatch, differences, require_same
from feature_client.online import compat, entity_key, value, wire
from feature_client.online.compat import CompatReader
from feature_client.online.compat_plan import CompatError, CompatPlan
from feature_client.online.reader import EntityError, FeatureStoreUnavailable
from feature_client.online.wire import WireError
from tests.feature_client.online.registries import (
    AT,
    Project,
    View,
    draw_project,
    draw_request,
    entity,
    feature_view,
    store_at,
    write,
    write_rows,
)
from tests.feature_client.online.values import GOLDEN, random_member

if TYPE_CHECKING:
    from feast import FeatureStore

pytestmark = pytest.mark.filterwarnings("ignore:.*feature view.*:UserWarning")

KEYS = {"driver": "Int64", "city": "String"}
TRIPS = View("trips", ["driver"], {"count": "Int64", "at": "UnixTimestamp"}, by_rows=False)
PAIRS = View("pairs", ["driver", "city"], {"weight": "Float64"}, by_rows=False)


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> "FeatureStore":
    """Two views by hand, one without entities, and a service in which one view is seen twice under aliases."""
    from feast import FeatureService  # noqa: PLC0415

    directory = tmp_path_factory.mktemp("fleet")
    store = store_at(directory, redis_url, "fleet")
    trips, pairs = (feature_view(directory, view, KEYS) for view in (TRIPS, PAIRS))
    world = feature_view(directory, View("world", [], {"holiday": "Bool"}, by_rows=False), KEYS)
    service = FeatureService(
        name="ride",
        features=[
            trips.with_name("origin").with_join_key_map({"driver": "from_driver"}),
            trips[["count"]].with_name("goal").with_join_key_map({"driver": "to_driver"}),
        ],
    )
    rival = trips[["count"]].with_name("other").with_join_key_map({"driver": "rival"})
    mixed = FeatureService(name="mixed", features=[trips[["at"]].with_name("own"), rival])
    store.apply([*(entity(key, dtype) for key, dtype in KEYS.items()), trips, pairs, world, service, mixed])
    return store


@pytest.fixture
def rows(fleet: "FeatureStore", redis: "Redis") -> None:
    write(fleet, TRIPS, KEYS, [{"driver": n, "event_timestamp": AT, "count": n * 10, "at": AT} for n in (1, 2, 3)])
    write(fleet, PAIRS, KEYS, [{"driver": 1, "city": "Łódź", "event_timestamp": AT, "weight": 0.5}])


@pytest.fixture
def compiled(fleet: "FeatureStore") -> Callable[..., CompatPlan]:
    return lambda features, **options: compile_compat(fleet, features, **options)


def compile_compat(store: "FeatureStore", features: str | Sequence[str], **options: bool) -> CompatPlan:
    """As it reaches a serving process: through JSON."""
    from feature_client.offline import compat_registry  # noqa: PLC0415  (imports Feast)

    return CompatPlan.from_json(compat_registry.compile_compat(store, features, **options).to_json())


def read(plan: CompatPlan, redis_url: str, asked: Sequence[Mapping[str, Any]], *, times: bool = True) -> dict[str, Any]:
    async def scenario() -> dict[str, Any]:
        reader = CompatReader.from_connection_string(plan, redis_url)
        try:
            return await reader.get_online_features(asked, include_event_timestamps=times)
        finally:
            await reader.close()

    return asyncio.run(scenario())


def require_feasts_answer(
    store: "FeatureStore",
    redis_url: str,
    features: str | Sequence[str],
    asked: Sequence[Mapping[str, Any]],
    *,
    full: bool = False,
) -> dict[str, Any]:
    """What both answer. Raises Mismatch."""
    ours = read(compile_compat(store, features, full_feature_names=full), redis_url, asked)
    require_same(answer_of(store, features, asked, full=full), ours)
    return ours


def answer_of(
    store: "FeatureStore", features: str | Sequence[str], asked: Sequence[Mapping[str, Any]], *, full: bool = False
) -> dict[str, Any]:
    wanted = store.get_feature_service(features) if isinstance(features, str) else list(features)
    response = store.get_online_features(wanted, [dict(row) for row in asked], full_feature_names=full)
    answer: dict[str, Any] = response.to_dict(include_event_timestamps=True)
    return answer


@pytest.fixture(scope="module")
def drawn(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Project]:
    return lambda seed: draw_project(random.Random(seed), tmp_path_factory.mktemp("drawn"), redis_url, seed)


@pytest.mark.parametrize("seed", range(16))
def test_a_random_registry_is_answered_as_feast_answers_it(
    seed: int, drawn: Callable[[int], Project], redis_url: str, redis: "Redis"
) -> None:
    """Nulls, missing rows, duplicates, unknown entities; all types of values; keys of one to three parts."""
    project, draw = drawn(seed), random.Random(seed)
    references = [f"{view.name}:{field}" for view in project.views for field in view.fields]
    for full in (False, True):
        wanted = draw.sample(references, draw.randrange(1, len(references) + 1))
        names = sorted(compile_compat(project.store, wanted).required)
        asked = draw_request(draw, project, draw.sample(names, len(names)))

        require_feasts_answer(project.store, redis_url, wanted, asked, full=full)

    everything = require_feasts_answer(
        project.store, redis_url, references, draw_request(draw, project, sorted(project.keys))
    )
    features = [everything[reference.partition(":")[2]] for reference in references]
    # Were nothing found, the same nulls would prove little.
    assert any(found is not None for column in features for found in column)


def test_every_member_of_value_passes_through_redis(redis_url: str, redis: "Redis", tmp_path: Path) -> None:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey  # noqa: PLC0415
    from feast.protos.feast.types.Value_pb2 import Value  # noqa: PLC0415

    store, draw = store_at(tmp_path, redis_url, "anything"), random.Random(9)
    # The registered type does not matter to Feast: what is stored is what is shown.
    view = View("anything", ["driver"], dict.fromkeys(GOLDEN, "Bytes"), by_rows=True)
    store.apply([entity("driver", "Int64"), feature_view(tmp_path, view, KEYS)])
    rows: list[tuple[Any, dict[str, Any], datetime, datetime | None]] = []
    while len(rows) < 60:
        key = EntityKey(join_keys=["driver"], entity_values=[Value(int64_val=len(rows))])
        values = {member: Value(**{member: random_member(draw, member)}) for member in GOLDEN}
        rows.append((key, values, AT, None))
    store._get_provider().online_write_batch(store.config, store.get_feature_view("anything"), rows, None)
    plan = compile_compat(store, [f"anything:{member}" for member in GOLDEN])

    refused = 0
    for number in range(60):
        asked = [{"driver": number}]
        try:
            theirs = answer_of(store, [f"anything:{member}" for member in GOLDEN], asked)
        except (ValueError, ArithmeticError, OSError, TypeError):
            refused += 1  # a time beyond the year 9999: Feast answers nothing, and so do we
            with pytest.raises(WireError, match="anything:"):
                read(plan, redis_url, asked)
            continue
        require_same(theirs, read(plan, redis_url, asked))
    assert refused < 55


def test_aliases_read_the_entity_that_they_name(fleet: "FeatureStore", rows: None, redis_url: str) -> None:
    asked = [{"from_driver": 1, "to_driver": 3}, {"from_driver": 2, "to_driver": 2}, {"from_driver": 9, "to_driver": 1}]

    answer = require_feasts_answer(fleet, redis_url, "ride", asked, full=True)

    assert answer["origin__count"] == [10, 20, None]
    assert answer["goal__count"] == [30, 20, 10]


def test_an_alias_that_feast_would_not_heed_is_refused(
    fleet: "FeatureStore", rows: None, redis_url: str, compiled: Callable[..., CompatPlan]
) -> None:
    """Trap: of join key and alias, the one that stands last in the request wins, at Feast's."""
    wrong, right = [{"rival": 2, "driver": 1}], [{"driver": 1, "rival": 2}]

    assert answer_of(fleet, "mixed", wrong)["count"] == [10]
    with pytest.raises(EntityError, match="rival must stand behind driver"):
        read(compiled("mixed"), redis_url, wrong)
    assert require_feasts_answer(fleet, redis_url, "mixed", right)["count"] == [20]


def test_a_missing_join_key_is_an_error_and_not_nobody(
    fleet: "FeatureStore", rows: None, redis_url: str, compiled: Callable[..., CompatPlan]
) -> None:
    assert answer_of(fleet, ["pairs:weight"], [{"driver": 1}])["weight"] == [None]
    with pytest.raises(EntityError, match="lacks city"):
        read(compiled(["pairs:weight"]), redis_url, [{"driver": 1}])


@pytest.mark.parametrize("driver", ["1", 1.0, True, 1.9, 1, "2", " 3 ", "1_0"])
def test_join_keys_are_coerced_as_feast_coerces_them(
    driver: Any, fleet: "FeatureStore", rows: None, redis_url: str
) -> None:
    require_feasts_answer(fleet, redis_url, ["trips:count", "pairs:weight"], [{"driver": driver, "city": "Łódź"}])


@pytest.mark.parametrize("city", [7, True, 1.5, "", datetime(2026, 1, 1, tzinfo=UTC)])
def test_anything_becomes_text_as_feast_makes_it(city: Any, fleet: "FeatureStore", rows: None, redis_url: str) -> None:
    require_feasts_answer(fleet, redis_url, ["pairs:weight"], [{"city": city, "driver": 1}])


@pytest.mark.parametrize(
    "driver", [None, float("nan"), "c1", [1], 1 << 63, b"x\xff", float("inf"), datetime.max.replace(tzinfo=UTC)]
)
def test_what_cannot_be_a_key_is_an_error_that_does_not_repeat_it(
    driver: Any, fleet: "FeatureStore", rows: None, redis_url: str, compiled: Callable[..., CompatPlan]
) -> None:
    with pytest.raises(EntityError, match="driver") as caught:
        read(compiled(["trips:count"]), redis_url, [{"driver": 1}, {"driver": driver}])

    assert caught.value.row == 1
    assert "c1" not in str(caught.value)


def test_keys_that_no_view_needs_are_repeated_or_dropped_as_feast_does(
    fleet: "FeatureStore", rows: None, redis_url: str
) -> None:
    asked: list[dict[str, Any]] = [
        {"city": None, "driver": 2, "nonsense": 1.5},
        {"city": "x", "driver": 1, "nonsense": 2.5},
    ]

    answer = require_feasts_answer(fleet, redis_url, ["trips:count"], asked)

    assert answer["city"] == [None, "x"]
    assert "nonsense" not in answer


def test_rows_of_different_keys_are_refused(redis_url: str, compiled: Callable[..., CompatPlan]) -> None:
    with pytest.raises(EntityError, match="same keys"):
        read(compiled(["trips:count"]), redis_url, [{"driver": 1}, {"driver": 1, "city": "x"}])
    with pytest.raises(EntityError, match="no entity rows"):
        read(compiled(["trips:count"]), redis_url, [])


def test_views_without_entities_are_read_where_feast_reads_them(
    fleet: "FeatureStore", redis: "Redis", redis_url: str
) -> None:
    """Trap: what is pushed goes to another key than what is read; materialized rows are found."""
    from feast.feature_view import DUMMY_ENTITY_ID  # noqa: PLC0415

    row = {"event_timestamp": AT, "holiday": True}
    write(fleet, View("world", [], {"holiday": "Bool"}, by_rows=False), {}, [row])
    assert redis.keys() == [b"\x00\x00\x00\x00fleet"]
    answer = require_feasts_answer(fleet, redis_url, ["world:holiday", "trips:count"], [{"driver": 1}])
    assert answer["holiday"] == [None]

    write_rows(fleet, "world", {DUMMY_ENTITY_ID: "String"}, [{DUMMY_ENTITY_ID: "", **row}])
    answer = require_feasts_answer(fleet, redis_url, ["world:holiday"], [{"driver": 1}, {"driver": 2}])
    assert answer["holiday"] == [True, True]


def test_event_times_are_there_only_when_asked_for(
    rows: None, redis_url: str, compiled: Callable[..., CompatPlan]
) -> None:
    plan = compiled(["trips:count"])

    assert read(plan, redis_url, [{"driver": 1}, {"driver": 9}], times=False) == {"driver": [1, 9], "count": [10, None]}
    assert read(plan, redis_url, [{"driver": 1}, {"driver": 9}])["count__ts"] == [int(AT.timestamp()), 0]


def test_one_value_that_cannot_be_read_fails_the_request_by_name(
    fleet: "FeatureStore", rows: None, redis: "Redis", redis_url: str, compiled: Callable[..., CompatPlan]
) -> None:
    key = entity_key.encode({"driver": ("int64", 2)}, "fleet")
    redis.hset(key, wire.value_name("trips", "count"), b"\x20\x80")  # type: ignore[arg-type]
    asked = [{"driver": 1}, {"driver": 2}]

    with pytest.raises(Exception, match="Error parsing message"):
        answer_of(fleet, ["trips:count"], asked)
    with pytest.raises(WireError, match="trips:count"):
        read(compiled(["trips:count"]), redis_url, asked)


def test_a_store_that_refuses_or_is_gone_is_named(
    rows: None, redis: "Redis", redis_url: str, compiled: Callable[..., CompatPlan]
) -> None:
    plan = compiled(["trips:count"])
    redis.flushall()
    redis.set(entity_key.encode({"driver": ("int64", 1)}, "fleet"), "no hash")

    with pytest.raises(FeatureStoreUnavailable):
        read(plan, redis_url, [{"driver": 1}])
    with pytest.raises(FeatureStoreUnavailable):
        read(plan, "127.0.0.1:1", [{"driver": 1}])


def test_a_plan_that_is_no_plan_is_refused() -> None:
    with pytest.raises(CompatError, match="not a compat plan"):
        CompatPlan.from_json(b'{"project": "shop"}')


encode, redis_keys = entity_key.encode, CompatPlan.redis_keys

BUGS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "values by another name": (wire, "value_name", lambda view, field: b"\x00\x01\x02\x03"),
    "another view's time": (wire, "event_time_name", lambda view: b"_ts:pairs"),
    "another project": (entity_key, "encode", lambda values, project: encode(values, project + "x")),
    "keys one off": (
        entity_key,
        "encode",
        lambda values, project: encode(
            {name: (dtype, at + 1 if isinstance(at, int) else at) for name, (dtype, at) in values.items()}, project
        ),
    ),
    "int64 keys as int32": (
        entity_key,
        "encode",
        lambda values, project: encode(
            {name: (dtype.replace("64", "32"), at) for name, (dtype, at) in values.items()}, project
        ),
    ),
    "times late by a second": (compat, "decode_event_time", lambda raw: value.decode_event_time(raw) + 1),
    "floats rounded": (compat, "decode", lambda raw, declared: rounded(value.decode(raw, declared))),
    "rows in another order": (CompatPlan, "redis_keys", lambda *args: redis_keys(*args)[::-1]),
    "one entity for all": (CompatPlan, "redis_keys", lambda *args: redis_keys(*args)[:1] * args[-1]),
}
"""What is planted -> where, and in place of what."""


def rounded(shown: Any) -> Any:
    return int(shown) if isinstance(shown, float) else shown


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(
    bug: str, fleet: "FeatureStore", rows: None, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls: the same comparison holds without the bug, and fails with it."""
    asked = [{"driver": 1, "city": "Łódź"}, {"driver": 2, "city": "Łódź"}, {"driver": 9, "city": "x"}]
    wanted = ["trips:count", "trips:at", "pairs:weight"]
    require_feasts_answer(fleet, redis_url, wanted, asked)

    monkeypatch.setattr(*BUGS[bug])
    with pytest.raises(Mismatch):
        require_feasts_answer(fleet, redis_url, wanted, asked)


@pytest.fixture
def one() -> dict[str, list[Any]]:
    return {"a": [1, None, 0.0, float("nan"), {"k": [1]}, {1, 2}]}


@pytest.mark.parametrize(
    "other",
    [
        [1.0],
        [True],
        ["1"],
        [1, 0],
        [1, None, -0.0],
        [1, None, 0],
        [1, None, 0.0, None],
        [1, None, 0.0, float("nan"), {}],
    ],
)
def test_the_comparison_tells_what_python_takes_for_equal(one: dict[str, list[Any]], other: list[Any]) -> None:
    [difference] = differences(one, {"a": [*other, *one["a"][len(other) :]]})

    assert difference.row == len(other) - 1
    assert differences(one, one) == []
    assert [str(found) for found in differences(one, {})] == ["a, row -1: Feast says 6 rows, we say no such column"]
