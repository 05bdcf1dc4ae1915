"""Explanations as a request wants them: by which explainer, in which unit, in how much detail, before and after."""

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from feature_client.contract import ATOL, RTOL
from feature_client.release import Release, graph_file
from model_export.verify import Session
from service.explainers import Pace
from tests.service.conftest import NOW, Start, rows_of
from tests.service.test_canary import CROWD, canary, write_routes
from tests.service.test_predict import close, explain, predict

Explanation = Mapping[str, Any]


def of_task(url: str, task: str, **asked: object) -> Explanation:
    found: Explanation = explain(url, "c1", tasks=[task], **asked)["predictions"][0]["explanations"][task]
    return found


def adds_up(explanation: Explanation) -> bool:
    parts = [explanation["base"], *(reason["contribution"] for reason in explanation["reasons"])]
    return bool(abs(sum(parts) - explanation["score"]) <= ATOL + RTOL * sum(map(abs, parts)))


def all_of(answer: Mapping[str, Any]) -> Iterator[Explanation]:
    for prediction in answer["predictions"]:
        for told in (prediction, prediction.get("before", {})):
            yield from (one for one in told.get("explanations", {}).values() if one is not None)


# Which explainer


def test_the_default_is_fast_and_says_how_far_it_errs(url: str, customers: list[str], release: Release) -> None:
    stated = release.contract.explanation.explainers["fast"]
    for task in release.contract.task_names:
        found = of_task(url, task)
        assert (found["explainer"], found["method"]) == ("fast", stated.method)
        assert found["expected_error"] == stated.error.scores[task]
        assert not {"tolerance_met", "within_budget"} & found.keys()


def test_no_tolerance_at_all_is_answered_exactly(url: str, customers: list[str], release: Release) -> None:
    numeric, categorical = tensors_of(release, "c1")
    graph = graph_file(release.root / release.graph_name("exact"))
    outputs = Session(graph, tuple(release.contract.outputs(1, "exact"))).run(numeric, categorical)

    for position, task in enumerate(release.contract.task_names):
        found = of_task(url, task, tolerance=0)
        assert found["expected_error"] == 0
        assert found["tolerance_met"] is True
        expected = dict(zip(release.contract.schema.groups, outputs["attributions"][0, position].tolist(), strict=True))
        whole = abs(found["base"]) + sum(map(abs, expected.values()))
        assert {reason["group"] for reason in found["reasons"]} == set(expected)
        for reason in found["reasons"]:
            assert abs(reason["contribution"] - expected[reason["group"]]) <= ATOL + RTOL * whole


def test_a_tolerance_that_the_default_keeps_costs_no_more(url: str, customers: list[str]) -> None:
    found = of_task(url, "purchase_30d", tolerance=1)

    assert (found["explainer"], found["tolerance_met"]) == ("fast", True)


def test_a_budget_buys_the_most_precise_and_one_that_is_too_small_is_said(url: str, customers: list[str]) -> None:
    rich, poor = (of_task(url, "purchase_30d", budget_ms=budget) for budget in (60_000, 1e-6))
    torn = of_task(url, "purchase_30d", budget_ms=1e-6, tolerance=0)

    assert (rich["expected_error"], rich["within_budget"]) == (0, True)
    assert (poor["explainer"], poor["within_budget"]) == ("fast", False)
    assert (torn["explainer"], torn["within_budget"]) == ("fast", False)
    assert torn["tolerance_met"] is (torn["expected_error"] == 0)
    assert "tolerance_met" not in rich


def test_a_budget_is_for_both_runs_where_it_is_compared(
    url: str, customers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "expected_s", lambda _, rows: rows * 0.010)
    overrides = {"features": {"orders_90d": 9.0}}

    assert of_task(url, "purchase_30d", budget_ms=15)["within_budget"] is True
    assert of_task(url, "purchase_30d", budget_ms=15, **overrides)["within_budget"] is False
    assert of_task(url, "purchase_30d", budget_ms=25, **overrides)["within_budget"] is True


# In which unit, in how much detail, in which words


def test_margins_are_log_odds_and_logarithms_of_amounts(url: str, customers: list[str]) -> None:
    scores = explain(url, "c1")["predictions"][0]["scores"]
    for task, unit in (("purchase_30d", "log_odds"), ("churn_90d", "log_odds"), ("spend_90d", "log_GBP")):
        found = of_task(url, task, space="margin")
        score = scores[task]
        margin = math.log(score) if unit == "log_GBP" else math.log(score / (1 - score))
        assert found["unit"] == unit
        assert found["score"] == pytest.approx(margin, rel=1e-3, abs=1e-3)
        assert adds_up(found)


def test_details_are_the_features_of_a_group_and_sum_to_it(url: str, customers: list[str], release: Release) -> None:
    for space in ("score", "margin"):
        found = of_task(url, "spend_90d", detail="features", space=space, top=3)
        assert adds_up(found)
        *shown, rest = found["reasons"]
        assert (len(shown), rest["group"], "details" in rest) == (3, "other", False)
        for reason in shown:
            parts = [detail["contribution"] for detail in reason["details"]]
            assert {detail["feature"] for detail in reason["details"]} == set(reason["features"])
            assert sum(parts) == pytest.approx(reason["contribution"], abs=1e-5 * sum(map(abs, parts)) + 1e-9)


def test_sentences_are_in_the_language_asked_for(url: str, customers: list[str]) -> None:
    english, german = (of_task(url, "churn_90d", top=1, language=language) for language in ("en", "de"))

    assert (english["language"], german["language"]) == ("en", "de")
    assert english["reasons"][0]["sentence"] != german["reasons"][0]["sentence"]
    assert english["reasons"][0]["contribution"] == german["reasons"][0]["contribution"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"language": "xx"}, "language: this release speaks en"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": 1.5}, "tolerance"),
        ({"budget_ms": 0}, "budget_ms"),
        ({"space": "probability"}, "space"),
        ({"detail": "everything"}, "detail"),
        ({"tasks": ["churn_90d"] * 101}, "$.tasks"),
    ],
)
def test_what_cannot_be_is_refused_with_where_it_is(
    url: str, customers: list[str], asked: Mapping[str, object], said: str
) -> None:
    body = {"entities": [{"customer_id": "c1"}], **asked}
    answer = requests.post(f"{url}/v1/explain", json=body, timeout=5)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert said in answer.json()["detail"]


# Before and after


def test_overrides_are_answered_with_what_it_was_before(url: str, customers: list[str]) -> None:
    [after] = explain(url, "c1", features={"orders_90d": 0.0, "orders_30d": 0.0})["predictions"]
    [plain] = explain(url, "c1")["predictions"]

    assert after["features"]["overridden"] == ["orders_30d", "orders_90d"]
    assert "before" not in plain
    assert not close(after["scores"]["purchase_30d"], plain["scores"]["purchase_30d"])
    for task, score in plain["scores"].items():
        assert close(after["before"]["scores"][task], score)
        told, expected = after["before"]["explanations"][task], plain["explanations"][task]
        scale = abs(expected["base"]) + sum(abs(reason["contribution"]) for reason in expected["reasons"])
        given = {reason["group"]: reason["contribution"] for reason in told["reasons"]}
        for reason in expected["reasons"]:
            assert abs(given[reason["group"]] - reason["contribution"]) <= 2 * (ATOL + RTOL * scale)
    assert all(map(adds_up, all_of({"predictions": [after]})))


def test_only_who_has_overrides_is_compared_and_each_with_themselves(url: str, customers: list[str]) -> None:
    features = [{"orders_90d": 9.0}, {}, {"orders_90d": 0.0}]
    answer = explain(url, *customers, features=features)["predictions"]
    plain = explain(url, *customers)["predictions"]

    assert ["before" in one for one in answer] == [True, False, True]
    for one, own in ((answer[0], plain[0]), (answer[2], plain[2])):
        for task, score in own["scores"].items():
            told = one["before"]["scores"][task]
            assert told is None if score is None else close(told, score)
    # c3 has not bought for so long that leaving is not defined for it.
    assert answer[2]["before"]["scores"]["churn_90d"] is None
    assert answer[2]["before"]["explanations"]["churn_90d"] is None


def test_a_task_that_an_override_makes_undefined_was_defined_before(url: str, customers: list[str]) -> None:
    [one] = explain(url, "c1", features={"days_since_purchase": 400.0})["predictions"]

    assert one["scores"]["churn_90d"] is None
    assert 0 < one["before"]["scores"]["churn_90d"] < 1


def test_thirty_two_are_compared_across_two_arms(
    start: Start, customers: list[str], two_releases: Release, tmp_path: Path
) -> None:
    shutil.copytree(two_releases.root, tmp_path, dirs_exist_ok=True)
    write_routes(tmp_path, canary(50))
    url = start(models=tmp_path)
    asked = [*CROWD[:31], "c1"]
    features = [{"orders_90d": float(row)} for row in range(32)]
    answer = explain(url, *asked, features=features)["predictions"]
    plain = predict(url, *asked)["predictions"]

    assert {one["version"] for one in answer} == {"1", "2"}
    for one, own in zip(answer, plain, strict=True):
        assert one["version"] == own["version"]
        for task, score in own["scores"].items():
            told = one["before"]["scores"][task]
            assert told is None if score is None else close(told, score)
    assert all(map(adds_up, all_of({"predictions": answer})))


def tensors_of(release: Release, customer: str) -> tuple[Any, Any]:
    """What the gateway's tests store of a customer, encoded as serving does."""
    schema, rows = release.contract.schema, rows_of(customer)
    columns = {field: [value] for _, values in rows.values() for field, value in values.items()}
    encoded = schema.encode(schema.batch(columns, np.array([[rows[view][0] for view in schema.views]])), NOW)
    return encoded.numeric, encoded.categorical
