"""What is refused before anything is read, and the bytes of the keys."""

from dataclasses import replace

import mmh3
import pytest

from feature_client.online.plan import EntityError, ReadPlan
from feature_client.schema import JoinKey, SchemaError
from tests.feature_client.online.shop import ACCOUNTS, DEVICES, PAIRS, SHOP, TOGETHER, feature, schema_of

CUSTOMER = (JoinKey("customer_id"),)


def test_a_key_is_the_bytes_once_seen_in_a_redis_that_feast_wrote() -> None:
    schema = schema_of(feature("v", "f", "int64"), entity=(JoinKey("driver_id", "int64"),))
    [key] = ReadPlan(schema).keys([{"driver_id": "256"}])

    expected = "0100000002000000090000006472697665725f69640400000008000000 0001000000000000".replace(" ", "")
    assert key.redis_keys[0] == bytes.fromhex(expected) + b"shop"


def test_one_read_holds_all_views_with_their_times_and_ids() -> None:
    [one] = ReadPlan(SHOP).hashes

    assert len(one.fields) == len(set(one.fields)) == 10 + 1 + 2
    assert mmh3.hash("profile:visits").to_bytes(4, "little", signed=True) in one.fields
    assert one.fields[-2:] == (b"_ts:profile", b"_ts:orders")


@pytest.mark.parametrize("entity", [{}, {"customer": "c"}, {"customer_id": "c", "account_id": "1"}])
def test_an_entity_has_exactly_the_join_keys(entity: dict[str, str]) -> None:
    with pytest.raises(EntityError, match="exactly: customer_id") as caught:
        ReadPlan(SHOP).keys([{"customer_id": "c"}, entity])

    assert caught.value.row == 1


@pytest.mark.parametrize("value", ["", "\ud800", "x\udfff", "x" * 513, "é" * 257])
def test_ids_that_cannot_be_keys_are_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(EntityError) as caught:
        ReadPlan(SHOP).keys([{"customer_id": value}])

    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["", "-", "c1", "1.0", "17850.0", "1e3", " 7", "7 ", "1_000", "+1", "--1", "٣", "²", "9" * 19, "9" * 5_000, "0x1"],
)
def test_whole_number_ids_are_whole_numbers(value: str) -> None:
    with pytest.raises(EntityError, match="account_id takes a whole number"):
        ReadPlan(ACCOUNTS).keys([{"account_id": value}])


@pytest.mark.parametrize("value", ["2147483648", "-2147483649"])
def test_int32_ids_have_their_range(value: str) -> None:
    with pytest.raises(EntityError, match="int32"):
        ReadPlan(DEVICES).keys([{"device_id": value}])


def test_one_id_written_in_two_ways_is_one_key() -> None:
    one, other = ReadPlan(ACCOUNTS).keys([{"account_id": "7"}, {"account_id": "007"}])

    assert one == other


def test_the_order_of_an_entitys_keys_does_not_matter() -> None:
    plan = ReadPlan(PAIRS)

    assert plan.keys([{"customer_id": "c", "account_id": "3"}]) == plan.keys([{"account_id": "3", "customer_id": "c"}])


@pytest.mark.parametrize("dtype", ["bytes", "float64_list", "map", "timestamp"])
def test_what_cannot_be_an_input_is_refused_by_name(dtype: str) -> None:
    numeric = feature("v", "embedding", "float64")
    broken = schema_of(type(numeric)(**{**vars(numeric), "dtype": dtype}), entity=CUSTOMER)

    with pytest.raises(SchemaError, match=f"embedding: {dtype} is no numeric input"):
        ReadPlan(broken)


def test_names_that_share_a_hash_are_refused_by_name() -> None:
    seen: dict[int, str] = {}
    for number in range(1_000_000):  # a 32-bit hash collides after some 77,000
        name = f"f{number}"
        if (other := seen.setdefault(mmh3.hash(f"v:{name}"), name)) != name:
            break
    colliding = schema_of(feature("v", other, "int64"), feature("v", name, "int64"), entity=CUSTOMER)

    with pytest.raises(SchemaError, match=f"v:{other}") as caught:
        ReadPlan(colliding)
    assert f"v:{name}" in str(caught.value)


def test_views_that_share_their_join_keys_are_one_command() -> None:
    plan = ReadPlan(TOGETHER)
    [key] = plan.keys([{"customer_id": "c", "account_id": "3"}])

    assert [[view.name for view in one.views] for one in plan.hashes] == [
        ["profile", "orders"],
        ["accounts"],
        ["pairs"],
    ]
    assert len(set(key.redis_keys)) == 3
    assert key.redis_keys[0] == ReadPlan(SHOP).keys([{"customer_id": "c"}])[0].redis_keys[0]
    assert key.redis_keys[2] == ReadPlan(PAIRS).keys([{"customer_id": "c", "account_id": "3"}])[0].redis_keys[0]


def test_join_keys_of_a_view_are_among_the_entitys() -> None:
    with pytest.raises(SchemaError, match="orders: its join keys are not among customer_id"):
        replace(SHOP, join_keys={"orders": ("shop_id",)})


def test_copies_of_the_id_need_a_single_join_key() -> None:
    schema = schema_of(feature("pairs", "weight", "float64"), entity=PAIRS.entity, pairs="copy")

    with pytest.raises(SchemaError, match="pairs: rows can hold the entity id"):
        ReadPlan(schema)
