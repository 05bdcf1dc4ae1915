"""GET /v1/models/{model}/importance: what moves the scores, as the release's contract says it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests

from feature_client.contract import Explainer, Importance
from feature_client.release import Release
from service.auth import add_key
from service.importance import importance_of
from tests.service.conftest import Start
from tests.service.test_errors import SECRET, check

PATIENCE_S = 120.0
"""For a second release: every graph of it runs its golden rows first."""


def test_every_task_has_its_groups_and_features_the_largest_first(url: str, release: Release) -> None:
    contract = release.contract
    schema, explanation = contract.schema, contract.explanation
    answer = requests.get(f"{url}/v1/models/engagement/importance", timeout=10).json()

    assert (answer["model"], answer["version"]) == ("engagement", release.version)
    assert answer["rows"] == explanation.importance.rows > 0
    assert list(answer["tasks"]) == list(contract.task_names)
    for task in contract.tasks:
        said = answer["tasks"][task.name]
        assert (said["label"], said["unit"], said["base"]) == (task.label, task.unit, explanation.base[task.name])
        parts = said["groups"]["parts"]
        assert {part["name"]: part["label"] for part in parts} == schema.groups
        assert all(part["group"] == part["name"] for part in parts)
        check_ranking(parts, explanation.importance.groups[task.name])
        assert (said["features"] is None) == (not explanation.importance.features[task.name])


def check_ranking(parts: Sequence[dict[str, Any]], means: Mapping[str, float]) -> None:
    listed = [part["mean_absolute_contribution"] for part in parts]

    assert {part["name"]: part["mean_absolute_contribution"] for part in parts} == means
    assert listed == sorted(listed, reverse=True)
    assert listed[0] > 0
    assert sum(part["share"] for part in parts) == pytest.approx(1.0)
    assert [part["share"] for part in parts] == pytest.approx([mean / sum(listed) for mean in listed])


def test_features_are_ranked_as_groups_are(release: Release) -> None:
    """Of a release that has a graph of single features."""
    schema, explanation = release.contract.schema, release.contract.explanation
    means = {name: float(position) for position, name in enumerate(schema.by_name)}
    error = explanation.explainers["fast"].error
    explainers = {**explanation.explainers, "features": Explainer("shapley-by-feature", 100, error, by_feature=True)}
    figures = replace(explanation.importance, features=dict.fromkeys(release.contract.task_names, means))
    contract = replace(release.contract, explanation=replace(explanation, explainers=explainers, importance=figures))

    for task, said in importance_of(contract, "1").tasks.items():
        assert said.features is not None
        assert (said.features.explainer, said.features.method) == ("features", "shapley-by-feature")
        assert said.features.expected_error == error.scores[task]
        assert {part.name: (part.label, part.group) for part in said.features.parts} == {
            feature.name: (feature.label, feature.group) for feature in schema.features
        }
        check_ranking([msgspec.to_builtins(part) for part in said.features.parts], means)


def test_it_says_which_explanations_were_averaged_and_how_wrong_they_are(url: str, release: Release) -> None:
    explainers = release.contract.explanation.explainers
    answer = requests.get(f"{url}/v1/models/engagement/importance", timeout=10).json()

    for task, said in answer["tasks"].items():
        assert said["groups"]["explainer"] == "precise"
        assert said["groups"]["method"] == explainers["precise"].method
        assert said["groups"]["expected_error"] == explainers["precise"].error.scores[task]


def test_a_release_that_knows_no_figures_says_null_and_not_zero(release: Release) -> None:
    nothing = replace(release.contract.explanation, importance=Importance(0, {}, {}))
    contract = replace(release.contract, explanation=nothing)

    for said in importance_of(contract, "1").tasks.values():
        assert said.groups is None
        assert said.features is None


def test_where_nothing_contributes_nobody_has_a_share(release: Release) -> None:
    zeros = dict.fromkeys(release.contract.schema.groups, 0.0)
    importance = Importance(10, dict.fromkeys(release.contract.task_names, zeros), {})
    contract = replace(release.contract, explanation=replace(release.contract.explanation, importance=importance))

    for said in importance_of(contract, "1").tasks.values():
        assert said.groups is not None
        assert [part.share for part in said.groups.parts] == [None] * len(zeros)


def test_a_loaded_version_can_be_asked_for(start: Start, versions: tuple[Release, Release]) -> None:
    first, second = versions
    url = start(models=second.root)
    deadline = time.monotonic() + PATIENCE_S
    while len(requests.get(f"{url}/v1/models", timeout=10).json()["models"][0]["versions"]) < 2:
        assert time.monotonic() < deadline, "the other version was never loaded"
        time.sleep(0.05)
    answers = [
        requests.get(f"{url}/v1/models/engagement/importance", params=params, timeout=10).json()
        for params in ({}, {"version": first.version}, {"version": second.version})
    ]

    assert [answer["version"] for answer in answers] == [second.version, first.version, second.version]
    assert answers[0] == answers[2]
    assert answers[0]["tasks"] != answers[1]["tasks"]


@pytest.mark.parametrize(
    "path",
    [
        f"{SECRET}/importance",
        "engagement/importance?version=99",
        f"engagement/importance?version={SECRET}",
        "engagement/importance?version=",
    ],
)
def test_unknown_models_and_versions_are_404(url: str, path: str) -> None:
    check(requests.get(f"{url}/v1/models/{path}", timeout=10), 404, "unknown_model")


def test_it_takes_a_key_for_predict(start: Start, keys_file: Path) -> None:
    tokens = {scope: add_key(keys_file, scope, (scope,)) for scope in ("predict", "explain", "admin")}
    url = start(keys_file=keys_file)

    def ask(token: str | None) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return requests.get(f"{url}/v1/models/engagement/importance", headers=headers, timeout=10)

    assert ask(tokens["predict"]).status_code == 200
    check(ask(tokens["explain"]), 403, "forbidden")
    check(ask(tokens["admin"]), 403, "forbidden")
    check(ask(None), 401, "unauthenticated")


def test_its_answer_and_its_parameters_are_documented(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()

    operation = document["paths"]["/v1/models/{model}/importance"]["get"]
    assert {(one["name"], one["in"], one.get("required", False)) for one in operation["parameters"]} == {
        ("model", "path", True),
        ("version", "query", False),
    }
    answered = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert set(document["components"]["schemas"][answered.rpartition("/")[2]]["properties"]) == {
        "model", "version", "rows", "tasks"
    }  # fmt: skip
    assert {"401", "403", "404"} <= set(operation["responses"])
    assert operation["security"] == [{"key": []}]
