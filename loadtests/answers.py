"""What a right answer of the gateway is: every answer of a load test is held against this.

Written from the HTTP API alone, not from the gateway's code, so that a mistake there is not repeated here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

JOIN_KEY = "customer_id"
STATUSES = ("ok", "degraded", "unknown_entity")

UPPER_BOUNDS = {"purchase_30d": 1.0, "churn_90d": 1.0, "spend_90d": math.inf}
"""The tasks of the model `engagement`: two probabilities and an amount. No score is below zero."""

ATOL = RTOL = 1e-5
"""Two answers to one question are equal where |a - b| <= ATOL + RTOL * |b|."""


class WrongAnswer(Exception):
    """The message says what is wrong, and about whom."""


def check_answer(
    body: bytes,
    customers: Sequence[str],
    *,
    explained: bool = False,
    request_id: str | None = None,
    statuses: Sequence[str] = STATUSES,
    one_version: bool = True,
    expected: Mapping[str, Mapping[str, float | None]] | None = None,
) -> list[str]:
    """The statuses of the predictions. Raises WrongAnswer.

    one_version: all entities must be answered by one version; not so while a canary has its share.
    """
    answer = _parse(body)
    try:
        if request_id is not None and answer["request_id"] != request_id:
            raise WrongAnswer("answers another request: its request_id is not the one sent")
        predictions = answer["predictions"]
        answered = [prediction["entity"] for prediction in predictions]
        if answered != [{JOIN_KEY: customer} for customer in customers]:
            raise WrongAnswer(f"asked for {len(customers)} entities, got {len(answered)}, or others, or in other order")
        for customer, prediction in zip(customers, predictions, strict=True):
            _check_prediction(customer, prediction, statuses, (expected or {}).get(customer))
            if explained:
                _check_explanations(customer, prediction)
        _check_together(customers, predictions, one_version=one_version)
        return [prediction["status"] for prediction in predictions]
    except (KeyError, TypeError, AttributeError) as exc:
        raise WrongAnswer(f"has not the form of an answer: {type(exc).__name__}: {exc}") from exc


def read_customers(path: Path) -> list[str]:
    """One id a line; empty lines and lines that start with # are left out."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    customers = [line for line in lines if line and not line.startswith("#")]
    if not customers:
        raise ValueError(f"{path} lists no customer")
    return customers


def read_expected(path: Path) -> dict[str, dict[str, float | None]]:
    """JSON lines: {"customer_id": "17850", "scores": {"purchase_30d": 0.31, "churn_90d": null, ...}}."""
    expected: dict[str, dict[str, float | None]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                expected[row[JOIN_KEY]] = dict(row["scores"])
            except (ValueError, KeyError, TypeError) as exc:
                raise ValueError(f"{path}, line {number}: not an expected answer: {exc}") from exc
    if not expected:
        raise ValueError(f"{path} lists no expected answer")
    return expected


def _parse(body: bytes) -> dict[str, Any]:
    def refuse(literal: str) -> float:
        raise WrongAnswer(f"contains {literal}, which is not JSON")

    try:
        answer = json.loads(body, parse_constant=refuse)
    except ValueError as exc:
        raise WrongAnswer(f"is not JSON: {exc}") from exc
    if not isinstance(answer, dict):
        raise WrongAnswer("is not a JSON object")
    return answer


def _check_prediction(
    customer: str,
    prediction: Mapping[str, Any],
    statuses: Sequence[str],
    expected: Mapping[str, float | None] | None,
) -> None:
    if prediction["status"] not in statuses:
        raise WrongAnswer(f"{customer}: status {prediction['status']!r}, not one of {', '.join(statuses)}")
    if not (isinstance(prediction["version"], str) and prediction["version"]):
        raise WrongAnswer(f"{customer}: no version")
    scores = prediction["scores"]
    if scores.keys() != UPPER_BOUNDS.keys():
        raise WrongAnswer(f"{customer}: scores for {sorted(scores)} instead of {sorted(UPPER_BOUNDS)}")
    if {task for task in scores if scores[task] is None} != set(prediction.get("not_applicable", [])):
        raise WrongAnswer(f"{customer}: null scores and not_applicable disagree")
    for task, score in scores.items():
        # Written so that NaN fails: it loses every comparison.
        if score is not None and not (0 <= _number(score) <= UPPER_BOUNDS[task] and math.isfinite(score)):
            raise WrongAnswer(f"{customer}: {task} is {score}")
    if expected is not None:
        _check_scores(f"{customer}: not the expected answer:", scores, expected)


def _check_scores(what: str, scores: Mapping[str, float | None], others: Mapping[str, float | None]) -> None:
    for task, other in others.items():
        score = scores[task]
        if not (score is other or _equal(score, other)):
            raise WrongAnswer(f"{what} {task} is {score} instead of {other}")


def _equal(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) <= ATOL + RTOL * abs(b)


def _check_together(customers: Sequence[str], predictions: Sequence[Mapping[str, Any]], *, one_version: bool) -> None:
    if one_version and len({prediction["version"] for prediction in predictions}) > 1:
        raise WrongAnswer("mixes versions in one answer")
    first: dict[str, Mapping[str, Any]] = {}
    for customer, prediction in zip(customers, predictions, strict=True):
        earlier = first.setdefault(customer, prediction)
        if prediction is earlier:
            continue
        if (prediction["version"], prediction["status"]) != (earlier["version"], earlier["status"]):
            raise WrongAnswer(f"{customer}: asked twice in one batch, answered by two versions or with two statuses")
        _check_scores(f"{customer}: asked twice in one batch:", prediction["scores"], earlier["scores"])


def _check_explanations(customer: str, prediction: Mapping[str, Any]) -> None:
    scores, explanations = prediction["scores"], prediction["explanations"]
    if explanations.keys() != scores.keys():
        raise WrongAnswer(f"{customer}: explains {sorted(explanations)} instead of {sorted(scores)}")
    for task, explanation in explanations.items():
        if explanation is None or scores[task] is None:
            if explanation is not scores[task]:
                raise WrongAnswer(f"{customer}: of {task}, only one of score and explanation is null")
            continue
        explained = {task: _number(explanation["score"])}
        _check_scores(f"{customer}: explains another score:", explained, {task: scores[task]})
        _check_sum(f"{customer}: {task}", explanation)


def _check_sum(what: str, explanation: Mapping[str, Any]) -> None:
    contributions = [_number(reason["contribution"]) for reason in explanation["reasons"]]
    if not contributions:
        raise WrongAnswer(f"{what} has no reasons")
    score, base = _number(explanation["score"]), _number(explanation["base"])
    total = math.fsum([base, *contributions])
    # Float32 resolves a small score that is the difference of large parts no better than it resolves the parts.
    size = sum(abs(part) for part in (base, *contributions))
    if not abs(total - score) <= ATOL + RTOL * size:
        raise WrongAnswer(f"{what}: base and contributions add up to {total}, the score is {score}")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value
