"""A canary answers its share of the customers: always the same ones, and each of them from one release alone."""

import json
import shutil
from pathlib import Path

import pytest
import requests
from redis import Redis

from feature_client.contract import RTOL
from feature_client.release import Release
from tests.feast_layout import store
from tests.service.conftest import Start, rows_of
from tests.service.test_operations import until
from tests.service.test_predict import close, explain, predict

CROWD = [f"crowd-{number}" for number in range(40)]


def write_routes(root: Path, text: str) -> None:
    staged = root / "routes.toml.new"
    staged.write_text(text)
    staged.replace(root / "routes.toml")


def canary(percent: int, **more: str) -> str:
    lines = [f"{name} = {value!r}" for name, value in more.items()]
    return "\n".join(["[engagement]", "champion = 1", f"canary = {{version = 2, percent = {percent}}}", *lines])


@pytest.fixture
def models(two_releases: Release, tmp_path: Path) -> Path:
    """Version 1 is the champion, and version 2 answers half of the customers."""
    shutil.copytree(two_releases.root, tmp_path, dirs_exist_ok=True)
    write_routes(tmp_path, canary(50))
    return tmp_path


def versions(answer: dict) -> dict[str, str]:  # type: ignore[type-arg]
    return {one["entity"]["customer_id"]: one["version"] for one in answer["predictions"]}


def test_a_customer_stays_in_one_arm_whoever_asks_and_however(start: Start, customers: list[str], models: Path) -> None:
    url = start(models=models)
    together = versions(predict(url, *CROWD))
    alone = {customer: versions(predict(url, customer))[customer] for customer in CROWD}
    explained = versions(explain(url, *CROWD[:32]))
    with_reasons = versions(predict(url, *CROWD[:32], explain=2))
    restarted = versions(predict(start(models=models), *reversed(CROWD)))

    assert set(together.values()) == {"1", "2"}
    assert together == alone == restarted
    assert explained == with_reasons == {customer: together[customer] for customer in CROWD[:32]}


def test_answers_of_two_arms_keep_the_order_of_the_question(start: Start, customers: list[str], models: Path) -> None:
    url = start(models=models)
    asked = [*CROWD, "c1", *CROWD[:5], "c2", "c1"]
    answer = predict(url, *asked)

    assert [one["entity"]["customer_id"] for one in answer["predictions"]] == asked
    for one in answer["predictions"]:
        [alone] = predict(url, one["entity"]["customer_id"], version=one["version"])["predictions"]
        assert one["status"] == alone["status"]
        assert all(close(one["scores"][task], score) for task, score in alone["scores"].items() if score is not None)


def test_reasons_are_of_the_release_that_scored(start: Start, customers: list[str], models: Path) -> None:
    url = start(models=models)
    for one in explain(url, *CROWD[:16], "c1", "c2")["predictions"]:
        for task, why in one["explanations"].items():
            if why is not None:
                assert close(why["score"], one["scores"][task])
                parts = [why["base"], *(reason["contribution"] for reason in why["reasons"])]
                # Of the size of what is split up: float32 resolves no part below the rounding of its whole.
                assert sum(parts) == pytest.approx(why["score"], abs=2 * RTOL * sum(map(abs, parts)))


def test_a_version_that_is_asked_for_answers_everybody(start: Start, customers: list[str], models: Path) -> None:
    url = start(models=models)

    assert set(versions(predict(url, *CROWD, version="1")).values()) == {"1"}
    assert set(versions(predict(url, *CROWD, version="2")).values()) == {"2"}


def test_a_share_is_changed_and_ended_without_a_restart(start: Start, customers: list[str], models: Path) -> None:
    url = start(models=models)
    half = {customer for customer, version in versions(predict(url, *CROWD)).items() if version == "2"}

    write_routes(models, canary(80))
    until(lambda: len({c for c, v in versions(predict(url, *CROWD)).items() if v == "2"}) > len(half), "never grew")
    most = {customer for customer, version in versions(predict(url, *CROWD)).items() if version == "2"}
    assert half < most
    write_routes(models, canary(50, salt="another"))
    until(lambda: len({c for c, v in versions(predict(url, *CROWD)).items() if v == "2"}) < len(most), "never dealt")
    assert {c for c, v in versions(predict(url, *CROWD)).items() if v == "2"} != half
    write_routes(models, "[engagement]\nchampion = 1\n")
    until(lambda: set(versions(predict(url, *CROWD)).values()) == {"1"}, "never ended")


def test_a_mistake_names_its_place_in_the_request_not_in_the_arm(
    start: Start, customers: list[str], models: Path
) -> None:
    url = start(models=models)
    entities = [{"customer_id": customer} for customer in CROWD]
    for position in (0, 7, 39):
        wrong = [*entities[:position], {"shop": "x"}, *entities[position + 1 :]]
        answer = requests.post(f"{url}/v1/predict", json={"entities": wrong}, timeout=5)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_entity")
        assert answer.json()["detail"].startswith(f"entities[{position}]:")
        features = [{"country": 1.5} if row == position else {} for row in range(len(CROWD))]
        answer = requests.post(f"{url}/v1/predict", json={"entities": entities, "features": features}, timeout=5)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_feature")
        assert answer.json()["detail"].startswith(f"features[{position}]:")


def test_request_time_values_reach_their_own_customer(start: Start, customers: list[str], models: Path) -> None:
    url = start(models=models)
    features = [{"orders_90d": float(row)} for row in range(len(CROWD))]
    answer = predict(url, *CROWD, features=features)

    for row, one in enumerate(answer["predictions"]):
        [alone] = predict(url, CROWD[row], features=features[row])["predictions"]
        assert one["features"]["overridden"] == ["orders_90d"]
        assert close(one["scores"]["purchase_30d"], alone["scores"]["purchase_30d"])


def test_a_canary_that_cannot_be_loaded_leaves_its_customers_to_the_champion(
    start: Start, customers: list[str], models: Path
) -> None:
    (models / "engagement.2" / "golden.npz").write_bytes(b"PK not quite")
    url = start(models=models)

    assert set(versions(predict(url, *CROWD)).values()) == {"1"}
    assert requests.get(f"{url}/readyz", timeout=5).json()["last_reload"] == "failed"


def test_an_id_that_no_hash_can_take_is_refused_not_a_defect(start: Start, customers: list[str], models: Path) -> None:
    url = start(models=models)
    body = b'{"entities": [{"customer_id": "a"}, {"customer_id": ""}]}'
    answer = requests.post(f"{url}/v1/predict", data=body, headers={"Content-Type": "application/json"}, timeout=5)
    assert (answer.status_code, answer.json()["detail"][:12]) == (422, "entities[1]:")


def test_rows_of_both_arms_are_the_customers_own(start: Start, redis: "Redis", models: Path, release: Release) -> None:
    """What one arm read is never the other's: 40 customers, each with a number of orders of their own."""
    for number, customer in enumerate(CROWD):
        rows = rows_of(customer)
        rows["orders"][1]["orders_90d"] = float(number)
        store(redis, release.contract.schema, customer, rows)
    url = start(models=models)
    for one in explain(url, *CROWD[:32], tasks=["purchase_30d"])["predictions"]:
        values = {
            name: value
            for reason in one["explanations"]["purchase_30d"]["reasons"]
            for name, value in reason["features"].items()
        }
        assert values["orders_90d"] == float(CROWD.index(one["entity"]["customer_id"]))


def test_the_contract_of_either_release_can_be_asked_for(
    start: Start, customers: list[str], models: Path, release: Release, two_releases: Release
) -> None:
    url = start(models=models)

    def contract(version: str | None) -> object:
        return requests.get(f"{url}/v1/models/engagement", params={"version": version}, timeout=5).json()["contract"]

    first, second = (json.loads(one.contract.to_json()) for one in (release, two_releases))
    assert [contract(None), contract("1"), contract("2")] == [first, first, second]
    assert requests.get(f"{url}/v1/models/engagement?version=9", timeout=5).status_code == 404
