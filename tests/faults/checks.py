"""Judges a history: every outcome against what was promised at its time and against the offline recomputation."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.faults.oracle import Answer, Oracle, equal
from tests.faults.promise import NO_REASONS, Period, Promise
from tests.faults.traffic import HUNG, Outcome

Kind = Literal["hung", "defect", "refused", "foreign", "stale", "wrong", "mixed", "stray", "unaccounted"]
"""hung: no outcome long after the deadline. defect: a 500. refused: not answered where an answer was promised.
foreign: the answer to another request, or for other customers. stale: of a version that no route named at that time.
wrong: not what the named version says of this customer. mixed: score and reasons from different versions. stray: a
customer left its arm. unaccounted: not exactly one outcome."""

OTHER = "other"


@dataclass(frozen=True)
class Violation:
    kind: Kind
    outcome: Outcome | None
    what: str

    def __str__(self) -> str:
        if self.outcome is None:
            return f"{self.kind}: {self.what}"
        one = self.outcome
        return f"{self.kind}: request {one.number} ({one.ask.kind}, {len(one.ask.customers)} customers): {self.what}"


def judge(history: Sequence[Outcome], promise: Promise, oracle: Oracle) -> list[Violation]:
    violations = list(counted_once([outcome.number for outcome in history]))
    arms: dict[tuple[Period, str], str] = {}
    for outcome in history:
        if outcome.status == 200:
            violations += answer(outcome, promise, oracle)
            violations += strays(outcome, promise, arms)
        else:
            violations += refusal(outcome, promise)
    return violations


def counted_once(outcomes: Sequence[int], started: Sequence[int] | None = None) -> Iterator[Violation]:
    """started: requests that were sent, where the history is complete."""
    counts = Counter(outcomes)
    for number in sorted(counts if started is None else counts | Counter(started)):
        if counts[number] != 1:
            yield Violation("unaccounted", None, f"request {number} has {counts[number]} outcomes")


def refusal(outcome: Outcome, promise: Promise) -> Iterator[Violation]:
    if outcome.status == HUNG:
        yield Violation("hung", outcome, "it was never answered")
    elif outcome.status == 500:
        yield Violation("defect", outcome, "500")
    elif not promise.excuses(outcome):
        yield Violation("refused", outcome, f"{outcome.status} {outcome.code}")


def answer(outcome: Outcome, promise: Promise, oracle: Oracle) -> Iterator[Violation]:
    expected_id = f"chaos-{outcome.number}"
    if {outcome.request_id, outcome.body.get("request_id")} != {expected_id}:
        yield Violation("foreign", outcome, f"it is the answer to {outcome.body.get('request_id')}")
    predictions = outcome.body.get("predictions") or []
    asked = [{"customer_id": customer} for customer in outcome.ask.customers]
    if [prediction.get("entity") for prediction in predictions] != asked:
        yield Violation("foreign", outcome, "it is about other customers")
        return
    allowed = {version for period in promise.at(outcome) for version in period.answering}
    if outcome.ask.version is not None:
        allowed = {outcome.ask.version}
    for customer, prediction in zip(outcome.ask.customers, predictions, strict=True):
        version = str(prediction["version"])
        if version not in allowed:
            yield Violation("stale", outcome, f"version {version}, not {' or '.join(sorted(allowed))}")
        if version not in oracle.answers:
            yield Violation("wrong", outcome, f"there is no version {version}")
            continue
        explained = outcome.ask.kind != "predict"
        if outcome.ask.kind == "predict+reasons" and prediction.get("explanations") is None:
            explained = not promise.allows(NO_REASONS, outcome)
        yield from _content(outcome, customer, version, prediction, oracle, explained=explained)


def strays(outcome: Outcome, promise: Promise, arms: dict[tuple[Period, str], str]) -> Iterator[Violation]:
    """arms: where each customer was seen before, for each period; filled here."""
    periods = promise.at(outcome)
    if outcome.ask.version is not None or len(periods) != 1:
        return
    for customer, prediction in zip(outcome.ask.customers, outcome.body.get("predictions") or [], strict=False):
        version = str(prediction["version"])
        if (before := arms.setdefault((periods[0], customer), version)) != version:
            yield Violation("stray", outcome, f"{customer} was in arm {before} and is now in {version}")


def _content(
    outcome: Outcome, customer: str, version: str, prediction: Mapping[str, Any], oracle: Oracle, *, explained: bool
) -> Iterator[Violation]:
    def scored_by(answer: Answer) -> bool:
        scores = prediction["scores"]
        return scores.keys() == answer.scores.keys() and all(
            equal(scores[task], score) for task, score in answer.scores.items()
        )

    def explained_by(answer: Answer) -> bool:
        explanations = prediction["explanations"]
        return (
            explanations is not None
            and explanations.keys() == answer.scores.keys()
            and all(_explains(explanation, answer, task) for task, explanation in explanations.items())
        )

    expected = oracle.answers[version][customer]
    if prediction["status"] != expected.status:
        yield Violation("wrong", outcome, f"{customer} is {prediction['status']}, not {expected.status}")
    if not scored_by(expected):
        yield Violation("wrong", outcome, f"scores of {customer}: {_whose(oracle, customer, scored_by, version)}")
    if explained and not explained_by(expected):
        whose = _whose(oracle, customer, explained_by, version)
        kind: Kind = "mixed" if whose.startswith("of version") and scored_by(expected) else "wrong"
        yield Violation(kind, outcome, f"reasons of {customer}: {whose}")


def _explains(explanation: Mapping[str, Any] | None, answer: Answer, task: str) -> bool:
    """The score, its base and the reasons add up, and are this answer's."""
    if explanation is None or task not in answer.reasons:
        return explanation is None and answer.scores[task] is None
    expected = answer.reasons[task]
    given = {reason["group"]: reason["contribution"] for reason in explanation["reasons"]}
    left = [value for group, value in expected.contributions.items() if group not in given]
    wanted = {**expected.contributions, OTHER: sum(left)}
    total = explanation["base"] + sum(given.values())
    return (
        (OTHER in given) == bool(left)
        and equal(explanation["score"], answer.scores[task])
        and equal(explanation["base"], expected.base)
        and equal(total, answer.scores[task], expected.scale)
        and all(group in wanted and equal(value, wanted[group], expected.scale) for group, value in given.items())
    )


def _whose(oracle: Oracle, customer: str, matches: Any, named: str) -> str:
    for version, answers in oracle.answers.items():
        if version != named and matches(answers[customer]):
            return f"of version {version}, not of {named}, which it names"
    for other, answer in oracle.answers[named].items():
        if other != customer and matches(answer):
            return f"those of {other}"
    return f"not what version {named} says"
