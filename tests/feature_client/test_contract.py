"""What a release promises, on its way through JSON and back."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from feature_client.contract import (
    Contract,
    ContractError,
    Distribution,
    Eligibility,
    Errors,
    Explainer,
    Explanation,
    Importance,
    Segment,
    Task,
    attribution_scale,
    discrepancy,
)
from tests.feature_client.test_schema import NOW, SCHEMA, batch_of

CHURN = Task(
    "churn_90d", "Leaves", "probability", "probability", 90,
    segments=(Segment("high", 0.6), Segment("low", 0.0)), eligibility=Eligibility("silent_days", 180.0),
)  # fmt: skip
SPEND = Task("spend_90d", "Spends", "amount", "EUR", 90)

NONE = {"churn_90d": 0.0, "spend_90d": 0.0}

CONTRACT = Contract(
    model="engagement",
    schema=SCHEMA,
    tasks=(CHURN, SPEND),
    explanation=Explanation(
        32,
        base={"churn_90d": 0.1, "spend_90d": 20.0},
        margin_base={"churn_90d": -2.2, "spend_90d": 3.0},
        explainers={"fast": Explainer("shapley-exact", 128, Errors(NONE, NONE, NONE))},
        importance=Importance(0, {}, {}),
    ),
    reference={"spend": Distribution(0.1, (0.0, 1.0)), "country": Distribution(0.0, shares={"France": 1.0})},
    training={"rows": "6000"},
    metrics={"churn_90d": {"auc": 0.8}},
    digests={"data": "d", "code": "c"},
)


def test_a_contract_survives_json_with_its_digest_and_the_order_of_its_groups() -> None:
    again = Contract.from_json(CONTRACT.to_json())

    assert again == CONTRACT
    assert again.digest == CONTRACT.digest
    assert list(again.schema.groups) == list(SCHEMA.groups)
    assert again.task_names == ("churn_90d", "spend_90d")


def test_the_digest_is_over_content_not_over_formatting() -> None:
    dense = json.dumps(json.loads(CONTRACT.to_json())).encode()

    assert dense != CONTRACT.to_json()
    assert Contract.from_json(dense).digest == CONTRACT.digest


def test_segments_are_named_from_the_highest_to_the_lowest() -> None:
    upside_down = replace(CHURN, segments=CHURN.segments[::-1])

    with pytest.raises(ContractError, match="from the highest to the lowest"):
        replace(CONTRACT, tasks=(upside_down, SPEND))


def test_any_change_of_what_is_promised_changes_the_digest() -> None:
    changed = [
        replace(CONTRACT, model="other"),
        replace(CONTRACT, tasks=(SPEND, CHURN)),
        replace(CONTRACT, schema=replace(SCHEMA, groups=dict(reversed(list(SCHEMA.groups.items()))))),
        replace(CONTRACT, schema=SCHEMA.with_vocabularies({"country": ["Eire", "France"]})),
    ]

    assert len({CONTRACT.digest, *(contract.digest for contract in changed)}) == 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"\xff",
        b"[" * 10_000,
        CONTRACT.to_json()[:-5],
        CONTRACT.to_json().replace(b'"string"', b"7"),
    ],
)
def test_what_is_no_contract_is_a_contract_error(data: bytes) -> None:
    with pytest.raises(ContractError):
        Contract.from_json(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("schema", "features", 0, "group"), "nowhere"),
        (("schema", "features", 0, "name"), "spend"),
        (("tasks", 0, "eligibility", "feature"), "country"),
        (("explanation", "importance", "groups"), {"churn_90d": {"nowhere": 0.1}}),
        (("explanation", "importance", "features"), {"churn_90d": {"nowhere": 0.1}}),
        (("explanation", "importance", "features"), {"churn_90d": {"spend": -0.1}}),
        (("explanation", "explainers", "fast", "by_feature"), True),
        (("reference", "spend", "quantiles"), [1.0, 0.0]),
        (("reference", "spend", "quantiles"), [0.0, 1e300]),
    ],
)
def test_a_contract_that_disagrees_with_itself_is_a_contract_error(path: tuple[Any, ...], value: Any) -> None:
    body = json.loads(CONTRACT.to_json())
    node = body
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value

    with pytest.raises(ContractError):
        Contract.from_json(json.dumps(body).encode())


FAST = json.loads(CONTRACT.to_json())["explanation"]["explainers"]["fast"]


@pytest.mark.parametrize(
    ("explainers", "reason"),
    [
        ({}, "the first of them always and first"),
        ({"exact": FAST}, "the first of them always and first"),
        ({"exact": FAST, "fast": FAST}, "the first of them always and first"),
        ({"fast": FAST, "guessed": FAST}, "explainers are some of fast, precise, exact, features"),
        ({"fast": {**FAST, "rows": "many"}}, "not a contract"),
        ({"fast": FAST, "exact": {**FAST, "error": {**FAST["error"], "scores": {}}}}, "exact says no error"),
        ({"fast": {**FAST, "error": {**FAST["error"], "margins": {"churn_90d": 0.1}}}}, "spend_90d: .*fast says no"),
        ({"fast": {**FAST, "error": {**FAST["error"], "shifted": {**NONE, "spend_90d": -0.1}}}}, "says no error"),
    ],
)
def test_explainers_are_known_ones_the_default_first_and_each_says_its_errors(
    explainers: dict[str, Any], reason: str
) -> None:
    body = json.loads(CONTRACT.to_json())
    body["explanation"]["explainers"] = explainers

    with pytest.raises(ContractError, match=reason):
        Contract.from_json(json.dumps(body).encode())


@pytest.mark.parametrize("error", [math.nan, math.inf, -0.1])
def test_an_error_that_is_no_size_and_a_base_that_is_no_number_are_refused(error: float) -> None:
    fast = CONTRACT.explanation.explainers["fast"]
    unsure = replace(fast, error=replace(fast.error, scores={**NONE, "churn_90d": error}))

    with pytest.raises(ContractError, match="churn_90d: the explainer fast says no error"):
        replace(CONTRACT, explanation=replace(CONTRACT.explanation, explainers={"fast": unsure}))
    said = CONTRACT.explanation
    bases: list[dict[str, float]] = [{}, {**NONE, "spend_90d": math.nan}, {**NONE, "spend_90d": -math.inf}]
    for explanation in (replace(said, base=base) for base in bases):
        with pytest.raises(ContractError, match="the explanation says no base"):
            replace(CONTRACT, explanation=explanation)
    for explanation in (replace(said, margin_base=base) for base in bases):
        with pytest.raises(ContractError, match="the explanation says no base"):
            replace(CONTRACT, explanation=explanation)


def test_an_explainer_that_errs_more_than_its_bound_is_no_part_of_a_release() -> None:
    fast = CONTRACT.explanation.explainers["fast"]
    missed = {**NONE, "spend_90d": 0.09}
    for error in (replace(fast.error, scores=missed), replace(fast.error, margins=missed)):
        bounded = {bound: {"fast": replace(fast, error=error, bound=bound)} for bound in (0.08, 0.09)}
        replace(CONTRACT, explanation=replace(CONTRACT.explanation, explainers=bounded[0.09]))
        with pytest.raises(ContractError, match="spend_90d: the explainer fast errs more than its bound"):
            replace(CONTRACT, explanation=replace(CONTRACT.explanation, explainers=bounded[0.08]))


def test_a_graph_gives_scores_and_that_of_an_explainer_what_they_and_their_margins_are_made_of() -> None:
    fast = CONTRACT.explanation.explainers["fast"]
    explainers = {"fast": fast, "features": replace(fast, by_feature=True)}
    contract = replace(CONTRACT, explanation=replace(CONTRACT.explanation, explainers=explainers))
    groups, features = len(SCHEMA.groups), len(SCHEMA.features)
    assert groups != features

    assert contract.outputs(7, None) == {"scores": (7, 2)}
    for explainer, parts in (("fast", groups), ("features", features)):
        assert contract.outputs(7, explainer) == {
            **dict.fromkeys(("scores", "base", "margins", "margin_base"), (7, 2)),
            **dict.fromkeys(("attributions", "margin_attributions"), (7, 2, parts)),
        }


def test_so_many_are_explained_in_one_run_as_the_network_takes_rows() -> None:
    fast = CONTRACT.explanation.explainers["fast"]

    for rows, entities in ((0, 4_096), (1, 4_096), (64, 64), (65, 63), (4_096, 1), (1_000_000, 1)):
        assert replace(fast, rows=rows).entities_at_once == entities


def test_a_score_has_the_highest_segment_that_it_reaches() -> None:
    assert [CHURN.segment(score) for score in (0.6, 0.59, 0.0, -1.0)] == ["high", "low", "low", None]
    assert CHURN.segment(math.nan) is None
    assert SPEND.segment(5.0) is None


def test_a_task_is_for_those_it_is_defined_for_and_never_for_a_missing_value() -> None:
    batch = batch_of(last_at=[NOW - days * 86_400.0 for days in (0, 180, 181)] + [math.nan])

    assert CONTRACT.eligible(SCHEMA.encode(batch, NOW)).tolist() == [
        [True, True],
        [True, True],
        [False, True],
        [False, True],
    ]


def test_equal_is_within_tolerance_and_nan_never_is() -> None:
    assert discrepancy(1.0 + 1.9e-5, 1.0) <= 1
    assert not discrepancy(1.0 + 2.1e-5, 1.0) <= 1
    assert discrepancy(1000.0, 1000.0 + 0.01) <= 1
    for actual, expected in ((math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)):
        assert not discrepancy(actual, expected) <= 1


def test_parts_are_compared_in_the_size_of_their_whole() -> None:
    attributions = np.array([[[100.0, -100.0, 1.0]]])
    scale = attribution_scale(attributions, np.array([[5.0]]))

    assert scale.tolist() == [[[206.0]]]
    assert (discrepancy(attributions + 1e-3, attributions, scale) <= 1).all()
    assert not (discrepancy(attributions + 1e-3, attributions) <= 1).all()
