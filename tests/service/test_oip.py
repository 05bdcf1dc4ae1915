"""The Open Inference Protocol at /v2 by hand: what is answered, what is refused, and that nothing else happens."""

import asyncio
import json
import shutil
import struct
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import requests
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from redis import Redis

from feature_client.contract import attribution_scale, discrepancy
from feature_client.golden import SPLIT_UP
from feature_client.release import EXPLAIN_SUFFIX, Release, graph_file
from service.app import create_app
from service.auth import add_key
from service.errors import InvalidJson, InvalidRequest
from service.explainers import weight_of
from service.local_triton import LocalTriton
from service.oip import entities_of
from service.oip_body import read_question
from service.oip_tensors import tensor_rows
from service.settings import Settings
from tests.feast_layout import store
from tests.model_export.tiny_release import AS_OF
from tests.service.conftest import Start, rows_of, wait_ready
from tests.service.serving import running
from tests.service.test_direct import answer as answer_of
from tests.service.test_direct import connected
from tests.service.test_errors import SECRET, golden
from tests.service.test_operations import gateway_process, total, until

PATIENT = {"X-Deadline-Ms": "30000"}
HEADER = "Inference-Header-Content-Length"
IDS = {"name": "customer_id", "shape": [1], "datatype": "BYTES", "data": ["c1"]}
GOOD = {"inputs": [IDS]}
OUTPUTS = ("scores", "attributions", "base", "margins", "margin_attributions", "margin_base")
"""Of an explainer."""
JSON = dict[str, Any]


def infer(url: str, body: object, model: str = "engagement", **headers: str) -> JSON:
    response = requests.post(f"{url}/v2/models/{model}/infer", json=body, headers={**PATIENT, **headers}, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()  # type: ignore[no-any-return]


def refused(response: requests.Response, status: int, code: str) -> str:
    """It is this problem, for clients of both kinds, and holds nothing of the input. Returns what it says."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) <= 1_000
    assert SECRET not in response.text
    problem = response.json()
    assert problem["code"] == code
    assert problem["error"] == problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    return str(problem["error"])


def equal(answer: JSON, expected: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether all outputs of an answer are these: parts in the size of their whole."""
    return all(
        (
            discrepancy(
                values(answer, name),
                tensor,
                attribution_scale(tensor, expected[SPLIT_UP[name]]) if name in SPLIT_UP else 0.0,
            )
            <= 1
        ).all()
        for name, tensor in expected.items()
    )


def values(answer: JSON, name: str) -> npt.NDArray[Any]:
    [output] = [output for output in answer["outputs"] if output["name"] == name]
    kind = {"FP32": np.float32, "BOOL": np.bool_, "BYTES": np.object_}[output["datatype"]]
    return np.array(output["data"], dtype=kind).reshape(output["shape"])


def ids(*customers: str) -> JSON:
    return {"inputs": [{**IDS, "shape": [len(customers)], "data": list(customers)}]}


@pytest.fixture(scope="session")
def rows(release: Release) -> Mapping[str, npt.NDArray[Any]]:
    """The release's golden questions: numbers of all sizes, missing ones, and every kind of category."""
    with np.load(release.golden) as file:
        return {name: file[name] for name in ("numeric", "categorical")}


def tensors(rows: Mapping[str, npt.NDArray[Any]], *, nested: bool = False) -> JSON:
    """As JSON, null where a number is missing."""
    listed = {
        "numeric": [[None if np.isnan(value) else value for value in row] for row in rows["numeric"].tolist()],
        "categorical": rows["categorical"].tolist(),
    }
    return {
        "inputs": [
            {
                "name": name,
                "shape": list(rows[name].shape),
                "datatype": {"numeric": "FP32", "categorical": "INT64"}[name],
                "data": lists if nested else [value for row in lists for value in row],
            }
            for name, lists in listed.items()
        ]
    }


def binary(rows: Mapping[str, npt.NDArray[Any]]) -> tuple[JSON, bytes]:
    body = tensors(rows)
    for tensor in body["inputs"]:
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": rows[tensor["name"]].nbytes}
    return body, b"".join(rows[tensor["name"]].tobytes() for tensor in body["inputs"])


def post_binary(url: str, head: JSON | bytes, behind: bytes, header: object = None) -> requests.Response:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    headers = {**PATIENT, HEADER: str(len(text) if header is None else header)}
    return requests.post(f"{url}/v2/models/engagement/infer", data=text + behind, headers=headers, timeout=30)


def runtime(
    release: Release, rows: Mapping[str, npt.NDArray[Any]], explainer: str | None
) -> Mapping[str, npt.NDArray[Any]]:
    """What ONNX Runtime itself says of the same file."""
    session = ort.InferenceSession(str(graph_file(release.root / release.graph_name(explainer))))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(rows)), strict=True))


# What is answered


def test_the_server_and_its_health_need_no_key(start: Start, customers: list[str], keys_file: Path) -> None:
    add_key(keys_file, "app", ("predict",))
    url = start(keys_file=keys_file)

    server = requests.get(f"{url}/v2", timeout=5).json()
    assert server["name"] == "rapport"
    assert "binary_tensor_data" in server["extensions"]
    assert requests.get(f"{url}/v2/health/live", timeout=5).json() == {"live": True}
    assert requests.get(f"{url}/v2/health/ready", timeout=5).json()["ready"] is True
    refused(requests.get(f"{url}/v2/models/engagement", timeout=5), 401, "unauthenticated")


def test_before_a_release_is_loaded_nothing_is_ready(start: Start, tmp_path: Path) -> None:
    url = start(models=tmp_path, ready=False)

    assert requests.get(f"{url}/v2/health/live", timeout=5).status_code == 200
    assert requests.get(f"{url}/v2/health/ready", timeout=5).status_code == 503
    for path in ("", "/ready", "/config"):
        refused(requests.get(f"{url}/v2/models/engagement{path}", timeout=5), 503, "not_ready")
    refused(requests.post(f"{url}/v2/models/engagement/infer", json=GOOD, timeout=5), 503, "not_ready")


def test_metadata_names_tensors_and_their_columns(url: str, release: Release) -> None:
    schema = release.contract.schema
    model = requests.get(f"{url}/v2/models/engagement", timeout=5).json()
    explain = requests.get(f"{url}/v2/models/engagement.explain/versions/{release.version}", timeout=5).json()

    assert model["versions"] == [release.version]
    assert model["inputs"] == explain["inputs"] == [
        {"name": "numeric", "datatype": "FP32", "shape": [-1, len(schema.numeric)]},
        {"name": "categorical", "datatype": "INT64", "shape": [-1, len(schema.categorical)]},
    ]  # fmt: skip
    assert [output["name"] for output in model["outputs"]] == ["scores"]
    assert {output["name"]: output["shape"] for output in explain["outputs"]} == {
        output: [-1, 3, 8] if output.endswith("attributions") else [-1, 3] for output in OUTPUTS
    }
    columns = model["parameters"]["columns"]
    assert columns["numeric"] == [feature.name for feature in schema.numeric]
    assert columns["categorical"]["country"][2:] == list(schema.by_name["country"].vocabulary)
    assert columns["tasks"] == list(release.contract.task_names)
    assert columns["groups"] == list(schema.groups)
    assert columns["features"] == [feature.name for feature in schema.features]
    assert [one["name"] for one in model["parameters"]["instead_of_tensors"]["inputs"]] == ["customer_id"]
    config = requests.get(f"{url}/v2/models/engagement/config", timeout=5).json()
    assert [(one["name"], one["dims"]) for one in config["input"]] == [("numeric", [12]), ("categorical", [3])]
    index = requests.post(f"{url}/v2/repository/index", timeout=5).json()
    models = ["engagement", *(f"engagement.{EXPLAIN_SUFFIX[one]}" for one in release.manifest.explainers)]
    assert models[:2] == ["engagement", "engagement.explain"]
    assert [(one["name"], one["version"], one["state"]) for one in index] == [
        (model, release.version, "READY") for model in models
    ]


@pytest.mark.parametrize("sent", ["flat", "nested", "binary"])
def test_tensors_get_the_answers_of_the_graph(
    url: str, release: Release, rows: Mapping[str, npt.NDArray[Any]], sent: str
) -> None:
    if sent == "binary":
        answer = post_binary(url, *binary(rows)).json()
    else:
        answer = infer(url, tensors(rows, nested=sent == "nested"))

    assert (answer["model_name"], answer["model_version"]) == ("engagement", release.version)
    assert [output["name"] for output in answer["outputs"]] == ["scores"]
    assert (discrepancy(values(answer, "scores"), runtime(release, rows, None)["scores"]) <= 1).all()


def test_tensors_are_explained_by_every_explainer(
    url: str, release: Release, rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    assert {"fast", "exact"} <= set(release.manifest.explainers)
    for explainer in release.manifest.explainers:
        model = f"engagement.{EXPLAIN_SUFFIX[explainer]}"
        answer = infer(url, tensors(rows), model)

        assert (answer["model_name"], answer["model_version"]) == (model, release.version)
        assert {name: tuple(values(answer, name).shape) for name in OUTPUTS} == release.contract.outputs(
            len(rows["numeric"]), explainer
        )
        assert equal(answer, runtime(release, rows, explainer)), explainer


def test_customers_are_explained_by_every_explainer(
    url: str, redis: "Redis", release: Release, rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    """What ONNX Runtime says of their features, encoded here."""
    schema, crowd = release.contract.schema, [f"explained-{number}" for number in range(5)]
    fields: dict[str, list[Any]] = {}
    for number, customer in enumerate(crowd):
        stored = rows_of(customer)
        stored["orders"][1]["orders_90d"] = float(number)
        store(redis, schema, customer, stored)
        for _, row in stored.values():
            for field, value in row.items():
                fields.setdefault(field, []).append(value)
    del fields["customer_id"]
    columns = {
        name: np.array(column, object if isinstance(column[0], str) else float) for name, column in fields.items()
    }
    event_times = np.array([[stored[view][0] for view in schema.views]] * len(crowd))
    encoded = schema.encode(schema.batch(columns, event_times), AS_OF.timestamp())
    assert release.contract.eligible(encoded).all()

    for explainer in release.manifest.explainers:
        answer = infer(url, ids(*crowd), f"engagement.{EXPLAIN_SUFFIX[explainer]}")

        assert values(answer, "status").tolist() == ["ok"] * len(crowd)
        assert equal(answer, runtime(release, encoded.tensors, explainer)), explainer


def test_triton_behind_the_gateway_gives_the_answers_of_the_graph(
    triton: LocalTriton,
    release: Release,
    redis_url: str,
    customers: list[str],
    rows: Mapping[str, npt.NDArray[Any]],
) -> None:
    settings = Settings(
        backend="triton", triton=triton.address, models=release.root, redis=redis_url, as_of=AS_OF, log_level="warning"
    )
    few = {name: tensor[:5] for name, tensor in rows.items()}
    models = {explainer: f"engagement.{EXPLAIN_SUFFIX[explainer]}" for explainer in release.manifest.explainers}
    with running(create_app(settings)) as url:
        wait_ready(url)
        scored = infer(url, tensors(rows))
        explained = {explainer: infer(url, tensors(few), model) for explainer, model in models.items()}
        by_id = {explainer: infer(url, ids(*customers), model) for explainer, model in models.items()}

    assert equal(scored, runtime(release, rows, None))
    for explainer in models:
        assert equal(explained[explainer], runtime(release, few, explainer)), explainer
        assert values(by_id[explainer], "status").tolist() == ["ok"] * 3


def test_customers_get_the_answers_of_v1(url: str, customers: list[str], release: Release) -> None:
    asked = [*customers, "nobody", "c1"]
    answer = infer(url, ids(*asked))
    body = {"entities": [{"customer_id": customer} for customer in asked]}
    v1 = requests.post(f"{url}/v1/predict", json=body, headers=PATIENT, timeout=30).json()

    tasks = release.contract.task_names
    scores, applicable = values(answer, "scores"), values(answer, "applicable")
    for row, prediction in enumerate(v1["predictions"]):
        assert values(answer, "status")[row] == prediction["status"]
        assert values(answer, "version")[row] == prediction["version"]
        for column, task in enumerate(tasks):
            score = prediction["scores"][task]
            assert applicable[row, column] == (score is not None)
            assert score is None if np.isnan(scores[row, column]) else discrepancy(scores[row, column], score) <= 1
    assert not applicable.all()
    assert answer["parameters"]["as_of"] == v1["as_of"]


def test_customers_get_the_reasons_of_v1(url: str, customers: list[str], release: Release) -> None:
    answer = infer(url, ids(*customers), "engagement.explain")
    body = {"entities": [{"customer_id": customer} for customer in customers]}
    v1 = requests.post(f"{url}/v1/explain", json=body, headers=PATIENT, timeout=30).json()

    attributions, base = values(answer, "attributions"), values(answer, "base")
    groups = list(release.contract.schema.groups)
    compared = 0
    for row, prediction in enumerate(v1["predictions"]):
        for column, task in enumerate(release.contract.task_names):
            explanation = prediction["explanations"][task]
            if explanation is None:
                assert np.isnan(attributions[row, column]).all()
                assert np.isnan(base[row, column])
                continue
            assert discrepancy(base[row, column], explanation["base"]) <= 1
            for reason in explanation["reasons"]:
                found = attributions[row, column, groups.index(reason["group"])]
                assert discrepancy(found, reason["contribution"], abs(explanation["base"])) <= 1
                compared += 1
    assert compared == 8 * len(groups)  # of nine answers one is not defined


def test_ids_may_be_binary_and_of_two_dimensions(url: str, customers: list[str]) -> None:
    behind = b"".join(struct.pack("<I", len(one)) + one.encode() for one in customers)
    head = {"inputs": [{**IDS, "shape": [3, 1], "parameters": {"binary_data_size": len(behind)}}]}
    del head["inputs"][0]["data"]

    assert post_binary(url, head, behind).json()["outputs"] == infer(url, ids(*customers))["outputs"]


def test_outputs_are_those_asked_for_each_as_it_is_wanted(url: str, customers: list[str]) -> None:
    body = ids(*customers) | {
        "id": "forty-two",
        "outputs": [
            {"name": "applicable", "parameters": {"binary_data": True}},
            {"name": "status"},
            {"name": "version", "parameters": {"binary_data": True}},
        ],
    }
    response = requests.post(f"{url}/v2/models/engagement/infer", json=body, headers=PATIENT, timeout=30)

    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers[HEADER])
    head, behind = json.loads(response.content[:size]), response.content[size:]
    assert head["id"] == "forty-two"
    assert [output["name"] for output in head["outputs"]] == ["applicable", "status", "version"]
    assert head["outputs"][1]["data"] == ["ok", "ok", "ok"]
    assert [output["parameters"]["binary_data_size"] for output in head["outputs"][::2]] == [9, 15]
    assert behind == np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1]], np.uint8).tobytes() + b"\1\0\0\0001" * 3


def test_the_largest_requests_are_answered(url: str, release: Release, rows: Mapping[str, npt.NDArray[Any]]) -> None:
    many = {name: np.resize(tensor, (1_000, tensor.shape[1])) for name, tensor in rows.items()}

    expected = runtime(release, many, None)["scores"]
    assert (discrepancy(values(infer(url, tensors(many)), "scores"), expected) <= 1).all()
    assert post_binary(url, *binary(many)).status_code == 200
    assert values(infer(url, ids(*(f"m{n}" for n in range(1_000)))), "scores").shape == (1_000, 3)
    assert values(infer(url, ids(*(f"m{n}" for n in range(32))), "engagement.explain"), "base").shape == (32, 3)


@pytest.fixture
def both(start: Start, two_releases: Release, tmp_path: Path) -> str:
    """Version 1 is the champion, and version 2 answers half of the customers."""
    shutil.copytree(two_releases.root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "routes.toml").write_text("[engagement]\nchampion = 1\ncanary = {version = 2, percent = 50}\n")
    url = start(models=tmp_path)
    until(
        lambda: requests.get(f"{url}/v2/models/engagement", timeout=5).json()["versions"] == ["1", "2"], "one release"
    )
    return url


def test_the_route_decides_for_customers_and_the_champion_has_the_tensors(
    both: str, redis: "Redis", release: Release, rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    crowd = [f"crowd-{number}" for number in range(30)]
    for customer in crowd:
        store(redis, release.contract.schema, customer, rows_of(customer))
    body = {"entities": [{"customer_id": customer} for customer in crowd]}
    v1 = requests.post(f"{both}/v1/predict", json=body, headers=PATIENT, timeout=30).json()["predictions"]

    scored, explained = infer(both, ids(*crowd)), infer(both, ids(*crowd), "engagement.explain")
    assert set(values(scored, "version")) == {"1", "2"}
    for answer in (scored, explained):
        assert "model_version" not in answer
        assert values(answer, "version").tolist() == [one["version"] for one in v1]
        expected = np.array([[one["scores"][task] for task in release.contract.task_names] for one in v1])
        assert (discrepancy(values(answer, "scores"), expected) <= 1).all()
    assert infer(both, tensors(rows))["model_version"] == "1"


def test_those_who_ask_together_get_their_own(url: str, release: Release, rows: Mapping[str, npt.NDArray[Any]]) -> None:
    expected = runtime(release, rows, "fast")
    bodies = [
        tensors({name: tensor[row : row + 1] for name, tensor in rows.items()}) for row in range(len(expected["base"]))
    ]

    def asked(row: int) -> bool:
        scores = values(infer(url, bodies[row]), "scores")
        base = values(infer(url, bodies[row], "engagement.explain"), "base")
        return bool((discrepancy(scores[0], expected["scores"][row]) <= 1).all()) and base.shape == (1, 3)

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(asked, [*range(len(bodies))] * 4))


def test_a_version_in_the_path_is_the_one_that_answers(
    both: str, release: Release, two_releases: Release, rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    url = both
    path = "engagement/versions/2"

    for asked, answers in (("engagement/versions/1", release), (path, two_releases)):
        answer = infer(url, tensors(rows), asked)
        assert answer["model_version"] == answers.version
        assert (discrepancy(values(answer, "scores"), runtime(answers, rows, None)["scores"]) <= 1).all()
        assert set(values(infer(url, ids("c1", "c2"), asked), "version")) == {answers.version}
    assert requests.get(f"{url}/v2/models/{path}/ready", timeout=5).json()["ready"] is True
    refused(requests.get(f"{url}/v2/models/engagement/versions/99/ready", timeout=5), 404, "unknown_model")


def three_of(fast_alone: Release, tmp_path: Path, start: Start, route: str) -> str:
    """A gateway with versions 1 and 2, and 3, which has the default explainer alone."""
    shutil.copytree(fast_alone.root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "routes.toml").write_text(f"[engagement]\n{route}\n")
    url = start(models=tmp_path)

    def versions() -> object:
        return requests.get(f"{url}/v2/models/engagement", timeout=5).json()["versions"]

    until(lambda: versions() == ["1", "2", "3"], "not all of them")
    return url


def test_a_version_has_the_explainers_that_it_was_published_with(
    start: Start, customers: list[str], fast_alone: Release, rows: Mapping[str, npt.NDArray[Any]], tmp_path: Path
) -> None:
    url = three_of(fast_alone, tmp_path, start, "champion = 1\nstandby = [2, 3]")
    few = {name: tensor[:2] for name, tensor in rows.items()}

    for model, versions in (("engagement", "123"), ("engagement.explain", "123"), ("engagement.explain_exact", "12")):
        assert requests.get(f"{url}/v2/models/{model}", timeout=5).json()["versions"] == [*versions]
        listed = requests.post(f"{url}/v2/repository/index", timeout=5).json()
        assert [one["version"] for one in listed if one["name"] == model] == [*versions]
        for version in "123":
            path = f"{url}/v2/models/{model}/versions/{version}"
            if version in versions:
                assert requests.get(f"{path}/ready", timeout=5).json() == {"name": model, "ready": True}
                for body in (tensors(few), ids("c1")):
                    assert infer(url, body, f"{model}/versions/{version}")["model_version"] == version
                continue
            for below in ("", "/ready", "/config"):
                refused(requests.get(path + below, timeout=5), 404, "unknown_model")
            for body in (tensors(few), ids("c1")):
                refused(requests.post(f"{path}/infer", json=body, timeout=5), 404, "unknown_model")


def test_a_champion_without_an_explainer_leaves_it_to_the_versions_that_have_it(
    start: Start, customers: list[str], fast_alone: Release, tmp_path: Path
) -> None:
    url = three_of(fast_alone, tmp_path, start, "champion = 3\nprevious = 1\nstandby = [2]")

    for below in ("", "/ready", "/config"):
        path = f"{url}/v2/models/engagement.explain_exact{below}"
        refused(requests.get(path, timeout=5), 404, "unknown_model")
    path = f"{url}/v2/models/engagement.explain_exact/infer"
    refused(requests.post(path, json=ids("c1"), timeout=5), 404, "unknown_model")
    assert infer(url, ids("c1"), "engagement.explain")["model_version"] == "3"
    assert infer(url, ids("c1"), "engagement.explain_exact/versions/1")["model_version"] == "1"


def test_a_canary_without_an_explainer_answers_none_of_its_customers_by_it(
    start: Start, redis: "Redis", fast_alone: Release, tmp_path: Path
) -> None:
    url = three_of(fast_alone, tmp_path, start, "champion = 2\nstandby = [1]\ncanary = {version = 3, percent = 50}")
    crowd = [f"crowd-{number}" for number in range(30)]
    for customer in crowd:
        store(redis, fast_alone.contract.schema, customer, rows_of(customer))
    arms: dict[str, list[str]] = {"2": [], "3": []}
    for customer, version in zip(crowd, values(infer(url, ids(*crowd)), "version"), strict=True):
        arms[version].append(customer)
    exact = "engagement.explain_exact"

    assert values(infer(url, ids(*crowd), "engagement.explain"), "version").tolist().count("3") == len(arms["3"]) > 0
    assert infer(url, ids(*arms["2"]), exact)["model_version"] == "2"
    assert infer(url, ids(*crowd), f"{exact}/versions/2")["model_version"] == "2"
    for asked in (crowd, arms["3"], arms["3"][:1]):
        response = requests.post(f"{url}/v2/models/{exact}/infer", json=ids(*asked), headers=PATIENT, timeout=30)
        assert "ask for one version" in refused(response, 422, "invalid_request")
    # /v1 takes what each has.
    body = {"entities": [{"customer_id": customer} for customer in crowd], "tolerance": 0.0}
    answer = requests.post(f"{url}/v1/explain", json=body, headers=PATIENT, timeout=30).json()
    assert {one["version"] for one in answer["predictions"]} == {"2", "3"}
    assert total(url, "rapport_inflight") == 0


@pytest.mark.parametrize(
    "suffix", ["explain_nonsense", "explain_fast", "explain_", "exact", "Explain", "explain_exact."]
)
def test_an_explainer_that_no_release_has_is_an_unknown_model(url: str, suffix: str) -> None:
    path = f"{url}/v2/models/engagement.{suffix}"
    for below in ("", "/ready", "/config", "/versions/1", "/versions/1/ready"):
        refused(requests.get(path + below, timeout=5), 404, "unknown_model")
    for below in ("/infer", "/versions/1/infer"):
        refused(requests.post(path + below, json=GOOD, timeout=5), 404, "unknown_model")


def test_an_explained_entity_counts_what_its_explainer_costs(
    start: Start, customers: list[str], release: Release
) -> None:
    """In the lane of explanations, in which one that is alone is never too large."""
    backend = golden(release)
    weight = weight_of(release.contract, "exact")
    url = start(backend, max_inflight_explain_rows=32, explain_deadline_ms=60_000)
    backend.delay_s = 3_600.0
    body, path = ids(*["c1"] * 32), f"{url}/v2/models/engagement"

    def asked(model: str) -> requests.Response:
        headers = {"X-Deadline-Ms": "5000"}
        return requests.post(f"{path}.{model}/infer", json=body, headers=headers, timeout=30)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(asked, "explain_exact")
        until(lambda: total(url, "rapport_inflight", lane="explain") == 32 * weight, "never admitted")
        refused(asked("explain"), 503, "overloaded")
        refused(first.result(), 504, "deadline_exceeded")
    until(lambda: total(url, "rapport_inflight", lane="explain") == 0, "still admitted")
    assert total(url, "rapport_inflight", lane="predict") == 0
    assert total(url, "rapport_shed_total", lane="explain") == 1


def test_requests_are_counted_under_a_closed_set_of_routes(
    start: Start, customers: list[str], rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    url = start()
    infer(url, tensors(rows))
    infer(url, GOOD)
    requests.post(f"{url}/v2/models/{SECRET}/infer", json=GOOD, timeout=5)

    text = requests.get(f"{url}/metrics", timeout=5).text
    assert 'rapport_requests_total{code="200",model="engagement",route="/v2/models/{model}/infer"} 2.0' in text
    assert 'rapport_requests_total{code="404",model="-",route="/v2/models/{model}/infer"} 1.0' in text
    assert f'status="tensors",version="1"}} {float(len(rows["numeric"]))}' in text
    assert SECRET not in text


def test_the_documentation_has_the_protocol(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=5).json()

    model = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    below = [path + end for path in model for end in ("", "/ready", "/config", "/infer")]
    expected = {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index", *below}
    assert {path for path in document["paths"] if path.startswith("/v2")} == expected
    question = document["paths"][below[3]]["post"]
    assert "InferRequest" in json.dumps(question["requestBody"])
    assert "InferResponse" in json.dumps(question["responses"]["200"])
    example = question["requestBody"]["content"]["application/json"]["example"]
    assert values(infer(url, example), "status").tolist() == ["unknown_entity"]


# What is refused


def test_a_route_that_rejects_unknown_customers_gives_no_score(
    start: Start, customers: list[str], release: Release, tmp_path: Path
) -> None:
    shutil.copytree(release.root, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "routes.toml").open("a") as routes:
        routes.write('unknown = "reject"\n')
    url = start(models=tmp_path)

    for model in ("engagement", "engagement.explain"):
        response = requests.post(f"{url}/v2/models/{model}/infer", json=ids("c1", SECRET), headers=PATIENT, timeout=30)
        assert refused(response, 422, "invalid_request").startswith("customer_id[1]")
        infer(url, ids("c1"), model)


def changed(body: JSON, path: str, value: object) -> JSON:
    """A copy in which the member at `path` is `value`, or is gone where that is `...`."""
    body = deepcopy(body)
    *way, last = path.split(".")
    member: Any = body
    for step in way:
        member = member[int(step) if isinstance(member, list) else step]
    if value is ...:
        del member[last]
    elif isinstance(member, list):
        member[int(last) :] = [value]
    else:
        member[last] = value
    return body


WRONG_TENSORS: dict[str, tuple[str, object]] = {
    "no inputs": ("inputs", ...),
    "inputs are empty": ("inputs", []),
    "inputs are an object": ("inputs", {}),
    "one is missing": ("inputs.1", IDS),
    "unknown input": ("inputs.1.name", SECRET),
    "same input twice": ("inputs.1.name", "numeric"),
    "unknown member": (SECRET, 1),
    "unknown member of an input": (f"inputs.0.{SECRET}", 1),
    "another model": ("model_name", SECRET),
    "another version": ("model_version", "2"),
    "id is a number": ("id", 7),
    "id is long": ("id", SECRET * 100),
    "unknown output": ("outputs", [{"name": SECRET}]),
    "output of ids": ("outputs", [{"name": "status"}]),
    "output twice": ("outputs", [{"name": "scores"}, {"name": "scores"}]),
    "binary_data is text": ("outputs", [{"name": "scores", "parameters": {"binary_data": SECRET}}]),
    "classification": ("outputs", [{"name": "scores", "parameters": {"classification": 2}}]),
    "shared memory out": ("outputs", [{"name": "scores", "parameters": {"shared_memory_region": SECRET}}]),
    "shared memory in": ("inputs.0.parameters", {"shared_memory_region": SECRET, "shared_memory_byte_size": 8}),
    "binary_data_output is a number": ("parameters", {"binary_data_output": 1}),
    "sequence": ("parameters", {"sequence_id": 7, "sequence_start": True}),
    "timeout is text": ("parameters", {"timeout": "1"}),
    "timeout is true": ("parameters", {"timeout": True}),
    "timeout is negative": ("parameters", {"timeout": -1}),
    "timeout is beyond any float": ("parameters", {"timeout": 10**400}),
    "parameter is a list": ("parameters", {"timeout": [1]}),
    "FP64": ("inputs.0.datatype", "FP64"),
    "unknown datatype": ("inputs.0.datatype", SECRET),
    "INT32": ("inputs.1.datatype", "INT32"),
    "no shape": ("inputs.0.shape", ...),
    "shape is empty": ("inputs.0.shape", []),
    "shape of one": ("inputs.0.shape", [24]),
    "shape of three": ("inputs.0.shape", [2, 12, 1]),
    "transposed": ("inputs.0.shape", [12, 2]),
    "more rows than data": ("inputs.0.shape", [3, 12]),
    "rows disagree": ("inputs.1", {"name": "categorical", "shape": [1, 3], "datatype": "INT64", "data": [0, 0, 0]}),
    "no rows": ("inputs.0", {"name": "numeric", "shape": [0, 12], "datatype": "FP32", "data": []}),
    "negative": ("inputs.0.shape", [-2, -12]),
    "absurd": ("inputs.0.shape", [2**60, 12]),
    "beyond 64 bits": ("inputs.0.shape", [2**70, 12]),
    "half a row": ("inputs.0.shape", [1.5, 12]),
    "rows as text": ("inputs.0.shape", ["2", 12]),
    "no data": ("inputs.0.data", ...),
    "data is null": ("inputs.0.data", None),
    "data is a number": ("inputs.0.data", 1.0),
    "too few": ("inputs.0.data", [1.0]),
    "a number as text": ("inputs.0.data.23", SECRET),
    "NaN as text": ("inputs.0.data.23", "NaN"),
    "true": ("inputs.0.data.23", True),
    "a list": ("inputs.0.data.23", [1.0]),
    "1e39": ("inputs.0.data.23", 1e39),
    "-1e39": ("inputs.0.data.23", -1e39),
    "uneven": ("inputs.0.data", [[1.0] * 13, [1.0] * 11]),
    "nested twice": ("inputs.0.data", [[[1.0] * 12] * 2]),
    "index is a float": ("inputs.1.data.5", 0.5),
    "index is null": ("inputs.1.data.5", None),
    "index is true": ("inputs.1.data.5", True),
    "index is negative": ("inputs.1.data.5", -1),
    "index is beyond": ("inputs.1.data.5", 5),
    "index is beyond 64 bits": ("inputs.1.data.5", 2**63),
    "binary without a header": ("inputs.0", {
        "name": "numeric", "shape": [2, 12], "datatype": "FP32", "parameters": {"binary_data_size": 96}
    }),
    "data and binary": ("inputs.0.parameters", {"binary_data_size": 0}),
}  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG_TENSORS.values(), ids=WRONG_TENSORS.keys())
def test_tensors_that_cannot_be_are_422(
    url: str, rows: Mapping[str, npt.NDArray[Any]], path: str, value: object
) -> None:
    body = tensors({name: np.nan_to_num(tensor[:2]) for name, tensor in rows.items()})
    infer(url, body)

    wrong = changed(body, path, value)
    response = requests.post(f"{url}/v2/models/engagement/infer", json=wrong, headers=PATIENT, timeout=30)
    refused(response, 422, "invalid_request")


def test_the_last_index_of_a_vocabulary_is_one(url: str, rows: Mapping[str, npt.NDArray[Any]]) -> None:
    body = tensors({name: tensor[:1] for name, tensor in rows.items()})

    infer(url, changed(body, "inputs.1.data", [5, 5, 4]))
    wrong = changed(body, "inputs.1.data", [5, 5, 5])
    refused(requests.post(f"{url}/v2/models/engagement/infer", json=wrong, timeout=30), 422, "invalid_request")


WRONG_IDS: dict[str, tuple[str, object]] = {
    "a number": ("inputs.0.data", [17850]),
    "null": ("inputs.0.data", [None]),
    "another datatype": ("inputs.0.datatype", "INT64"),
    "two columns": ("inputs.0", {**IDS, "shape": [1, 2], "data": ["c1", "c2"]}),
    "more than there are": ("inputs.0.shape", [2]),
    "none": ("inputs.0", {**IDS, "shape": [0], "data": []}),
    "with a tensor": ("inputs.1", {"name": "numeric", "shape": [1, 12], "datatype": "FP32", "data": [0.0] * 12}),
}


@pytest.mark.parametrize(("path", "value"), WRONG_IDS.values(), ids=WRONG_IDS.keys())
def test_ids_that_cannot_be_are_422(url: str, path: str, value: object) -> None:
    wrong = changed(GOOD, path, value)
    refused(requests.post(f"{url}/v2/models/engagement/infer", json=wrong, timeout=30), 422, "invalid_request")


def test_an_id_that_cannot_be_a_key_says_which_row(url: str) -> None:
    response = requests.post(f"{url}/v2/models/engagement/infer", json=ids("c1", SECRET * 100), timeout=30)

    assert "[1]" in refused(response, 422, "invalid_entity")


@pytest.mark.parametrize(
    ("model", "most"), [("engagement", 1_000), ("engagement.explain", 32), ("engagement.explain_exact", 32)]
)
def test_more_rows_than_v1_takes_are_422(url: str, rows: Mapping[str, npt.NDArray[Any]], model: str, most: int) -> None:
    many = {name: np.resize(tensor, (most + 1, tensor.shape[1])) for name, tensor in rows.items()}
    for body in (tensors(many), ids(*(f"m{n}" for n in range(most + 1)))):
        response = requests.post(f"{url}/v2/models/{model}/infer", json=body, headers=PATIENT, timeout=30)
        assert f"1 to {most}" in refused(response, 422, "invalid_request")


def test_binary_numbers_may_be_missing_but_not_infinite(url: str, rows: Mapping[str, npt.NDArray[Any]]) -> None:
    few = {name: tensor[:3].copy() for name, tensor in rows.items()}
    few["numeric"][:] = np.nan
    assert post_binary(url, *binary(few)).status_code == 200
    for value in (np.inf, -np.inf):
        few["numeric"][2, 7] = value
        assert "numeric[2, 7]" in refused(post_binary(url, *binary(few)), 422, "invalid_request")
    few["numeric"][2, 7] = np.finfo(np.float32).max
    assert post_binary(url, *binary(few)).status_code == 200


def test_a_header_or_size_that_lies_is_refused(url: str, rows: Mapping[str, npt.NDArray[Any]]) -> None:
    head, behind = binary({name: tensor[:2] for name, tensor in rows.items()})
    text = json.dumps(head).encode()
    whole = len(text) + len(behind)

    assert post_binary(url, text, behind).status_code == 200
    for header in (whole + 1, -1, "1e2", "0x10", "", "9" * 30, "\u0661"):
        headers = {HEADER: str(header).encode()}
        response = requests.post(f"{url}/v2/models/engagement/infer", data=text + behind, headers=headers, timeout=30)
        refused(response, 422, "invalid_request")
    for header in (0, len(text) - 1, len(text) + 1, whole):
        refused(post_binary(url, text, behind, header), 400, "invalid_json")
    refused(post_binary(url, text, behind[:-1]), 422, "invalid_request")
    refused(post_binary(url, text, behind + b"\0"), 422, "invalid_request")
    for size in (-1, 0, 95, 97, 2**40, 96.5, True, "96", 2**80):
        wrong = changed(head, "inputs.0.parameters.binary_data_size", size)
        refused(post_binary(url, wrong, behind), 422, "invalid_request")


TEXTS_THAT_LIE = {
    "no length": b"",
    "half a length": b"\2\0\0",
    "length beyond": b"\3\0\0\0c1",
    "length of 4 GB": b"\xff\xff\xff\xffc1",
    "one too many": b"\2\0\0\0c1" * 2,
    "something behind": b"\2\0\0\0c1\0",
    "not UTF-8": b"\2\0\0\0\xff\xfe",
    "surrogate": b"\3\0\0\0\xed\xa0\x80",
}


@pytest.mark.parametrize("behind", TEXTS_THAT_LIE.values(), ids=TEXTS_THAT_LIE.keys())
def test_texts_whose_lengths_lie_are_422(url: str, behind: bytes) -> None:
    head = changed(GOOD, "inputs.0", {**IDS, "parameters": {"binary_data_size": len(behind)}})
    del head["inputs"][0]["data"]

    refused(post_binary(url, head, behind), 422, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b'{"inputs": [',
        b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"inputs": [{"name": "numeric", "shape": [1, 12], "datatype": "FP32", "data": [NaN]}]}',
        b'{"inputs": [{"name": "\xff", "shape": [1], "datatype": "BYTES", "data": ["c1"]}]}',
        b'{"inputs": [{"name": "customer_id", "shape": [1], "datatype": "BYTES", "data": ["\xff"]}]}',
        b'{"inputs": [{"name": "customer_id", "shape": [1], "datatype": "BYTES", "data": ["\\ud800"]}]}',
        b'{"inputs": [{"name": "customer_id", "shape": [1], "datatype": "BYTES", "data": ' + b"[" * 100_000 + b"}]}",
    ],
)
def test_what_is_not_json_is_400(url: str, body: bytes) -> None:
    response = requests.post(f"{url}/v2/models/engagement/infer", data=body, timeout=30)

    refused(response, 400, "invalid_json")


def test_media_types_are_those_that_clients_send(url: str, customers: list[str]) -> None:
    path, body = f"{url}/v2/models/engagement/infer", json.dumps(GOOD).encode()
    for good in ("application/json", "application/octet-stream", "Application/JSON; charset=utf-8", None):
        assert requests.post(path, data=body, headers={"Content-Type": good}, timeout=30).status_code == 200
    for headers in ({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}):
        refused(requests.post(path, data=body, headers=headers, timeout=30), 415, "unsupported_media_type")


def test_a_large_body_is_413(start: Start) -> None:
    url = start(max_body_bytes=2_000)

    response = requests.post(f"{url}/v2/models/engagement/infer", data=b" " * 3_000, timeout=30)
    refused(response, 413, "body_too_large")


def test_unknown_models_paths_and_methods(url: str) -> None:
    for model in (SECRET, "engagement.1", "engagement.explain.explain", ".explain", "engagement.explain%2f"):
        response = requests.post(f"{url}/v2/models/{model}/infer", json=GOOD, timeout=5)
        refused(response, 404, "not_found" if "%2f" in model else "unknown_model")
    for path in (f"/v2/{SECRET}", "/v2/", "/v2/models/engagement/", "/v2/models/engagement/generate"):
        refused(requests.get(f"{url}{path}", timeout=5), 404, "not_found")
    response = requests.get(f"{url}/v2/models/engagement/infer", timeout=5)
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert "error" not in requests.get(f"{url}/v2x", timeout=5).json()


def test_scopes_and_quotas_are_those_of_v1(start: Start, customers: list[str], keys_file: Path) -> None:
    tokens = {scope: add_key(keys_file, scope, (scope,)) for scope in ("predict", "explain", "admin")}
    tokens["limited"] = add_key(keys_file, "limited", ("predict",), rate=0.01)
    url = start(keys_file=keys_file)

    def asked(method: str, path: str, scope: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {tokens[scope]}", **PATIENT}
        return requests.request(method, f"{url}/v2/{path}", json=GOOD, headers=headers, timeout=30)

    for model, needed in (
        ("engagement", "predict"),
        ("engagement.explain", "explain"),
        ("engagement.explain_exact", "explain"),
    ):
        for method, below in (("POST", "/infer"), ("GET", ""), ("GET", "/ready"), ("GET", "/config")):
            for scope in ("predict", "explain", "admin"):
                response = asked(method, f"models/{model}{below}", scope)
                if scope == needed:
                    assert response.status_code == 200, (model, below)
                else:
                    refused(response, 403, "forbidden")
    refused(asked("POST", "repository/index", "explain"), 403, "forbidden")
    assert asked("POST", "models/engagement/infer", "limited").status_code == 200
    response = asked("POST", "models/engagement/infer", "limited")
    refused(response, 429, "quota_exceeded")
    assert int(response.headers["retry-after"]) >= 1
    for headers in ({}, {"Authorization": f"Bearer {SECRET}"}):
        response = requests.post(f"{url}/v2/models/{SECRET}/infer", json=GOOD, headers=headers, timeout=30)
        refused(response, 401, "unauthenticated")


def test_more_tensors_than_can_be_in_flight_are_503(
    start: Start, release: Release, rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    url = start(golden(release, delay_s=0.5), max_inflight_rows=1_000, deadline_ms=20_000)
    body = tensors({name: np.resize(tensor, (600, tensor.shape[1])) for name, tensor in rows.items()})

    async def flood() -> list[requests.Response]:
        path = f"{url}/v2/models/engagement/infer"
        ask = [asyncio.to_thread(requests.post, path, json=body, timeout=30) for _ in range(3)]
        return await asyncio.gather(*ask)

    answers = asyncio.run(flood())
    overloaded = [answer for answer in answers if answer.status_code != 200]
    assert 1 <= len(overloaded) < len(answers)
    for response in overloaded:
        refused(response, 503, "overloaded")


@pytest.mark.parametrize("by", ["header", "parameter"])
def test_a_deadline_that_passes_is_504(
    start: Start, customers: list[str], release: Release, rows: Mapping[str, npt.NDArray[Any]], by: str
) -> None:
    backend = golden(release)
    url = start(backend, deadline_ms=60_000)
    backend.delay_s = 3_600.0
    headers = {"X-Deadline-Ms": "50"} if by == "header" else {}
    more: JSON = {"parameters": {"timeout": 50_000}} if by == "parameter" else {}

    for body in (GOOD, tensors({name: tensor[:1] for name, tensor in rows.items()})):
        path = f"{url}/v2/models/engagement/infer"
        refused(requests.post(path, json={**body, **more}, headers=headers, timeout=30), 504, "deadline_exceeded")


def test_a_longer_timeout_than_the_deadline_is_no_longer_deadline(
    start: Start, release: Release, rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    backend = golden(release)
    url = start(backend, deadline_ms=50)
    backend.delay_s = 3_600.0
    body = {**tensors({name: tensor[:1] for name, tensor in rows.items()}), "parameters": {"timeout": 3_600_000_000}}

    refused(requests.post(f"{url}/v2/models/engagement/infer", json=body, timeout=30), 504, "deadline_exceeded")


def test_what_the_backend_does_wrong_is_told_apart(
    start: Start, release: Release, rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    backend = golden(release)
    url = start(backend)
    path, body = f"{url}/v2/models/engagement/infer", tensors({name: tensor[:1] for name, tensor in rows.items()})

    for reply in (np.full((1, 3), np.nan, np.float32), np.zeros((2, 3), np.float32), np.zeros((1, 3))):
        backend.answer = lambda name, tensors, reply=reply: {"scores": reply}  # type: ignore[misc]
        refused(requests.post(path, json=body, headers=PATIENT, timeout=30), 502, "bad_model_output")
    backend.loaded.clear()
    refused(requests.post(path, json=body, headers=PATIENT, timeout=30), 503, "model_unavailable")


def test_a_client_that_leaves_is_not_waited_for(
    start: Start, customers: list[str], release: Release, rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    backend = golden(release)
    url = start(backend, deadline_ms=60_000)
    backend.delay_s = 3_600.0
    for body in (GOOD, tensors({name: tensor[:1] for name, tensor in rows.items()})):
        with connected(url) as connection:
            connection.sendall(by_hand(body))
            until(lambda: total(url, "rapport_inflight", lane="predict") == 1, "never admitted")
        until(lambda: total(url, "rapport_inflight", lane="predict") == 0, "still admitted")
    until(lambda: total(url, "rapport_requests_total", code="499") == 2, "not noticed")


def test_what_outlives_the_drain_is_told_so(
    tmp_path: Path, release: Release, redis_url: str, redis: Any, customers: list[str]
) -> None:
    patience = {"RAPPORT_REDIS_TIMEOUT_MS": "30000", "RAPPORT_DRAIN_S": "1"}
    with gateway_process(tmp_path, release, redis_url, **patience) as (process, url):
        until(lambda: requests.get(f"{url}/v2/health/ready", timeout=5).status_code == 200, "never ready")
        with connected(url) as connection:
            redis.execute_command("CLIENT", "PAUSE", "4000", "ALL")
            connection.sendall(by_hand(GOOD, b"X-Deadline-Ms: 60000"))
            time.sleep(0.3)  # until it waits for Redis
            process.terminate()
            status, _, body, _ = answer_of(connection)
        process.wait(20)

    assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
    assert json.loads(body)["error"]


def by_hand(body: object, *headers: bytes) -> bytes:
    text = json.dumps(body).encode()
    lines = (b"POST /v2/models/engagement/infer HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(text), *headers)
    return b"\r\n".join((*lines, b"", text))


def test_several_join_keys_are_an_input_each() -> None:
    def question(*columns: list[str]) -> bytes:
        names = ("customer_id", "shop")
        inputs = [
            {**IDS, "name": name, "shape": [len(column)], "data": column}
            for name, column in zip(names, columns, strict=True)
        ]
        return json.dumps({"inputs": inputs}).encode()

    inputs = read_question(question(["c1", "c2"], ["7", "8"]), None).inputs
    assert entities_of(inputs, ["customer_id", "shop"], 2) == [
        {"customer_id": "c1", "shop": "7"},
        {"customer_id": "c2", "shop": "8"},
    ]
    uneven = read_question(question(["c1", "c2"], ["7"]), None).inputs
    with pytest.raises(InvalidRequest, match="not as many rows"):
        entities_of(uneven, ["customer_id", "shop"], 2)


# Whatever is sent

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["numeric", "categorical", "customer_id", "scores", "FP32", "INT64", "BYTES", "", "\x00", "NaN"])
    | st.sampled_from(
        [[], {}, [[]], [2, 12], [-1, 12], [2**60, 2**60], [None], [[0.0] * 12] * 2, {"binary_data_size": 9}]
    )
)


def places(member: Any) -> list[tuple[Any, Any]]:
    """Every member of a document, as the list or object that it is in, and where."""
    found: list[tuple[Any, Any]] = []
    inside = list(member.items()) if isinstance(member, dict) else list(enumerate(member))
    for key, value in inside:
        found.append((member, key))
        if isinstance(value, list | dict):
            found += places(value)
    return found


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes | None]:
    """A good request of some kind, with a few things wrong in its JSON, its bytes, or its header."""
    two: dict[str, npt.NDArray[Any]] = {
        "numeric": np.ones((2, 12), np.float32),
        "categorical": np.ones((2, 3), np.int64),
    }
    texts = b"\2\0\0\0c1\2\0\0\0c2"
    by_id = {"inputs": [{"name": "customer_id", "shape": [2], "datatype": "BYTES", "data": ["c1", "c2"]}]}
    by_id_binary = changed(by_id, "inputs.0.data", ...)
    by_id_binary["inputs"][0]["parameters"] = {"binary_data_size": len(texts)}
    document, behind = deepcopy(
        draw(
            st.sampled_from(
                [
                    binary(two),
                    (tensors(two), b""),
                    (tensors(two, nested=True), b""),
                    (by_id_binary, texts),
                    (by_id, b""),
                ]
            )
        )
    )
    document |= {"id": "1", "outputs": [{"name": "scores", "parameters": {"binary_data": True}}]}
    for _ in range(draw(st.integers(0, 3))):
        member, key = draw(st.sampled_from(places(document)))
        if draw(st.booleans()):
            member[key] = deepcopy(draw(VALUES))
        elif isinstance(member, dict):
            del member[key]
        else:
            member.append(deepcopy(member[key]))
    head = json.dumps(document).encode()
    size = len(head)
    body = bytearray(head + behind)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        match draw(st.sampled_from(["change", "insert", "cut", "end"])):
            case "change" if at < len(body):
                body[at] = draw(st.integers(0, 255))
            case "insert":
                body[at:at] = draw(st.binary(max_size=5))
            case "cut":
                del body[at : at + draw(st.integers(0, 9))]
            case "end":
                del body[at:]
    header = draw(st.sampled_from([size, size, size, size - 1, size + 1, 0, len(body), None]))
    return bytes(body), None if header is None else b"%d" % max(header, 0)


@examples(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies())
def test_whatever_is_sent_is_read_or_refused(release: Release, sent: tuple[bytes, bytes | None]) -> None:
    schema = release.contract.schema
    try:
        inputs = read_question(*sent).inputs
        if "customer_id" in inputs:
            assert 1 <= len(entities_of(inputs, ["customer_id"], 1_000)) <= 1_000
        elif {"numeric", "categorical"} <= inputs.keys():
            rows = tensor_rows(schema, inputs, 1_000)
            assert 1 <= len(rows) <= 1_000
            assert not np.isinf(rows.tensors["numeric"]).any()
            assert (rows.tensors["categorical"] >= 0).all()
    except (InvalidJson, InvalidRequest):
        pass


@examples(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies())
def test_whatever_is_sent_is_answered_or_refused(gateway: str, sent: tuple[bytes, bytes | None]) -> None:
    body, header = sent
    headers: dict[str, str | bytes] = {**PATIENT} if header is None else {**PATIENT, HEADER: header}
    response = requests.post(f"{gateway}/v2/models/engagement/infer", data=body, headers=headers, timeout=30)

    if response.status_code != 200:
        assert response.status_code in (400, 422), response.text
        assert len(response.content) <= 1_000
        assert response.json()["error"]
