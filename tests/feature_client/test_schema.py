"""Stored values become tensors in one place, for training and serving alike: what that place promises."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest

from feature_client.schema import (
    DAY_S,
    MISSING,
    UNSEEN,
    Encoded,
    Feature,
    FeatureBatch,
    FeatureSchema,
    JoinKey,
    OverrideError,
    SchemaError,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
GROUPS = {"money": "Money", "where": "Where", "when": "When"}

SCHEMA = FeatureSchema(
    "shop",
    (JoinKey("customer_id"),),
    (
        Feature(
            "country", "category", "where", "Country", "", "profile", "country", "string",
            nullable=True, vocabulary=("France", "Eire"),
        ),
        Feature(
            "spend", "numeric", "money", "Spend", "EUR", "orders", "spend", "float64",
            default=0.0, max_age_s=DAY_S,
        ),
        Feature(
            "gap", "numeric", "when", "Gap", "days", "orders", "gap", "float64",
            nullable=True, max_age_s=DAY_S, on_stale="default",
        ),
        Feature("silent_days", "elapsed", "when", "Days", "days", "profile", "last_at", "timestamp", nullable=True),
        Feature("season_sin", "calendar", "when", "Season"),
        Feature(
            "channel", "category", "where", "Channel", "", "orders", "channel", "string",
            max_age_s=DAY_S, on_stale="default", vocabulary=("web",),
        ),
    ),
    {"profile": "copy"},
    GROUPS,
)  # fmt: skip

FULL: dict[str, list[Any]] = {
    "country": ["France"],
    "spend": [12.5],
    "gap": [3.0],
    "last_at": [NOW - 2 * DAY_S],
    "channel": ["web"],
}


def batch_of(age_s: float = 60.0, **columns: list[Any]) -> FeatureBatch:
    columns = {**FULL, **columns}
    rows = max(len(column) for column in columns.values())
    whole = {name: column * rows if len(column) == 1 else column for name, column in columns.items()}
    return SCHEMA.batch(whole, np.full((rows, 2), NOW - age_s))


def marked(encoded: Encoded, mask: str, row: int = 0) -> list[str]:
    return [f.name for f, set_ in zip(SCHEMA.features, getattr(encoded, mask)[row], strict=True) if set_]


def test_tensors_have_the_order_and_types_of_the_schema() -> None:
    encoded = SCHEMA.encode(batch_of(country=["France", "Eire", "Spain", None]), NOW)

    assert [feature.name for feature in SCHEMA.numeric] == ["spend", "gap", "silent_days", "season_sin"]
    assert encoded.numeric.dtype == np.float32
    assert encoded.categorical.dtype == np.int64
    assert encoded.numeric[0, :3].tolist() == [12.5, 3.0, 2.0]
    assert encoded.categorical.tolist() == [[2, 2], [3, 2], [UNSEEN, 2], [MISSING, 2]]
    assert set(encoded.tensors) == {"numeric", "categorical"}


def test_elapsed_days_are_those_at_as_of_to_the_second() -> None:
    """float64 until the difference is taken: seconds since 1970 in float32 are two minutes apart."""
    encoded = SCHEMA.encode(batch_of(last_at=[NOW - 1.0]), NOW)
    later = SCHEMA.encode(batch_of(last_at=[NOW - 1.0]), NOW + DAY_S)

    assert encoded.numeric[0, 2] == np.float32(1 / DAY_S)
    assert later.numeric[0, 2] == np.float32(1 + 1 / DAY_S)


def test_each_row_may_have_its_own_instant() -> None:
    instants = np.array([NOW, NOW + 90 * DAY_S])
    encoded = SCHEMA.encode(batch_of(spend=[1.0, 2.0]), instants)

    assert encoded.numeric[:, 2].tolist() == [2.0, 92.0]
    assert encoded.numeric[0, 3] != encoded.numeric[1, 3]
    for row, instant in enumerate(instants):
        alone = SCHEMA.encode(batch_of(spend=[1.0 + row]), float(instant))
        np.testing.assert_array_equal(encoded.numeric[row], alone.numeric[0])


def test_an_event_within_the_tolerance_of_clocks_is_now_and_beyond_it_an_error() -> None:
    encoded = SCHEMA.encode(batch_of(last_at=[NOW + 60, NOW + 61]), NOW)

    assert encoded.numeric[0, 2] == 0
    assert math.isnan(encoded.numeric[1, 2])
    assert marked(encoded, "defaulted", 0) == []
    assert marked(encoded, "defaulted", 1) == ["silent_days"]


@pytest.mark.parametrize("number", [math.inf, -math.inf, 1e39, -1e39])
def test_numbers_beyond_float32_are_missing_and_reported_even_where_null_is_allowed(number: float) -> None:
    encoded = SCHEMA.encode(batch_of(gap=[number], spend=[number]), NOW)

    assert np.isnan(encoded.numeric[0, :2]).all()
    assert marked(encoded, "defaulted") == ["spend", "gap"]


def test_nulls_are_reported_unless_nullable() -> None:
    encoded = SCHEMA.encode(batch_of(spend=[math.nan], gap=[math.nan], country=[None], channel=[None]), NOW)

    assert marked(encoded, "defaulted") == ["spend", "channel"]
    assert marked(encoded, "stale") == []


def test_stale_is_used_or_not_as_declared_and_never_called_defaulted() -> None:
    encoded = SCHEMA.encode(batch_of(age_s=DAY_S + 1), NOW)

    assert marked(encoded, "stale") == ["spend", "gap", "channel"]
    assert marked(encoded, "defaulted") == []
    assert encoded.numeric[0, 0] == 12.5
    assert math.isnan(encoded.numeric[0, 1])
    assert encoded.categorical.tolist() == [[2, MISSING]]


def test_a_value_is_fresh_up_to_its_max_age() -> None:
    assert marked(SCHEMA.encode(batch_of(age_s=DAY_S), NOW), "stale") == []


def test_what_cannot_be_read_is_reported_nullable_or_not() -> None:
    batch = replace(batch_of(gap=[math.nan], country=[None]), corrupt=frozenset({(0, "gap"), (0, "country")}))

    assert marked(SCHEMA.encode(batch, NOW), "defaulted") == ["country", "gap"]


def test_without_rows_of_any_view_an_entity_is_unknown() -> None:
    batch = batch_of(spend=[1.0, 1.0])
    batch.event_times[0] = np.nan
    batch.event_times[1, 0] = np.nan
    encoded = SCHEMA.encode(batch, NOW)

    assert encoded.unknown.tolist() == [True, False]
    assert math.isnan(encoded.age_s[0])
    assert encoded.age_s[1] == 60


def test_no_rows_encode_to_no_rows() -> None:
    encoded = SCHEMA.encode(SCHEMA.batch({field: [] for field in FULL}, np.empty((0, 2))), NOW)

    assert len(encoded) == 0
    assert encoded.numeric.shape == (0, 4)
    assert encoded.defaulted.shape == (0, 6)


def test_overrides_replace_values_and_their_reports() -> None:
    overrides: list[dict[str, Any]] = [{"spend": 3, "country": "Eire", "silent_days": None, "channel": "fax"}]
    encoded = SCHEMA.encode(batch_of(age_s=2 * DAY_S, country=[None]), NOW, overrides)

    assert SCHEMA.decode_row(encoded, 0) | {"season_sin": 0.0} == {
        "country": "Eire", "spend": 3.0, "gap": None, "silent_days": None, "season_sin": 0.0, "channel": "(unseen)",
    }  # fmt: skip
    assert marked(encoded, "overridden") == ["country", "spend", "silent_days", "channel"]
    assert marked(encoded, "stale") == ["gap"]
    assert marked(encoded, "defaulted") == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("secret", 1.0, "not a feature"),
        ("spend", "secret", "spend takes a number"),
        ("spend", True, "spend takes a number"),
        ("spend", math.nan, "spend does not fit"),
        ("spend", math.inf, "spend does not fit"),
        ("spend", 1e39, "spend does not fit"),
        ("spend", 10**400, "spend does not fit"),
        ("country", 1.0, "country takes a string"),
        ("country", False, "country takes a string"),
    ],
)
def test_overrides_that_cannot_be_are_refused_by_row(name: str, value: Any, says: str) -> None:
    overrides: list[dict[str, Any]] = [{}, {name: value}]
    for refuse in (
        lambda: SCHEMA.check_overrides(overrides),
        lambda: SCHEMA.encode(batch_of(spend=[1.0, 2.0]), NOW, overrides),
    ):
        with pytest.raises(OverrideError, match=says) as caught:
            refuse()
        assert caught.value.row == 1
        assert "secret" not in str(caught.value)


def test_a_slice_of_a_batch_is_what_its_rows_give_alone() -> None:
    encoded = SCHEMA.encode(batch_of(spend=[1.0, 2.0, 3.0]), NOW)
    alone = SCHEMA.encode(batch_of(spend=[2.0]), NOW)

    assert len(encoded.rows(slice(1, 2))) == 1
    np.testing.assert_array_equal(encoded.rows(slice(1, 2)).numeric, alone.numeric)


def test_encoding_changes_no_stored_value() -> None:
    batch = batch_of(age_s=2 * DAY_S)
    before = batch.numbers.copy()
    SCHEMA.encode(batch, NOW, [{"spend": 1.0}])

    np.testing.assert_array_equal(batch.numbers, before)


def test_a_schema_survives_json_and_its_digest_says_what_it_says() -> None:
    same = msgspec.json.decode(msgspec.json.encode(SCHEMA), type=FeatureSchema)
    reordered = replace(SCHEMA, groups=dict(reversed(GROUPS.items())))

    assert same == SCHEMA
    assert same.digest == SCHEMA.digest
    assert list(same.groups) == list(GROUPS)
    changed = [replace(SCHEMA, project="other"), replace(SCHEMA, features=SCHEMA.features[::-1]), reordered]
    assert len({SCHEMA.digest, *(schema.digest for schema in changed)}) == 4


def test_vocabularies_are_for_categories_only() -> None:
    assert SCHEMA.with_vocabularies({"channel": ["app"]}).by_name["channel"].vocabulary == ("app",)
    assert SCHEMA.with_vocabularies({"channel": ["app"]}).by_name["country"].vocabulary == ("France", "Eire")
    with pytest.raises(SchemaError, match="not categories: spend"):
        SCHEMA.with_vocabularies({"spend": ["1"]})


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        (Feature("spend", "calendar", "when", ""), "declared twice: spend"),
        (Feature("x", "numeric", "nowhere", "", default=0.0), "x: group 'nowhere'"),
        (Feature("moon_phase", "calendar", "when", ""), "moon_phase: calendar features are"),
        (Feature("x", "numeric", "when", "", view="orders", dtype="int64", default=0.0), "x: a stored feature needs"),
        (Feature("x", "numeric", "when", "", "", "orders", "x", "int64"), "x: a number that may not be null"),
    ],
)
def test_declarations_that_cannot_be_served_are_refused_by_name(feature: Feature, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        replace(SCHEMA, features=(*SCHEMA.features, feature))
