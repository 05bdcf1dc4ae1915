"""Predict and explain over HTTP, against real Redis and a really trained release."""

import asyncio
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import requests
from redis import Redis

from feature_client.contract import ATOL, RTOL
from feature_client.golden import Tensors
from feature_client.release import Release
from service import predictor, turns
from service.backends.embedded import EmbeddedBackend
from tests.feast_layout import field_of, key_of, store
from tests.service.conftest import DAY_S, NOW, Start, rows_of


def predict(url: str, *customers: str, **more: object) -> dict:  # type: ignore[type-arg]
    body = {"entities": [{"customer_id": customer} for customer in customers], **more}
    response = requests.post(f"{url}/v1/predict", json=body, timeout=10)
    assert response.status_code == 200, response.text
    return response.json()  # type: ignore[no-any-return]


def explain(url: str, *customers: str, **more: object) -> dict:  # type: ignore[type-arg]
    body = {"entities": [{"customer_id": customer} for customer in customers], **more}
    response = requests.post(f"{url}/v1/explain", json=body, timeout=10)
    assert response.status_code == 200, response.text
    return response.json()  # type: ignore[no-any-return]


def close(a: float, b: float) -> bool:
    return abs(a - b) <= ATOL + RTOL * abs(b)


def test_a_known_customer_is_ok_with_scores_of_every_task(url: str, customers: list[str], release: Release) -> None:
    answer = predict(url, "c1")

    [prediction] = answer["predictions"]
    assert answer["model"] == "engagement"
    assert answer["as_of"] == "2026-06-01T00:00:00Z"
    assert prediction["entity"] == {"customer_id": "c1"}
    assert prediction["version"] == release.version
    assert prediction["status"] == "ok"
    assert set(prediction["scores"]) == {"purchase_30d", "churn_90d", "spend_90d"}
    assert 0 < prediction["scores"]["purchase_30d"] < 1
    assert prediction["features"] == {"age_s": 600.0, "defaulted": [], "stale": [], "overridden": []}
    assert prediction["segments"]["churn_90d"] in {"low", "medium", "high"}


def test_answers_keep_the_order_of_the_question_and_duplicates_are_equal(url: str, customers: list[str]) -> None:
    asked = ["c2", "nobody", "c1", "c2"]
    answer = predict(url, *asked)

    assert [prediction["entity"]["customer_id"] for prediction in answer["predictions"]] == asked
    first, _, other, again = answer["predictions"]
    assert first == again
    assert first["scores"] != other["scores"]


def test_unknown_customers_are_scored_from_defaults_and_say_so(url: str, customers: list[str]) -> None:
    [prediction] = predict(url, "nobody")["predictions"]

    assert prediction["status"] == "unknown_entity"
    assert 0 < prediction["scores"]["purchase_30d"] < 1
    assert prediction["features"]["age_s"] is None


def test_a_route_may_reject_unknown_customers(
    start: Start, customers: list[str], release: Release, tmp_path: Path
) -> None:
    shutil.copytree(release.root, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "routes.toml").open("a") as routes:
        routes.write('unknown = "reject"\n')

    known, unknown = predict(start(models=tmp_path), "c1", "nobody")["predictions"]

    assert known["scores"]
    assert unknown["status"] == "unknown_entity"
    assert unknown["scores"] is None


def test_a_task_that_is_not_defined_for_a_customer_has_no_score(url: str, customers: list[str]) -> None:
    [prediction] = predict(url, "c3")["predictions"]

    assert prediction["scores"]["churn_90d"] is None
    assert prediction["not_applicable"] == ["churn_90d"]
    assert prediction["scores"]["purchase_30d"] is not None
    assert "churn_90d" not in prediction["segments"]


def test_a_missing_value_is_defaulted_and_a_nullable_one_is_not(url: str, redis: "Redis", release: Release) -> None:
    rows = rows_of("gaps")
    rows["orders"][1]["spend_90d"] = None
    rows["lifetime"][1]["mean_gap_days"] = None
    store(redis, release.contract.schema, "gaps", rows)

    [prediction] = predict(url, "gaps")["predictions"]

    assert prediction["status"] == "degraded"
    assert prediction["features"]["defaulted"] == ["spend_90d"]


def test_stale_rows_are_listed_and_aged(url: str, redis: "Redis", release: Release) -> None:
    rows = rows_of("stale")
    rows["orders"] = (NOW - 40 * DAY_S, rows["orders"][1])
    store(redis, release.contract.schema, "stale", rows)

    [prediction] = predict(url, "stale")["predictions"]

    assert prediction["status"] == "degraded"
    assert "orders_30d" in prediction["features"]["stale"]
    assert prediction["features"]["age_s"] == 40 * DAY_S


def test_an_unreadable_value_never_becomes_a_score(
    url: str, redis: "Redis", customers: list[str], release: Release
) -> None:
    redis.hset(key_of(release.contract.schema, "c1"), field_of("orders", "spend_90d"), b"\x29\x01\x02")  # type: ignore[arg-type]
    [broken] = predict(url, "c1")["predictions"]
    redis.hset(key_of(release.contract.schema, "c1"), field_of("orders", "spend_90d"), b"")  # type: ignore[arg-type]
    [null] = predict(url, "c1")["predictions"]

    assert broken == null
    assert broken["features"]["defaulted"] == ["spend_90d"]


def test_a_row_of_somebody_else_is_refused(url: str, redis: "Redis", customers: list[str], release: Release) -> None:
    schema = release.contract.schema
    redis.copy(key_of(schema, "c1"), key_of(schema, "c9"))  # type: ignore[arg-type]
    body = {"entities": [{"customer_id": "c9"}]}

    response = requests.post(f"{url}/v1/predict", json=body, timeout=10)

    assert response.status_code == 503
    assert response.json()["code"] == "feature_store_unavailable"


@pytest.mark.parametrize("damage", ["foreign", "type"])
def test_a_bad_row_refuses_its_own_request_and_no_neighbour(
    url: str, redis: "Redis", customers: list[str], release: Release, damage: str
) -> None:
    schema = release.contract.schema
    if damage == "foreign":
        redis.copy(key_of(schema, "c1"), key_of(schema, "bad"))  # type: ignore[arg-type]
    else:
        redis.set(key_of(schema, "bad"), "a string")

    def ask(customer: str) -> int:
        body = {"entities": [{"customer_id": customer}]}
        return requests.post(f"{url}/v1/predict", json=body, timeout=10).status_code

    asked = ["c1", "bad", "c2", "c3"] * 50
    with ThreadPoolExecutor(8) as pool:
        answered = list(zip(asked, pool.map(ask, asked), strict=True))

    assert {status for customer, status in answered if customer == "bad"} == {503}
    assert {status for customer, status in answered if customer != "bad"} == {200}


def test_request_time_values_replace_stored_ones(url: str, customers: list[str]) -> None:
    [stored] = predict(url, "c1")["predictions"]
    [changed] = predict(url, "c1", features=[{"country": "Germany", "days_since_purchase": 90}])["predictions"]

    assert changed["features"]["overridden"] == ["days_since_purchase", "country"]
    assert changed["scores"]["purchase_30d"] < stored["scores"]["purchase_30d"]
    assert changed["status"] == "ok"


def test_one_object_of_values_serves_all_entities(url: str, customers: list[str]) -> None:
    one = predict(url, "c1", "c2", features={"spend_90d": 5.0})["predictions"]
    each = predict(url, "c1", "c2", features=[{"spend_90d": 5.0}, {"spend_90d": 5}])["predictions"]

    assert one == each


def test_recency_counts_to_as_of_not_to_the_materialization(url: str, redis: "Redis", customers: list[str]) -> None:
    reasons = explain(url, "c1", tasks=["purchase_30d"])["predictions"][0]["explanations"]["purchase_30d"]["reasons"]

    [recency] = [reason for reason in reasons if reason["group"] == "recency"]
    assert recency["features"]["days_since_purchase"] == pytest.approx(3.0)


@pytest.mark.parametrize("customer", ["c1", "c2", "nobody"])
def test_base_plus_contributions_is_the_score_of_predict(url: str, customers: list[str], customer: str) -> None:
    [predicted] = predict(url, customer)["predictions"]
    [explained] = explain(url, customer)["predictions"]

    assert set(explained["explanations"]) == {"purchase_30d", "churn_90d", "spend_90d"}
    for task, explanation in explained["explanations"].items():
        if explanation is None:
            assert task in explained["not_applicable"]
            continue
        total = explanation["base"] + sum(reason["contribution"] for reason in explanation["reasons"])
        scale = abs(explanation["base"]) + sum(abs(reason["contribution"]) for reason in explanation["reasons"])
        assert abs(total - explanation["score"]) <= ATOL + RTOL * scale
        assert explanation["gap"] == pytest.approx(abs(total - explanation["score"]), abs=1e-9)
        assert explanation["score"] == explained["scores"][task]
        assert close(explanation["score"], predicted["scores"][task])
        assert {reason["direction"] for reason in explanation["reasons"]} <= {"raises", "lowers", "none"}


def test_top_keeps_the_largest_reasons_and_the_sum(url: str, customers: list[str]) -> None:
    everything = explain(url, "c1", tasks=["spend_90d"])["predictions"][0]["explanations"]["spend_90d"]
    short = explain(url, "c1", tasks=["spend_90d"], top=2)["predictions"][0]["explanations"]["spend_90d"]

    assert short["reasons"][:2] == everything["reasons"][:2]
    assert [reason["group"] for reason in short["reasons"][2:]] == ["other"]
    sums = [sum(reason["contribution"] for reason in e["reasons"]) for e in (short, everything)]
    assert close(sums[0], sums[1])


def test_predict_gives_reasons_on_request(url: str, customers: list[str]) -> None:
    [prediction] = predict(url, "c1", explain=1)["predictions"]

    assert len(prediction["explanations"]["churn_90d"]["reasons"]) == 2  # the largest, and the rest
    assert prediction["explanations"]["churn_90d"]["score"] == prediction["scores"]["churn_90d"]


class SlowExplanations(EmbeddedBackend):
    """Takes its time for reasons, and not for scores."""

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        if ".explain" in name and len(tensors["numeric"]) > 1:  # not the rows at load
            await asyncio.sleep(0.5)
        return await super().infer(name, tensors, timeout_s)


def test_reasons_are_shed_before_scores(start: Start, customers: list[str]) -> None:
    url = start(SlowExplanations(), max_inflight_explain_rows=64)
    plain = predict(url, "c1")["predictions"][0]["scores"]
    # Three requests of 32 in one tick leave one without reasons.
    body = {"entities": [{"customer_id": "c1"}] * 32, "explain": 2}

    def ask(_: int) -> dict:  # type: ignore[type-arg]
        return requests.post(f"{url}/v1/predict", json=body, timeout=30).json()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))

    shed = [answer for answer in answers if answer["predictions"][0]["explanations"] is None]
    assert shed
    assert len(shed) < len(answers)
    for answer in answers:
        for prediction in answer["predictions"]:
            assert all(close(prediction["scores"][task], plain[task]) for task in plain)


def test_without_the_time_for_reasons_beside_predictions_the_scores_still_come(
    start: Start, customers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = predictor._explain

    def slowly(*arguments: Any) -> None:
        ends = time.thread_time() + 0.02
        while time.thread_time() < ends:
            pass
        write(*arguments)

    monkeypatch.setattr(predictor, "_explain", slowly)
    monkeypatch.setattr(predictor, "LATELY_S", 600.0)
    monkeypatch.setattr(turns, "LONGEST_REST_S", 600.0)
    url = start()
    plain = predict(url, "c1")["predictions"][0]["scores"]
    body = {"entities": [{"customer_id": "c1"}] * 16, "explain": 2}

    response = requests.post(f"{url}/v1/predict", json=body, headers={"X-Deadline-Ms": "3000"}, timeout=30)

    assert response.status_code == 200
    for prediction in response.json()["predictions"]:
        assert prediction["explanations"] is None
        assert all(close(prediction["scores"][task], plain[task]) for task in plain)


def test_http_objects_and_onnx_give_the_same_scores(url: str, customers: list[str], release: Release) -> None:
    """The rest of the chain, to torch's own forward, is in tests/e2e."""
    answer = requests.post(f"{url}/v1/explain", json={"entities": [{"customer_id": "c1"}]}, timeout=10).json()[
        "predictions"
    ][0]
    inputs = {
        name: value
        for reason in answer["explanations"]["purchase_30d"]["reasons"]
        for name, value in reason["features"].items()
    }
    schema = release.contract.schema
    assert set(inputs) == {feature.name for feature in schema.features}
    numeric = np.array([[inputs[f.name] for f in schema.numeric]], dtype=np.float32)
    words = [f.vocabulary.index(inputs[f.name]) + 2 for f in schema.categorical]
    session = ort.InferenceSession(str(release.directory / "1" / "model.onnx"))
    [scores] = session.run(["scores"], {"numeric": numeric, "categorical": np.array([words], dtype=np.int64)})

    assert all(close(answer["scores"][t], s) for t, s in zip(release.contract.task_names, scores[0], strict=True))


def test_models_says_what_is_served(url: str, release: Release) -> None:

    assert requests.get(f"{url}/v1/models", timeout=5).json() == {
        "models": [
            {
                "model": "engagement",
                "champion": release.version,
                "canary": None,
                "shadow": [],
                "versions": [release.version],
                "tasks": ["purchase_30d", "churn_90d", "spend_90d"],
            }
        ]
    }
    model = requests.get(f"{url}/v1/models/engagement", timeout=5).json()
    assert model["contract"] == json.loads(release.contract.to_json())
    assert "purchase_30d" in model["card"]
    assert model["route"]["champion"] == int(release.version)


def test_a_version_may_be_asked_for(url: str, customers: list[str], release: Release) -> None:
    [prediction] = predict(url, "c1", version=release.version)["predictions"]

    assert prediction["version"] == release.version
