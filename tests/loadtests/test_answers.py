"""The load test's idea of a right answer: it must take every right one and refuse every wrong one."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadtests.answers import WrongAnswer, check_answer, read_customers, read_expected

CUSTOMERS = ["17850", "12583", "17850"]
Body = dict[str, Any]


def right_answer() -> Body:
    """17850 has no churn score: it is not defined for everybody."""

    def prediction(customer: str, churn: float | None) -> Body:
        scores = {"purchase_30d": 0.31, "churn_90d": churn, "spend_90d": 141.2}
        return {
            "entity": {"customer_id": customer},
            "version": "3",
            "status": "ok",
            "scores": scores,
            "not_applicable": [] if churn is not None else ["churn_90d"],
            "explanations": {
                task: None
                if score is None
                else {
                    "score": score,
                    "base": 0.25 * score,
                    "reasons": [{"contribution": score}, {"contribution": -0.25 * score}],
                }
                for task, score in scores.items()
            },
        }

    predictions = [prediction("17850", None), prediction("12583", 0.12), prediction("17850", None)]
    return {"model": "engagement", "request_id": "r1", "predictions": predictions}


def check(answer: Body) -> list[str]:
    return check_answer(json.dumps(answer).encode(), CUSTOMERS, explained=True, request_id="r1")


def test_a_right_answer_passes() -> None:
    assert check(right_answer()) == ["ok", "ok", "ok"]


def _first(answer: Body) -> Body:
    first: Body = answer["predictions"][0]
    return first


def _spend(answer: Body) -> Body:
    spend: Body = _first(answer)["explanations"]["spend_90d"]
    return spend


WRONG: dict[str, Callable[[Body], Any]] = {
    "somebody else's answer": lambda a: a.update(request_id="r2"),
    "swapped entities": lambda a: (
        a["predictions"].reverse() or a["predictions"].sort(key=lambda p: p["entity"]["customer_id"])
    ),
    "a missing entity": lambda a: a["predictions"].pop(),
    "an id that is a number": lambda a: _first(a)["entity"].update(customer_id=17850),
    "a probability above 1": lambda a: _first(a)["scores"].update(purchase_30d=1.01),
    "a negative amount": lambda a: _first(a)["scores"].update(spend_90d=-0.01),
    "NaN": lambda a: _first(a)["scores"].update(spend_90d=float("nan")),
    "Infinity": lambda a: _first(a)["scores"].update(spend_90d=float("inf")),
    "a score that is text": lambda a: _first(a)["scores"].update(spend_90d="141.2"),
    "a score that is true": lambda a: _first(a)["scores"].update(purchase_30d=True),
    "a missing task": lambda a: _first(a)["scores"].pop("spend_90d"),
    "null without not_applicable": lambda a: _first(a).pop("not_applicable"),
    "not_applicable with a score": lambda a: a["predictions"][1].update(not_applicable=["churn_90d"]),
    "a version that is a number": lambda a: _first(a).update(version=3),
    "an unknown status": lambda a: _first(a).update(status="fine"),
    "two versions": lambda a: a["predictions"][1].update(version="4"),
    "a duplicate with another score": lambda a: _first(a)["scores"].update(purchase_30d=0.32),
    "no explanations": lambda a: _first(a).update(explanations=None),
    "an unexplained task": lambda a: _first(a)["explanations"].pop("spend_90d"),
    "an explanation of no score": lambda a: _first(a)["explanations"].update(churn_90d=_spend(a)),
    "an explanation of another score": lambda a: _spend(a).update(score=141.3),
    "a sum that is not the score": lambda a: _spend(a).update(base=35.4),
    "a contribution that is null": lambda a: _spend(a)["reasons"].append({"contribution": None}),
    "no reasons": lambda a: _spend(a).update(reasons=[]),
    "predictions that are no list": lambda a: a.update(predictions=None),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_refused(wrong: str) -> None:
    answer = copy.deepcopy(right_answer())
    WRONG[wrong](answer)

    with pytest.raises(WrongAnswer):
        check(answer)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"<html>", b'{"request_id": "r1"}', b"\xff"])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(WrongAnswer):
        check_answer(body, CUSTOMERS, request_id="r1")


def test_rounding_of_float32_sums_is_not_an_error() -> None:
    answer = right_answer()
    _spend(answer)["base"] += 1e-5 * 141.2

    assert check(answer)


def test_a_canary_may_answer_some_entities_but_never_one_entity_twice() -> None:
    answer = right_answer()
    answer["predictions"][1]["version"] = "4"
    assert check_answer(json.dumps(answer).encode(), CUSTOMERS, one_version=False)

    answer["predictions"][2]["version"] = "4"
    with pytest.raises(WrongAnswer, match="two versions"):
        check_answer(json.dumps(answer).encode(), CUSTOMERS, one_version=False)


def test_scores_are_held_against_the_expected_ones() -> None:
    body = json.dumps(right_answer()).encode()
    expected = {"17850": {"churn_90d": None, "spend_90d": 141.2 + 1e-3}}
    assert check_answer(body, CUSTOMERS, expected=expected)

    for other in ({"spend_90d": 141.21}, {"spend_90d": None}, {"churn_90d": 0.5}, {"purchase_30d": float("nan")}):
        with pytest.raises(WrongAnswer, match="not the expected answer"):
            check_answer(body, CUSTOMERS, expected={"17850": other})


def test_only_the_statuses_asked_for_are_right() -> None:
    with pytest.raises(WrongAnswer, match="status"):
        check_answer(json.dumps(right_answer()).encode(), CUSTOMERS, statuses=["degraded"])


def test_files_are_read_or_refused_by_name(tmp_path: Path) -> None:
    customers, expected = tmp_path / "customers.txt", tmp_path / "expected.jsonl"
    customers.write_text("# two customers\n17850\n\n 12583 \n")
    expected.write_text('{"customer_id": "17850", "scores": {"spend_90d": 141.2, "churn_90d": null}}\n')
    assert read_customers(customers) == ["17850", "12583"]
    assert read_expected(expected) == {"17850": {"spend_90d": 141.2, "churn_90d": None}}

    customers.write_text("# nobody\n")
    expected.write_text('{"customer_id": "17850"}\n')
    with pytest.raises(ValueError, match=r"customers\.txt"):
        read_customers(customers)
    with pytest.raises(ValueError, match="line 1"):
        read_expected(expected)
