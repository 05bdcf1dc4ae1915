"""What-if over HTTP: sweeps are what predict says of the same values, and changes cross when predict is asked."""

import asyncio
import itertools
import json
import math
import random
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from feature_client.contract import ATOL, RTOL, Distribution
from feature_client.golden import Tensors
from feature_client.online.plan import EntityKey, ReadPlan
from feature_client.online.redis_reader import RedisReader
from feature_client.release import Release
from feature_client.schema import FeatureBatch, Override
from service.auth import add_key
from service.backends.embedded import EmbeddedBackend
from service.backends.fake import FakeBackend
from service.backends.triton import TritonBackend
from service.errors import InvalidFeature
from service.reasons import ReasonWriter
from service.releases import Loaded
from service.whatif_answers import Pursuit
from service.whatif_protocol import Goal, Sweep, WhatIfRequest
from service.whatif_question import question_of
from service.whatif_search import Search, Target, reference_values, steps_between, trials_of
from tests.feast_layout import store
from tests.model_export.tiny_release import ACTIONABLE, COUNTRIES
from tests.service.conftest import Start, rows_of
from tests.service.test_backends import Offline, alike
from tests.service.test_canary import canary, write_routes
from tests.service.test_errors import JSON, SECRET, check
from tests.service.test_operations import total, until
from tests.service.test_predict import close, explain, predict

Json = dict[str, Any]

TASKS = ["purchase_30d", "churn_90d", "spend_90d"]
C1 = {"customer_id": "c1"}


@pytest.fixture
def gaps(redis: "Redis", customers: list[str], release: Release) -> str:
    """A customer without a rhythm yet, and of whom the number of sessions is missing."""
    rows = rows_of("gaps")
    rows["lifetime"][1]["mean_gap_days"] = rows["engagement"][1]["sessions_30d"] = None
    store(redis, release.contract.schema, "gaps", rows)
    return "gaps"


def ask(url: str, customer: str = "c1", **more: object) -> Json:
    body = {"entity": {"customer_id": customer}, **more}
    response = requests.post(f"{url}/v1/whatif", json=body, timeout=20)
    assert response.status_code == 200, response.text
    return response.json()  # type: ignore[no-any-return]


def predicted(url: str, features: Mapping[str, object], customer: str = "c1") -> dict[str, float | None]:
    [prediction] = predict(url, customer, features=[features])["predictions"]
    return prediction["scores"]  # type: ignore[no-any-return]


def same(score: float | None, other: float | None) -> bool:
    return score is other is None or (score is not None and other is not None and close(score, other))


# Sweeps


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        ("orders_90d", [0, 1, 4, 9]),
        ("spend_90d", [0.0, 55.5, 210.5, 5_000.0]),
        ("days_since_purchase", [0, 3, 90, 179, 181, 300]),
        ("mean_gap_days", [None, 7, 60]),
        ("preferred_channel", ["web", "shop", "fax", None]),
    ],
)
def test_a_sweep_is_what_predict_says_of_each_value(url: str, feature: str, values: list[object]) -> None:
    sweep = ask(url, sweep=[{"feature": feature, "values": values}])["sweep"]

    assert sweep["features"] == [feature]
    assert sweep["values"] == [values]
    assert list(sweep["scores"]) == TASKS
    for position, value in enumerate(values):
        expected = predicted(url, {feature: value})
        assert all(same(sweep["scores"][task][position], expected[task]) for task in TASKS), value


def test_two_features_give_a_score_for_each_pair(url: str) -> None:
    orders, days = [0, 2, 8], [1.0, 30.0, 200.0, 5.5]
    request = [{"feature": "orders_90d", "values": orders}, {"feature": "days_since_purchase", "values": days}]
    sweep = ask(url, sweep=request)["sweep"]

    assert sweep["current"] == [4, 3.0]
    for (row, count), (column, day) in itertools.product(enumerate(orders), enumerate(days)):
        expected = predicted(url, {"orders_90d": count, "days_since_purchase": day})
        assert all(same(sweep["scores"][task][row][column], expected[task]) for task in TASKS)


def test_a_task_is_null_where_it_is_not_defined(url: str) -> None:
    values = [10.0, 179.0, 181.0, None]
    sweep = ask(url, sweep=[{"feature": "days_since_purchase", "values": values}])["sweep"]
    assert [score is None for score in sweep["scores"]["churn_90d"]] == [False, False, True, True]
    assert None not in sweep["scores"]["purchase_30d"]

    other = ask(url, "c3", sweep=[{"feature": "orders_90d", "values": [0, 1]}, {"feature": "days_since_purchase"}])
    days = other["sweep"]["values"][1]
    assert other["prediction"]["not_applicable"] == ["churn_90d"]
    for row in other["sweep"]["scores"]["churn_90d"]:
        assert [score is None for score in row] == [day > 180 for day in days]


def test_values_that_are_not_named_are_those_of_the_reference(url: str, release: Release) -> None:
    def grid(feature: str) -> list[Any]:
        [values] = ask(url, sweep=[{"feature": feature}])["sweep"]["values"]
        return values  # type: ignore[no-any-return]

    reference = release.contract.reference
    for feature in ("spend_90d", "days_since_purchase"):
        assert grid(feature) == sorted(set(reference[feature].quantiles))
    assert grid("sessions_30d") == sorted({round(value) for value in reference["sessions_30d"].quantiles})
    assert all(isinstance(value, int) for value in grid("sessions_30d"))
    shares = reference["country"].shares or {}
    words = grid("country")
    assert set(words) == {word for word in COUNTRIES if word is not None}
    assert [shares[word] for word in words] == sorted((shares[word] for word in words), reverse=True)


def test_a_grid_has_21_values_and_among_them_missing_where_that_means_something(release: Release) -> None:
    shares = {f"c{rank:02}": 0.5 / (rank + 1) for rank in range(40)}
    country = replace(release.contract.schema.by_name["country"], nullable=True, vocabulary=tuple(reversed(shares)))
    contract = replace(release.contract, reference={"country": Distribution(0.1, (), shares)})
    commonest = sorted(shares)

    assert reference_values(contract, country, missing=True) == [*commonest[:20], None]
    assert reference_values(contract, country, missing=False) == commonest[:21]
    assert reference_values(contract, replace(country, nullable=False), missing=True) == commonest[:21]


def test_held_values_hold_for_the_scores_the_reasons_and_the_sweep(url: str) -> None:
    held = {"spend_90d": 12.5, "country": "Germany"}
    answer = ask(url, features=held, sweep=[{"feature": "orders_90d", "values": [1, 7]}])

    assert answer["prediction"]["features"]["overridden"] == ["spend_90d", "country"]
    plain = predicted(url, held)
    assert all(same(answer["prediction"]["scores"][task], plain[task]) for task in TASKS)
    inputs = [reason["features"] for reason in answer["prediction"]["explanations"]["purchase_30d"]["reasons"]]
    assert {"spend_90d": 12.5}.items() <= {key: value for group in inputs for key, value in group.items()}.items()
    for position, value in enumerate([1, 7]):
        expected = predicted(url, {**held, "orders_90d": value})
        assert all(same(answer["sweep"]["scores"][task][position], expected[task]) for task in TASKS)


def test_the_customer_as_it_is_is_what_explain_says(url: str) -> None:
    answer = ask(url, sweep=[{"feature": "orders_90d"}], tasks=["spend_90d"], top=2)
    explained = explain(url, "c1", tasks=["spend_90d"], top=2)

    assert alike(answer["prediction"], explained["predictions"][0])
    assert (answer["model"], answer["as_of"]) == (explained["model"], explained["as_of"])
    assert list(answer["sweep"]["scores"]) == ["spend_90d"]
    assert "goal" not in answer
    assert "changes" not in answer
    assert "held" in answer["note"]


def test_labels_and_reasons_are_in_the_language_that_is_asked_for(url: str) -> None:
    answer = ask(url, goal={"task": "purchase_30d", "at_least": 0.99}, language="de")
    [*_, last] = answer["prediction"]["explanations"]["churn_90d"]["reasons"]
    assert "Abwanderung" in last["sentence"]

    body = {"entity": C1, "sweep": [{"feature": "orders_90d"}], "language": SECRET}
    problem = check(requests.post(f"{url}/v1/whatif", json=body, timeout=10), 422, "invalid_request")
    assert str(problem["detail"]).startswith("language:")


# Goals


def goals(url: str) -> list[Json]:
    """Scores that are some way off, both ways, for every task."""
    scores = predicted(url, {})
    return [
        {"task": task, kind: score * factor}
        for task, score in scores.items()
        if score is not None
        for kind, factor in (("at_least", 1.05), ("at_most", 0.9))
    ]


def meets(goal: Json, score: float | None, by: float = 0.0) -> bool:
    """Whether the score reaches the goal by so many times what equal answers may differ by."""
    assert score is not None
    at: float = goal["at_least"] if "at_least" in goal else goal["at_most"]
    slack = by * (ATOL + RTOL * abs(at))
    return score >= at + slack if "at_least" in goal else score <= at - slack


def test_a_change_crosses_and_a_slightly_smaller_one_does_not(url: str, release: Release) -> None:
    crossed = 0
    for goal in goals(url):
        answer = ask(url, goal=goal)
        for change in answer["changes"]:
            score = predicted(url, {change["feature"]: change["to"]})[goal["task"]]
            assert meets(goal, score), change
            assert same(score, change["after"])
            crossed += 1
            if change["resolution"] is not None:
                back = -change["resolution"] if change["to"] > change["from"] else change["resolution"]
                smaller = predicted(url, {change["feature"]: change["to"] + back})[goal["task"]]
                assert not meets(goal, smaller, by=2.0), change
        named = [change["feature"] for change in answer["changes"] + answer["unreachable"]]
        assert sorted(named) == sorted(ACTIONABLE)
        distances = [change["distance"] for change in answer["changes"] if change["distance"] is not None]
        assert distances == sorted(distances)
    assert crossed >= 10


def test_what_cannot_cross_says_how_far_it_gets(url: str, release: Release) -> None:
    goal = {"task": "purchase_30d", "at_least": 0.9999}
    answer = ask(url, goal=goal)
    assert answer["goal"] == {**goal, "score": answer["prediction"]["scores"]["purchase_30d"], "reached": False}
    assert answer["changes"] == []

    for one in answer["unreachable"]:
        assert one["why"] == "out_of_range"
        [values] = ask(url, sweep=[{"feature": one["feature"]}])["sweep"]["values"]
        others = [predicted(url, {one["feature"]: value})["purchase_30d"] for value in values if value is not None]
        best = max(score for score in [*others, predicted(url, {})["purchase_30d"]] if score is not None)
        assert close(one["score"], best)
        assert same(one["score"], predicted(url, {one["feature"]: one["to"]})["purchase_30d"])


def test_a_goal_that_is_reached_says_so_and_proposes_nothing(url: str) -> None:
    score = predicted(url, {})["purchase_30d"] or 0.0
    for goal in ({"at_least": score / 2}, {"at_most": score * 2}):
        answer = ask(url, goal={"task": "purchase_30d", **goal})
        assert answer["goal"]["reached"] is True
        assert answer["changes"] == answer["unreachable"] == []


def test_a_task_that_is_not_defined_has_no_way_to_its_goal(url: str) -> None:
    answer = ask(url, "c3", goal={"task": "churn_90d", "at_most": 0.1})

    assert answer["goal"] == {"task": "churn_90d", "at_most": 0.1, "score": None, "reached": None}
    assert answer["changes"] is None
    assert answer["unreachable"] is None


def test_a_missing_value_is_changed_from_its_default_or_not_at_all(start: Start, gaps: str, release: Release) -> None:
    url = start(known(release))
    at = float(sigmoid(-2 + 0.3 * 4 - 0.05 * (0 - 24.5)))  # no sessions, no gap: both count as 0
    answer = ask(url, gaps, goal={"task": "purchase_30d", "at_least": at})
    changes = {change["feature"]: change for change in answer["changes"]}

    assert (changes["sessions_30d"]["from"], changes["sessions_30d"]["to"]) == (None, 5)
    assert changes["sessions_30d"]["distance"] > 0
    [gap] = [one for one in answer["unreachable"] if one["feature"] == "mean_gap_days"]
    assert (gap["why"], gap["to"]) == ("missing", None)
    assert gap["score"] == answer["goal"]["score"]


@pytest.mark.parametrize(
    ("dtype", "near", "far", "first"),
    [
        ("int64", 2.0, 7, [3, 4, 5, 6]),
        ("int64", 7, 2, [6, 5, 4, 3]),
        ("int64", 4, 5, []),
        ("int64", 0, 1_000, [50, 100, 150, 200]),
        ("float64", 0.0, 1.0, [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]),
        ("float64", 24.5, 12.3, [24.0, 23.0, 22.0, 21.0, 20.0, 19.0, 18.0, 17.0, 16.0, 15.0]),
        ("float64", 1e-30, 3e38, [2e37, 4e37]),
    ],
)
def test_between_two_values_round_ones_are_tried(
    release: Release, dtype: str, near: float, far: float, first: list[float]
) -> None:
    feature = replace(release.contract.schema.by_name["spend_90d"], dtype=dtype)
    tried = np.array(steps_between(feature, near, far), dtype=float)

    assert tried[: len(first)].tolist() == first
    assert len(tried) <= 20
    assert ((tried > min(near, far)) & (tried < max(near, far))).all()


@given(
    start=st.floats(-50, 150, width=32),
    values=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=21, unique=True),
    at=st.floats(-0.9, 0.9),
    rising=st.booleans(),
    waves=st.floats(0.01, 0.2),
)
def test_whatever_the_model_the_value_found_crosses_first_of_all_that_were_tried(
    release: Release, *, start: float, values: list[float], at: float, rising: bool, waves: float
) -> None:
    """A score that goes up and down, and is not defined everywhere."""
    feature, target = release.contract.schema.by_name["spend_90d"], Target(at, rising)

    def score(value: Override) -> float:
        value = number(value)
        return math.nan if 40 < value < 45 else math.sin(waves * (value - start) + (-2 if rising else 2))

    tried: dict[float, float] = {}
    search = Search(trials_of(feature, start, [*values]), target)
    while asked := search.asks():
        scores = np.array([score(row["spend_90d"]) for row in asked])
        tried |= zip([number(row["spend_90d"]) for row in asked], scores.tolist(), strict=True)
        search.learns(scores)

    crossing = {value for value, given in tried.items() if target.crosses(np.array([given]))[0]}
    for side in (1, -1):
        nearest = min([side * (value - start) for value in crossing if side * (value - start) > 0], default=None)
        found = [one for one in search.crossings if side * (number(one.value) - start) > 0]
        assert [side * (number(one.value) - start) for one in found] == ([] if nearest is None else [nearest])
        for one in found:
            value, before = number(one.value), number(one.before)
            assert one.score == score(value)
            assert before == start or before in tried.keys() - crossing
            assert not [other for other in tried if min(value, before) < other < max(value, before)]


def number(value: Override) -> float:
    assert isinstance(value, int | float)
    return value


def test_a_feature_of_which_training_knows_no_value_is_neither_proposed_nor_swept_by_default(release: Release) -> None:
    reference = {**release.contract.reference, "spend_90d": Distribution(1.0)}
    contract = replace(release.contract, reference=reference)
    loaded = Loaded(replace(release, contract=contract), ReadPlan(contract.schema), {}, ReasonWriter(contract))
    with pytest.raises(InvalidFeature, match=r"sweep\[0\]: training knows no value of spend_90d"):
        question_of(WhatIfRequest(entity=C1, sweep=[Sweep(feature="spend_90d")]), loaded)

    goal = Goal(task="purchase_30d", at_least=0.9)
    question = question_of(WhatIfRequest(entity=C1, goal=goal), loaded)
    current: dict[str, Override] = dict.fromkeys(ACTIONABLE, 1.0)
    pursuit = Pursuit(goal, 0.5, question, current | {"preferred_channel": "web"})
    whys = {one.feature: one.why for one in pursuit.unreachable}
    assert whys["spend_90d"] == "unknown"
    assert "spend_90d" not in {name for row in pursuit.search.asks() for name in row}


def test_held_features_are_not_proposed(url: str) -> None:
    answer = ask(url, features={"orders_90d": 2.0}, goal={"task": "purchase_30d", "at_least": 0.99})

    assert "orders_90d" not in [one["feature"] for one in answer["changes"] + answer["unreachable"]]


def sigmoid(x: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, np.float64))), np.float32)


def changed(release: Release, change: Callable[[str, Tensors], Tensors]) -> FakeBackend:
    """What the release's graphs answer, and `change` in place of some of it; but the golden rows as they are."""
    offline = Offline(release)
    with np.load(release.golden) as file:
        golden = file["numeric"]

    def answer(name: str, tensors: Tensors) -> Tensors:
        outputs = offline(name, tensors)
        is_golden = np.array_equal(tensors["numeric"], golden, equal_nan=True)
        return outputs if is_golden else {**outputs, **change(name, tensors)}

    return FakeBackend(answer, release.contract.digest)


def known(release: Release) -> FakeBackend:
    """A model whose purchase_30d grows with sessions and spend, falls with the mean gap and is higher for whoever does
    not use the web most, in a known way."""
    columns = [feature.name for feature in release.contract.schema.numeric]
    names = ("sessions_30d", "spend_90d", "mean_gap_days")
    channel = [feature.name for feature in release.contract.schema.categorical].index("preferred_channel")
    web = release.contract.schema.by_name["preferred_channel"].vocabulary.index("web") + 2

    def scores(_: str, tensors: Tensors) -> Tensors:
        sessions, spend, gap = (np.nan_to_num(tensors["numeric"][:, columns.index(name)]) for name in names)
        logit = -2 + 0.3 * sessions + 0.002 * (spend - 210.5) - 0.05 * (gap - 24.5)
        score = sigmoid(logit + 0.6 * (tensors["categorical"][:, channel] != web))
        return {"scores": np.stack([score, np.full_like(score, 0.5), spend], axis=1)}

    return changed(release, scores)


def test_changes_of_a_known_model_are_where_they_must_be(start: Start, customers: list[str], release: Release) -> None:
    url = start(known(release))
    at = float(sigmoid(-2 + 0.3 * 6 + 0.5))  # c1 has 6 sessions: half a unit more is needed
    answer = ask(url, goal={"task": "purchase_30d", "at_least": at})
    changes = {change["feature"]: change for change in answer["changes"]}

    # 0.5 / 0.3 sessions more, in whole ones; 0.5 / 0.002 more to spend; 0.5 / 0.05 days less.
    assert set(changes) == {"sessions_30d", "spend_90d", "mean_gap_days", "preferred_channel"}
    assert changes["sessions_30d"]["to"] == 8
    assert isinstance(changes["sessions_30d"]["to"], int)
    assert (changes["sessions_30d"]["from"], changes["sessions_30d"]["resolution"]) == (6, 1)
    for feature, exact in (("spend_90d", 210.5 + 250), ("mean_gap_days", 24.5 - 10)):
        change = changes[feature]
        assert 0 <= abs(change["to"] - change["from"]) - abs(exact - change["from"]) <= change["resolution"] * 1.01
        quantiles = release.contract.reference[feature].quantiles
        assert change["resolution"] < (quantiles[-1] - quantiles[0]) / 100
        assert change["observed"] is (quantiles[0] <= change["to"] <= quantiles[-1])
    assert {one["feature"] for one in answer["unreachable"]} == {"orders_90d"}
    shares = release.contract.reference["preferred_channel"].shares or {}
    channel = answer["changes"][-1]  # categories come last
    assert (channel["from"], channel["to"]) == ("web", max(("app", "shop"), key=shares.__getitem__))
    assert channel["distance"] is channel["resolution"] is None
    assert channel["observed"] is True


def test_distance_is_in_percentile_points_of_the_reference(
    start: Start, customers: list[str], release: Release
) -> None:
    url = start(known(release))
    [change] = ask(url, goal={"task": "spend_90d", "at_least": 400.0})["changes"]
    quantiles = np.array(release.contract.reference["spend_90d"].quantiles)
    # From so far up no two quantiles are equal: the plain inverse of the distribution.
    above = quantiles[quantiles > 0]
    points = np.interp([change["from"], change["to"]], above, np.linspace(0, 100, 21)[quantiles > 0])

    assert change["distance"] == pytest.approx(abs(points[1] - points[0]), abs=0.11)  # of two tenths


@pytest.mark.parametrize(("sessions", "segment"), [(0, "low"), (60, "high")])
def test_a_segment_is_crossed_into_from_either_side(
    start: Start, customers: list[str], release: Release, redis: "Redis", sessions: int, segment: str
) -> None:
    rows = rows_of("far")
    rows["orders"][1]["orders_90d"] = 4
    rows["engagement"][1]["sessions_30d"] = sessions
    store(redis, release.contract.schema, "far", rows)
    url = start(known(release))
    task = next(task for task in release.contract.tasks if task.name == "purchase_30d")
    high, medium, _ = task.segments
    answer = ask(url, "far", goal={"task": "purchase_30d", "segment": "medium"})

    assert answer["prediction"]["segments"]["purchase_30d"] == segment
    if segment == "low":
        assert answer["goal"]["at_least"] == medium.at_least
    else:
        assert high.at_least * (1 - 1e-9) < answer["goal"]["at_most"] < high.at_least
    reached = [change for change in answer["changes"] if change["feature"] == "sessions_30d"]
    assert len(reached) == 1
    for change in answer["changes"]:
        [now] = predict(url, "far", features={change["feature"]: change["to"]})["predictions"]
        assert now["segments"]["purchase_30d"] == change["segment"]
        assert change["segment"] in (("medium", "high") if segment == "low" else ("medium", "low"))
    inside = ask(url, "far", goal={"task": "purchase_30d", "segment": segment})
    assert inside["goal"]["reached"] is True


# One snapshot


class Watched(EmbeddedBackend):
    """Notes which graph was asked for how many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        self.asked.append((name, len(tensors["numeric"])))
        return await super().infer(name, tensors, timeout_s)


class WatchedReader:
    """Counts feature reads."""

    def __init__(self, reader: RedisReader) -> None:
        self.reader = reader
        self.reads = 0

    async def fetch(self, plan: ReadPlan, keys: Sequence[EntityKey], timeout_s: float) -> FeatureBatch:
        self.reads += 1
        return await self.reader.fetch(plan, keys, timeout_s)

    async def ping(self, timeout_s: float) -> None:
        await self.reader.ping(timeout_s)

    async def close(self) -> None:
        await self.reader.close()


def test_one_read_one_run_for_reasons_and_few_of_128_rows_for_all_variations(
    start: Start, customers: list[str], release: Release, redis_url: str
) -> None:
    backend, reader = Watched(), WatchedReader(RedisReader.from_connection_string(redis_url, 2.0))
    url = start(backend, reader=reader)
    backend.asked.clear()
    ask(url, sweep=[{"feature": "spend_90d", "values": list(range(441))}])
    assert reader.reads == 1
    assert backend.asked == [
        (release.explain_names["fast"], 1),
        *[(release.name, 128)] * 3,
        (release.name, 441 - 3 * 128),
    ]

    backend.asked.clear()
    answer = ask(url, sweep=[{"feature": "spend_90d"}], goal={"task": "purchase_30d", "at_least": 0.999})
    assert answer["changes"] == []
    assert reader.reads == 2
    # All of the first round of the search goes with the sweep, and there is no second without a crossing.
    assert [name for name, _ in backend.asked] == [release.explain_names["fast"], release.name]


def test_variations_are_no_predictions_in_the_metrics_and_the_stages_are_all_there(
    start: Start, customers: list[str]
) -> None:
    url = start()
    body = {"entity": C1, "sweep": [{"feature": "spend_90d"}], "goal": {"task": "purchase_30d", "at_least": 0.99}}
    response = requests.post(f"{url}/v1/whatif", json=body, timeout=20)

    assert total(url, "rapport_requests_total", route="/v1/whatif", code="200", model="engagement") == 1
    assert total(url, "rapport_predictions_total") == 1
    assert total(url, "rapport_inflight") == 0
    timing = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert set(timing) == {"decode", "admit", "features", "queue", "infer", "encode"}
    for stage in timing:
        assert total(url, "rapport_stage_duration_seconds_count", stage=stage) == 1, stage


def test_a_customer_is_varied_by_the_release_of_its_arm(
    start: Start, two_releases: Release, customers: list[str], tmp_path: Path
) -> None:
    shutil.copytree(two_releases.root, tmp_path, dirs_exist_ok=True)
    write_routes(tmp_path, canary(50))
    url = start(models=tmp_path)
    crowd = [f"crowd-{number}" for number in range(12)]
    arms = {one["entity"]["customer_id"]: one["version"] for one in predict(url, *crowd)["predictions"]}

    assert set(arms.values()) == {"1", "2"}
    for customer in crowd:
        for asked, version in ((arms[customer], None), ("1", "1"), ("2", "2")):
            more = {} if version is None else {"version": version}
            answer = ask(url, customer, sweep=[{"feature": "orders_90d", "values": [3]}], **more)
            [expected] = predict(url, customer, features={"orders_90d": 3}, version=asked)["predictions"]
            assert answer["prediction"]["version"] == asked
            assert all(same(answer["sweep"]["scores"][task][0], expected["scores"][task]) for task in TASKS)
            for task, why in answer["prediction"]["explanations"].items():
                assert why is None or close(why["score"], answer["prediction"]["scores"][task])


def test_an_unknown_customer_is_varied_from_defaults_or_not_at_all(
    start: Start, url: str, release: Release, tmp_path: Path
) -> None:
    body: Json = {
        "sweep": [{"feature": "orders_90d", "values": [5]}],
        "goal": {"task": "purchase_30d", "at_least": 0.5},
    }
    answer = ask(url, "nobody", **body)
    assert answer["prediction"]["status"] == "unknown_entity"
    assert same(
        answer["sweep"]["scores"]["purchase_30d"][0], predicted(url, {"orders_90d": 5}, "nobody")["purchase_30d"]
    )
    assert answer["changes"] is not None

    shutil.copytree(release.root, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "routes.toml").open("a") as routes:
        routes.write('unknown = "reject"\n')
    answer = ask(start(models=tmp_path), "nobody", **body)
    assert answer["prediction"]["scores"] is None
    assert answer["prediction"]["explanations"] is None
    assert answer["sweep"] is answer["changes"] is answer["unreachable"] is None
    assert answer["goal"] == {"task": "purchase_30d", "at_least": 0.5, "score": None, "reached": None}


# What is refused, and what is given up

SWEEP: Json = {"entity": C1, "sweep": [{"feature": "orders_90d", "values": [1, 2]}]}
GOAL: Json = {"entity": C1, "goal": {"task": "purchase_30d", "at_least": 0.99}}
CANNOT_BE: dict[str, tuple[object, str, str]] = {
    "no object": ([], "invalid_request", ""),
    "neither": ({"entity": C1}, "invalid_request", "ask for a sweep"),
    "no entity": ({"sweep": SWEEP["sweep"]}, "invalid_request", ""),
    "entities": ({**SWEEP, "entities": [C1]}, "invalid_request", "unknown field"),
    "unknown field": ({**SWEEP, SECRET: 1}, "invalid_request", "unknown field"),
    "integer id": ({**SWEEP, "entity": {"customer_id": 1}}, "invalid_request", "$.entity"),
    "wrong key": ({**SWEEP, "entity": {SECRET: "c1"}}, "invalid_entity", "entity:"),
    "empty id": ({**SWEEP, "entity": {"customer_id": ""}}, "invalid_entity", "entity:"),
    "held: unknown": ({**SWEEP, "features": {SECRET: 1}}, "invalid_feature", "features:"),
    "held: text": ({**SWEEP, "features": {"orders_30d": SECRET}}, "invalid_feature", "features: orders_30d"),
    "held: list": ({**SWEEP, "features": [{}]}, "invalid_request", "$.features"),
    "unknown task": ({**SWEEP, "tasks": ["purchase_30d", SECRET]}, "invalid_request", "tasks[1]"),
    "100 tasks": ({**SWEEP, "tasks": ["purchase_30d"] * 101}, "invalid_request", "$.tasks"),
    "no task": ({**SWEEP, "tasks": []}, "invalid_request", "$.tasks"),
    "top 0": ({**SWEEP, "top": 0}, "invalid_request", "$.top"),
    "no sweep": ({**SWEEP, "sweep": []}, "invalid_request", "$.sweep"),
    "three": ({**SWEEP, "sweep": [{"feature": name} for name in ACTIONABLE[:3]]}, "invalid_request", "$.sweep"),
    "sweep: unknown": ({**SWEEP, "sweep": [{"feature": SECRET}]}, "invalid_feature", "sweep[0].feature"),
    "sweep: the date": ({**SWEEP, "sweep": [{"feature": "season_sin"}]}, "invalid_feature", "sweep[0].feature"),
    "sweep: twice": ({**SWEEP, "sweep": SWEEP["sweep"] * 2}, "invalid_feature", "sweep[1].feature"),
    "sweep: held": ({**SWEEP, "features": {"orders_90d": 1}}, "invalid_feature", "sweep[0].feature"),
    "no values": ({**SWEEP, "sweep": [{"feature": "spend_90d", "values": []}]}, "invalid_request", "$.sweep[0].values"),
    "value: text": (
        {**SWEEP, "sweep": [{"feature": "country"}, {"feature": "orders_90d", "values": [1, SECRET]}]},
        "invalid_feature",
        "sweep[1].values[1]",
    ),
    "value: 1e39": (
        {**SWEEP, "sweep": [{"feature": "spend_90d", "values": [1e39]}]}, "invalid_feature", "sweep[0].values[0]",
    ),
    "value: number": (
        {**SWEEP, "sweep": [{"feature": "country", "values": [4711]}]}, "invalid_feature", "sweep[0].values[0]",
    ),
    "442 points": ({**SWEEP, "sweep": [{"feature": "country", "values": [None] * 442}]}, "invalid_request", ".values"),
    "21 x 22": (
        {**SWEEP, "sweep": [
            {"feature": "spend_90d", "values": list(range(21))}, {"feature": "orders_90d", "values": list(range(22))},
        ]},
        "invalid_request",
        "sweep: at most 441",
    ),
    "goal: task": ({**GOAL, "goal": {"task": SECRET, "at_least": 1}}, "invalid_request", "goal.task"),
    "goal: segment": ({**GOAL, "goal": {"task": "churn_90d", "segment": SECRET}}, "invalid_request", "goal.segment"),
    "goal: nothing": ({**GOAL, "goal": {"task": "churn_90d"}}, "invalid_request", "$.goal"),
    "goal: both": ({**GOAL, "goal": {"task": "churn_90d", "at_least": 1, "at_most": 1}}, "invalid_request", "$.goal"),
    "goal: text": ({**GOAL, "goal": {"task": "churn_90d", "at_least": SECRET}}, "invalid_request", "$.goal.at_least"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "code", "where"), CANNOT_BE.values(), ids=CANNOT_BE.keys())
def test_what_cannot_be_answered_is_422_and_says_where(url: str, body: object, code: str, where: str) -> None:
    problem = check(requests.post(f"{url}/v1/whatif", json=body, timeout=10), 422, code)

    assert where in str(problem["detail"])


def test_what_is_not_json_or_no_post_or_no_model_is_refused_as_elsewhere(url: str) -> None:
    whatif = f"{url}/v1/whatif"
    check(requests.post(whatif, data=b'{"entity"', headers=JSON, timeout=10), 400, "invalid_json")
    check(requests.post(whatif, data=b'{"entity": ' + b"[" * 100_000, headers=JSON, timeout=10), 400, "invalid_json")
    check(requests.post(whatif, data=json.dumps(SWEEP), timeout=10), 415, "unsupported_media_type")
    check(requests.get(whatif, timeout=10), 405, "method_not_allowed")
    check(requests.post(whatif, json={**SWEEP, "model": SECRET}, timeout=10), 404, "unknown_model")
    check(requests.post(whatif, json={**SWEEP, "version": "99"}, timeout=10), 404, "unknown_model")


def test_the_largest_grid_is_answered(url: str) -> None:
    request = [{"feature": "spend_90d"}, {"feature": "days_since_purchase"}]
    answer = ask(url, sweep=request, goal={"task": "churn_90d", "at_most": 0.01})
    first, second = answer["sweep"]["values"]

    assert max(len(first), len(second)) <= 21
    assert [len(row) for row in answer["sweep"]["scores"]["purchase_30d"]] == [len(second)] * len(first)


def test_it_needs_the_scope_explain_and_is_counted_against_the_quota(
    start: Start, customers: list[str], keys_file: Path
) -> None:
    tokens = {scope: add_key(keys_file, scope, (scope,)) for scope in ("predict", "admin")}
    tokens["explain"] = add_key(keys_file, "explain", ("explain",), rate=0.01)
    url = start(keys_file=keys_file)

    def status(token: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.post(f"{url}/v1/whatif", json=SWEEP, headers=headers, timeout=10)

    check(requests.post(f"{url}/v1/whatif", json=SWEEP, timeout=10), 401, "unauthenticated")
    check(status(tokens["predict"]), 403, "forbidden")
    check(status(tokens["admin"]), 403, "forbidden")
    assert status(tokens["explain"]).status_code == 200
    check(status(tokens["explain"]), 429, "quota_exceeded")


class Stuck(EmbeddedBackend):
    """Never answers for the graphs in `stuck`."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck: set[str] = set()

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        if name in self.stuck:
            async with asyncio.timeout(timeout_s):
                await asyncio.Event().wait()
        return await super().infer(name, tensors, timeout_s)


def test_a_deadline_that_passes_is_504_in_the_snapshot_and_in_the_variations(
    start: Start, customers: list[str], release: Release
) -> None:
    backend = Stuck()
    url = start(backend)
    for graph in (release.explain_names["fast"], release.name):
        backend.stuck = {graph}
        for body in (SWEEP, GOAL):
            response = requests.post(f"{url}/v1/whatif", json=body, headers={"X-Deadline-Ms": "200"}, timeout=10)
            check(response, 504, "deadline_exceeded")
    assert total(url, "rapport_inflight") == 0
    backend.stuck = set()
    assert requests.post(f"{url}/v1/whatif", json=SWEEP, timeout=10).status_code == 200


@contextmanager
def unanswered(url: str, path: str, body: object) -> Iterator[None]:
    """Somebody who waits for an answer inside the block, and leaves without it."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + content)
        yield


def test_a_client_that_leaves_takes_its_variations_along(start: Start, customers: list[str], release: Release) -> None:
    backend = Stuck()
    url = start(backend, explain_deadline_ms=60_000)
    backend.stuck = {release.name}
    grid = {"entity": C1, "sweep": [{"feature": "spend_90d", "values": list(range(441))}]}
    with unanswered(url, "/v1/whatif", grid):
        explained = release.contract.explanation.explainers["fast"].rows
        # Only the variations are still in the lane: for each 441 rows, as many as explaining a customer costs count 1.
        units = min(math.ceil(441 / explained), 32)
        until(lambda: total(url, "rapport_batch_rows_count", stage="infer") == 2, "never asked")
        assert total(url, "rapport_inflight", lane="explain") == units
    until(lambda: total(url, "rapport_inflight") == 0, "still admitted")
    assert total(url, "rapport_requests_total", route="/v1/whatif", code="499") == 1


def test_it_is_refused_where_there_is_no_room_and_reasons_are_shed_before(
    start: Start, customers: list[str], release: Release
) -> None:
    backend = Stuck()
    url = start(backend, explain_deadline_ms=60_000, max_inflight_explain_rows=32)
    backend.stuck = {release.explain_names["fast"]}
    with unanswered(url, "/v1/explain", {"entities": [C1] * 31}):
        until(lambda: total(url, "rapport_inflight", lane="explain") == 31, "never admitted")
        answer = ask(url, **{key: value for key, value in SWEEP.items() if key != "entity"})
        assert answer["prediction"]["explanations"] is None
        assert "Reasons were left out" in answer["note"]
        assert same(answer["sweep"]["scores"]["purchase_30d"][0], predicted(url, {"orders_90d": 1})["purchase_30d"])
        with unanswered(url, "/v1/explain", {"entities": [C1]}):
            until(lambda: total(url, "rapport_inflight", lane="explain") == 32, "never admitted")
            response = requests.post(f"{url}/v1/whatif", json=SWEEP, timeout=10)
            check(response, 503, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
    until(lambda: total(url, "rapport_inflight") == 0, "still admitted")


@pytest.mark.parametrize("scores", [np.full((2, 3), np.nan, np.float32), np.zeros((1, 3), np.float32)])
def test_variations_that_are_no_scores_are_502(
    start: Start, customers: list[str], release: Release, scores: npt.NDArray[np.float32]
) -> None:
    url = start(changed(release, lambda name, _: {"scores": scores} if name == release.name else {}))

    check(requests.post(f"{url}/v1/whatif", json=SWEEP, timeout=10), 502, "bad_model_output")


@pytest.mark.parametrize("kind", ["embedded", "triton"])
def test_every_backend_gives_the_same_answer(
    request: pytest.FixtureRequest, start: Start, customers: list[str], url: str, kind: str
) -> None:
    backend = EmbeddedBackend() if kind == "embedded" else TritonBackend([request.getfixturevalue("triton").address])
    other = start(backend, redis_timeout_ms=10_000)
    two = [{"feature": "spend_90d"}, {"feature": "preferred_channel"}]
    body: Json = {"sweep": two, "goal": {"task": "purchase_30d", "at_least": 0.6}}
    answers = [ask(gateway, **body) for gateway in (other, url)]

    assert alike(answers[0] | {"request_id": ""}, answers[1] | {"request_id": ""})


def test_openapi_describes_it(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=5).json()
    operation = document["paths"]["/v1/whatif"]["post"]
    schemas = document["components"]["schemas"]

    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/WhatIfRequest")
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/WhatIfResponse")
    assert {"503", "504", "422"} <= operation["responses"].keys()
    for name in ("WhatIfRequest", "Sweep", "Goal", "WhatIfResponse", "Swept", "GoalReport", "Change", "Unreachable"):
        assert schemas[name]["properties"]
    assert {"from", "to"} <= schemas["Change"]["properties"].keys()
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert requests.post(f"{url}/v1/whatif", json=example, timeout=10).status_code == 200


def test_no_body_makes_a_500(url: str) -> None:
    """Parts of good bodies in each other's places, and what no part of one can be."""
    dice = random.Random(4711)
    parts: list[Any] = [
        None, True, 0, -1, 1e38, -1e39, 1e308, 0.5, "", SECRET, "é" * 300, [], {}, [[]], [None], [{}], "orders_90d",
        "preferred_channel", "season_sin", "days_since_purchase", "churn_90d", "high", C1, [C1],
        {"feature": "spend_90d", "values": [None, 1e38, -3e38]}, {"feature": "orders_90d"},
        [{"feature": "mean_gap_days"}, {"feature": "top_category"}], {"task": "spend_90d", "at_least": 1e300},
        {"task": "churn_90d", "segment": "medium"}, {"orders_90d": 3e38, "country": None}, {"spend_90d": -1e30},
    ]  # fmt: skip
    names = ["entity", "model", "version", "features", "tasks", "sweep", "goal", "top", SECRET]
    statuses = set()
    for _ in range(400):
        body = {
            **dice.choice([SWEEP, GOAL, SWEEP | GOAL]),
            **{dice.choice(names): dice.choice(parts) for _ in range(2)},
        }
        response = requests.post(f"{url}/v1/whatif", json=body, timeout=10)
        statuses.add(response.status_code)
        assert response.status_code in (200, 404, 422), (body, response.text)
        assert response.status_code == 200 or SECRET not in response.text
    assert statuses == {200, 404, 422}
