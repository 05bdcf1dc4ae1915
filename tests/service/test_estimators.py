"""Releases of trees beside those of the network: answers, reasons and routes, on every backend."""

import shutil
from pathlib import Path

import pytest
import requests

from feature_client.release import Release
from model_export.republish import take_over
from service.backends import Backend
from service.backends.embedded import EmbeddedBackend
from service.backends.triton import TritonBackend
from tests.model_export.tiny_release import with_explainers
from tests.service.conftest import Start
from tests.service.test_backends import alike
from tests.service.test_canary import CROWD, versions, write_routes
from tests.service.test_operations import total, until
from tests.service.test_predict import close, explain, predict

NETWORK, TREES, BY_GROUPS = "1", "2", "3"
"""Versions: the network, trees, and these again with the default explainer alone."""


@pytest.fixture(scope="module")
def repository(release: Release, trees_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kinds")
    shutil.copytree(release.root, root, dirs_exist_ok=True)
    with_explainers(take_over(trees_release.directory, root), root, ["fast"])
    return root


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """The same releases, and routes of its own."""
    return Path(shutil.copytree(repository, tmp_path / "models"))


def route(models: Path, champion: str, **more: str) -> None:
    lines = ["[engagement]", f"champion = {champion}", *(f"{name} = {value}" for name, value in more.items())]
    write_routes(models, "\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", ["embedded", "triton"])
def test_trees_predict_and_explain(
    kind: str, start: Start, customers: list[str], models: Path, request: pytest.FixtureRequest
) -> None:
    route(models, TREES)
    backend: Backend = EmbeddedBackend()
    if kind == "triton":
        backend = TritonBackend([request.getfixturevalue("triton").address])
    url, usual = start(backend, models=models), start(models=models)
    for asked in (
        {},
        {"space": "margin"},
        {"tolerance": 0.0, "budget_ms": 5_000},
        {"detail": "features"},
        {"detail": "features", "space": "margin", "top": 2},
    ):
        answer, expected = explain(url, *customers, "nobody", **asked), explain(usual, *customers, "nobody", **asked)
        assert alike(answer | {"request_id": expected["request_id"]}, expected)
        for one in answer["predictions"]:
            assert one["version"] == TREES
            for task, why in one["explanations"].items():
                if why is not None and "space" not in asked:
                    assert close(why["score"], one["scores"][task])
                    parts = [why["base"], *(reason["contribution"] for reason in why["reasons"])]
                    assert sum(parts) == pytest.approx(why["score"], rel=1e-4, abs=1e-5)
    scores = predict(url, *customers)["predictions"]
    assert alike(scores, predict(usual, *customers)["predictions"])
    assert len({one["scores"]["purchase_30d"] for one in scores}) > 1


def test_a_model_says_what_it_is_made_of(start: Start, customers: list[str], models: Path) -> None:
    for version, kind, made_by in (
        (NETWORK, "network", "one network"),
        (TREES, "lightgbm", "boosted trees (LightGBM)"),
    ):
        route(models, version)
        answer = requests.get(f"{start(models=models)}/v1/models/engagement", timeout=5).json()
        assert answer["contract"]["training"]["estimator"] == kind
        assert made_by in answer["card"]


@pytest.mark.parametrize(("champion", "challenger"), [(NETWORK, TREES), (TREES, NETWORK)])
def test_a_canary_of_another_kind_answers_its_customers(
    champion: str, challenger: str, start: Start, customers: list[str], models: Path
) -> None:
    route(models, champion, canary=f"{{version = {challenger}, percent = 50}}")
    url = start(models=models)
    answer = explain(url, *CROWD[:30], *customers[:2])
    assert set(versions(answer).values()) == {NETWORK, TREES}
    for one in answer["predictions"]:
        customer = one["entity"]["customer_id"]
        [alone] = explain(url, customer, version=one["version"])["predictions"]
        assert alike(one, alone)
    both = [predict(url, "c1", version=version)["predictions"][0]["scores"] for version in (NETWORK, TREES)]
    assert not close(both[0]["purchase_30d"], both[1]["purchase_30d"])


@pytest.mark.parametrize(("champion", "challenger"), [(NETWORK, TREES), (TREES, NETWORK)])
def test_a_shadow_of_another_kind_scores_the_same_rows(
    champion: str, challenger: str, start: Start, customers: list[str], models: Path, tmp_path: Path
) -> None:
    route(models, champion, shadow=f"[{challenger}]")
    url = start(models=models, shadow_dir=tmp_path / "pairs")
    until(lambda: total(url, "rapport_release_info", version=challenger, role="shadow") == 1, "no shadow")
    answer = predict(url, *customers, *CROWD)
    assert set(versions(answer).values()) == {champion}
    labels = {"model": "engagement", "version": challenger, "outcome": "scored"}
    rows = len(customers) + len(CROWD)
    until(lambda: total(url, "rapport_shadow_rows_total", **labels) == rows, "rows are missing")


def test_what_a_release_cannot_explain_is_refused_by_its_name(start: Start, customers: list[str], models: Path) -> None:
    route(models, BY_GROUPS)
    url = start(models=models)
    assert explain(url, "c1")["predictions"][0]["version"] == BY_GROUPS
    body = {"entities": [{"customer_id": "c1"}], "detail": "features"}
    refused = requests.post(f"{url}/v1/explain", json=body, timeout=5)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert "engagement.3 explains by groups alone, it has no graph of single features" in refused.json()["detail"]
