"""What the store holds, over HTTP: the values of a prediction, each with where it comes from and how good it is."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from redis import Redis

from feature_client.clock import to_iso
from feature_client.online.memory import MemoryReader
from feature_client.release import Release
from service.auth import add_key
from service.features_protocol import FeatureState
from tests.feast_layout import field_of, key_of, store
from tests.service.conftest import DAY_S, NOW, Start, rows_of
from tests.service.test_canary import CROWD, canary, write_routes
from tests.service.test_errors import CANNOT_BE, GOOD, INVALID_ENTITIES, INVALID_FEATURES, JSON, NOT_JSON, check
from tests.service.test_operations import total, until
from tests.service.test_predict import explain, predict

Answer = dict[str, Any]


def post(url: str, body: object, **headers: str) -> requests.Response:
    return requests.post(f"{url}/v1/features", data=json.dumps(body), headers={**JSON, **headers}, timeout=30)


def features(url: str, *customers: str, **more: object) -> list[Answer]:
    response = post(url, {"entities": [{"customer_id": customer} for customer in customers], **more})
    assert response.status_code == 200, response.text
    answer: Answer = response.json()
    assert answer["model"] == "engagement"
    assert answer["request_id"] == response.headers["x-request-id"]
    return list(answer["entities"])


def listed(entity: Answer, *statuses: str) -> list[str]:
    return [name for name, state in entity["features"].items() if state["status"] in statuses]


def test_every_feature_has_its_value_what_is_stored_and_how_old_it_is(url: str, release: Release) -> None:
    [entity] = features(url, "c1")

    report = {key: value for key, value in entity.items() if key != "features"}
    assert report == {
        "entity": {"customer_id": "c1"},
        "version": release.version,
        "status": "ok",
        "as_of": "2026-06-01T00:00:00Z",
        "age_s": 600.0,
        "defaulted": [],
        "stale": [],
        "overridden": [],
    }
    assert list(entity["features"]) == [feature.name for feature in release.contract.schema.features]
    row = {"status": "ok", "computed_at": to_iso(NOW - 600), "age_s": 600.0}
    assert entity["features"]["orders_90d"] == {"value": 4.0, "stored": 4.0, **row}
    assert entity["features"]["country"] == {"value": "United Kingdom", "stored": "United Kingdom", **row}
    assert entity["features"]["days_since_purchase"] == {"value": 3.0, "stored": "2026-05-29T00:00:00Z", **row}
    season = entity["features"]["season_sin"]
    assert season == {"value": season["value"], "status": "ok", "computed_at": None, "age_s": None}
    assert season["value"] == np.float32(np.sin(2 * np.pi * NOW / (365.2425 * DAY_S)))


def test_values_and_states_are_those_of_a_prediction(url: str, redis: "Redis", release: Release) -> None:
    """Whatever may be wrong with a row: explain names the model's inputs, predict what is wrong with them."""
    schema = release.contract.schema
    gaps, old, new, alone = (rows_of(name) for name in ("gaps", "old", "new", "alone"))
    gaps["orders"][1]["spend_90d"] = gaps["lifetime"][1]["mean_gap_days"] = None
    gaps["lifetime"][1]["country"] = "Atlantis"
    old["orders"] = (NOW - 40 * DAY_S, old["orders"][1])
    new["lifetime"][1]["last_purchase_at"] = NOW + DAY_S
    for name, rows in {"gaps": gaps, "old": old, "new": new, "alone": {"orders": alone["orders"]}}.items():
        store(redis, schema, name, rows)
    store(redis, schema, "broken", rows_of("broken"))
    redis.hset(key_of(schema, "broken"), field_of("orders", "spend_90d"), b"\x29\x01\x02")  # type: ignore[arg-type]
    asked = ["c1", "gaps", "old", "new", "alone", "broken", "nobody"]
    values = [{"spend_365d": 7.5, "country": None} if name == "c1" else {} for name in asked]

    found = features(url, *asked, features=values)
    predicted = predict(url, *asked, features=values)["predictions"]
    explained = explain(url, *asked, features=values, tasks=["purchase_30d"])["predictions"]

    for entity, prediction, explanation in zip(found, predicted, explained, strict=True):
        assert (entity["entity"], entity["status"]) == (prediction["entity"], prediction["status"])
        assert {name: entity[name] for name in prediction["features"]} == prediction["features"]
        inputs = {
            name: value
            for reason in explanation["explanations"]["purchase_30d"]["reasons"]
            for name, value in reason["features"].items()
        }
        assert {name: state["value"] for name, state in entity["features"].items()} == inputs
        assert listed(entity, "overridden") == entity["overridden"]
        assert listed(entity, "stale") == entity["stale"]
        if entity["status"] != "unknown_entity":
            assert listed(entity, "missing", "defaulted") == entity["defaulted"]

    by_name = {entity["entity"]["customer_id"]: entity["features"] for entity in found}
    assert (by_name["c1"]["spend_365d"]["value"], by_name["c1"]["spend_365d"]["stored"]) == (7.5, 480.25)
    assert (by_name["gaps"]["country"]["value"], by_name["gaps"]["country"]["stored"]) == ("(unseen)", "Atlantis")
    assert (by_name["gaps"]["spend_90d"]["value"], by_name["gaps"]["spend_90d"]["status"]) == (None, "defaulted")
    assert by_name["gaps"]["mean_gap_days"]["status"] == "null"
    assert by_name["old"]["orders_90d"]["age_s"] == 40 * DAY_S
    assert by_name["new"]["days_since_purchase"]["status"] == "defaulted"
    assert by_name["new"]["days_since_purchase"]["stored"] == to_iso(NOW + DAY_S)
    assert by_name["broken"]["spend_90d"]["stored"] is None
    stored = [feature.name for feature in release.contract.schema.features if feature.view is not None]
    assert [name for name, state in by_name["nobody"].items() if state["status"] == "missing"] == stored


def test_an_instant_that_no_calendar_has_is_shown_in_seconds(url: str, redis: "Redis", release: Release) -> None:
    rows = rows_of("far")
    rows["lifetime"][1]["last_purchase_at"] = 1 << 60
    store(redis, release.contract.schema, "far", rows)

    [entity] = features(url, "far")

    assert entity["features"]["days_since_purchase"]["stored"] == float(1 << 60)
    assert entity["features"]["days_since_purchase"]["status"] == "defaulted"


def test_a_thousand_entities_keep_their_order_and_one_more_is_refused(
    start: Start, redis: "Redis", release: Release
) -> None:
    names = [f"many-{number}" for number in range(1_000)]
    for number, name in enumerate(names):
        rows = rows_of(name)
        rows["orders"][1]["orders_365d"] = float(number)
        store(redis, release.contract.schema, name, rows)
    url = start()

    found = features(url, *reversed(names))

    assert [entity["features"]["orders_365d"]["value"] for entity in found] == list(range(999, -1, -1))
    check(post(url, {"entities": [{"customer_id": "c1"}] * 1_001}), 422, "invalid_request")
    assert total(url, "rapport_inflight") == 0


def test_a_customer_is_looked_up_for_the_arm_that_scores_it(
    start: Start, customers: list[str], two_releases: Release, tmp_path: Path
) -> None:
    shutil.copytree(two_releases.root, tmp_path, dirs_exist_ok=True)
    write_routes(tmp_path, canary(50))
    url = start(models=tmp_path)

    found = features(url, *CROWD, "c1")
    predicted = predict(url, *CROWD, "c1")["predictions"]

    assert {entity["version"] for entity in found} == {"1", "2"}
    assert [(e["entity"], e["version"]) for e in found] == [(p["entity"], p["version"]) for p in predicted]
    assert {entity["version"] for entity in features(url, *CROWD, version="2")} == {"2"}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_400(url: str, body: bytes) -> None:
    check(requests.post(f"{url}/v1/features", data=body, headers=JSON, timeout=10), 400, "invalid_json")


def test_what_cannot_be_a_look_up_is_refused_by_name(url: str) -> None:
    for body in [*CANNOT_BE.values(), {**GOOD, "explain": 1}, {**GOOD, "features": [{}, {}]}]:
        check(post(url, body), 422, "invalid_request")
    for entity in INVALID_ENTITIES.values():
        problem = check(post(url, {"entities": [{"customer_id": "c1"}, entity]}), 422, "invalid_entity")
        assert str(problem["detail"]).startswith("entities[1]")
    for values in INVALID_FEATURES.values():
        problem = check(post(url, {**GOOD, "features": [values]}), 422, "invalid_feature")
        assert str(problem["detail"]).startswith("features[0]")
    check(post(url, {**GOOD, "model": "nothing"}), 404, "unknown_model")
    check(post(url, {**GOOD, "version": "9"}), 404, "unknown_model")
    check(post(url, GOOD, **{"X-Deadline-Ms": "0"}), 422, "invalid_request")
    refused = requests.get(f"{url}/v1/features", timeout=10)
    check(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"


def test_keys_scopes_and_quotas_are_those_of_predict(start: Start, customers: list[str], keys_file: Path) -> None:
    predicts, explains = (add_key(keys_file, scope, (scope,)) for scope in ("predict", "explain"))
    slow = add_key(keys_file, "slow", ("predict",), rate=0.01)
    url = start(keys_file=keys_file)

    def asked(token: str) -> requests.Response:
        return post(url, GOOD, Authorization=f"Bearer {token}")

    assert asked(predicts).status_code == 200
    check(post(url, GOOD), 401, "unauthenticated")
    check(asked(explains), 403, "forbidden")
    assert asked(slow).status_code == 200
    check(asked(slow), 429, "quota_exceeded")


def test_somebody_elses_row_is_refused_and_no_neighbour_with_it(
    url: str, redis: "Redis", customers: list[str], release: Release
) -> None:
    schema = release.contract.schema
    redis.copy(key_of(schema, "c1"), key_of(schema, "c9"))  # type: ignore[arg-type]

    with ThreadPoolExecutor(8) as pool:
        asked = ["c1", "c9", "c2"] * 20
        answers = list(pool.map(lambda customer: post(url, {"entities": [{"customer_id": customer}]}), asked))

    for customer, answer in zip(asked, answers, strict=True):
        if customer == "c9":
            check(answer, 503, "feature_store_unavailable")
        else:
            assert answer.json()["entities"][0]["entity"]["customer_id"] == customer


def test_a_store_that_is_down_or_too_slow_is_said_so(start: Start) -> None:
    check(post(start(reader=MemoryReader({}, failure="down"), ready=False), GOOD), 503, "not_ready")


def test_look_ups_have_a_lane_of_their_own_and_are_no_predictions(start: Start) -> None:
    reader = MemoryReader({"c1": {}}, delay_s=0.2)
    url = start(reader=reader, max_inflight_lookup_rows=1_000)
    crowd = {"entities": [{"customer_id": "c1"}] * 600}

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, url, crowd)
        until(lambda: total(url, "rapport_inflight", lane="features") == 600, "never admitted")
        check(post(url, crowd), 503, "overloaded")
        assert predict(url, "c1")["predictions"][0]["status"] == "unknown_entity"
        assert first.result().status_code == 200

    check(post(url, GOOD, **{"X-Deadline-Ms": "100"}), 504, "deadline_exceeded")
    assert total(url, "rapport_inflight") == 0
    assert total(url, "rapport_shed_total", lane="features") == 1
    assert total(url, "rapport_predictions_total") == 1
    assert total(url, "rapport_requests_total", route="/v1/features", model="engagement", code="200") == 1
    assert total(url, "rapport_batch_rows_sum", stage="features") >= 600


def test_the_document_says_what_is_asked_and_answered(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()

    operation = document["paths"]["/v1/features"]["post"]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("FeaturesResponse")
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert post(url, example).status_code == 200
    fields = set(document["components"]["schemas"]["FeatureState"]["properties"])
    assert fields == set(FeatureState.__struct_fields__)
