"""What an operator sees: health, metrics, request ids, logs, documentation, reloads, and what is dropped."""

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from feature_client.golden import golden_name
from feature_client.online.local_redis import LocalRedis
from feature_client.online.memory import MemoryReader
from feature_client.release import Release, graph_file, read_release
from model_export.publish import publish
from model_export.republish import artifacts_of
from service import logs
from service.backends.embedded import EmbeddedBackend
from service.metrics import Metrics
from service.releases import Releases
from tests.model_export.tiny_release import AS_OF, build_tiny_release, tiny_run
from tests.service.conftest import Start, wait_ready
from tests.service.test_errors import golden

GOOD = {"entities": [{"customer_id": "c1"}]}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def samples(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, sorted labels) -> value."""
    text = requests.get(f"{url}/metrics", timeout=5).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def total(url: str, name: str, **labels: str) -> float:
    return sum(
        value
        for (found, given), value in samples(url).items()
        if found == name and labels.items() <= dict(given).items()
    )


def test_ready_means_a_release_and_a_store_that_answered(start: Start, tmp_path: Path, redis_url: str) -> None:
    url = start(models=tmp_path, ready=False)

    assert requests.get(f"{url}/livez", timeout=5).json() == {"live": True}
    response = requests.get(f"{url}/readyz", timeout=5)
    assert response.status_code == 503
    assert response.json() == {
        "ready": False,
        "release": "not loaded",
        "last_reload": "failed",
        "feature_store": "ok",
        "backend": "ok",
    }


def test_a_store_that_goes_away_later_takes_no_gateway_out(start: Start, tmp_path: Path) -> None:
    with LocalRedis(tmp_path / "redis") as store:
        url = start(redis=store.address)
    response = requests.get(f"{url}/readyz", timeout=5)

    assert response.status_code == 200
    assert response.json()["feature_store"] == "unavailable"
    assert total(url, "rapport_dependency_up", dependency="feature_store") == 0
    assert requests.post(f"{url}/v1/predict", json=GOOD, timeout=5).status_code == 503


def test_metrics_count_what_was_asked(start: Start, customers: list[str]) -> None:
    url = start()
    body = {"entities": [{"customer_id": customer} for customer in ("c1", "c2", "nobody")]}
    for _ in range(3):
        requests.post(f"{url}/v1/predict", json=body, timeout=5)
    requests.post(f"{url}/v1/predict", json={}, timeout=5)

    assert total(url, "rapport_requests_total", route="/v1/predict", code="200") == 3
    assert total(url, "rapport_requests_total", route="/v1/predict", code="422") == 1
    assert total(url, "rapport_request_duration_seconds_count", route="/v1/predict", model="engagement") == 3
    assert total(url, "rapport_predictions_total", status="ok") == 6
    assert total(url, "rapport_predictions_total", status="unknown_entity") == 3
    assert total(url, "rapport_scores_count", task="purchase_30d") == 9
    assert total(url, "rapport_feature_age_seconds_count", view="orders") == 6
    assert total(url, "rapport_inflight") == 0
    assert total(url, "rapport_release_info", role="champion") == 1
    for stage in ("decode", "admit", "features", "queue", "infer", "encode"):
        assert total(url, "rapport_stage_duration_seconds_count", stage=stage) >= 3, stage


def test_metrics_are_this_processs_own_whatever_others_do_with_prometheus(
    start: Start, customers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feast sets this variable of prometheus_client's when it is imported."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    url = start()
    requests.post(f"{url}/v1/predict", json=GOOD, timeout=5)

    assert total(url, "rapport_requests_total", route="/v1/predict", code="200") == 1


def test_nothing_a_client_sends_becomes_a_label(start: Start, customers: list[str]) -> None:
    url = start()
    requests.post(f"{url}/v1/predict", json=GOOD, timeout=5)
    requests.get(f"{url}/nowhere", timeout=5)
    requests.post(f"{url}/v1/predict", json={**GOOD, "model": "first"}, timeout=5)
    requests.request("PURGE", f"{url}/v1/predict", timeout=5)
    requests.get(f"{url}/v1/models/first", timeout=5)
    samples(url)  # asking for metrics is a request as well
    before = samples(url).keys()

    for n in range(50):
        requests.get(f"{url}/path{n}", timeout=5)
        requests.post(f"{url}/v1/predict", json={**GOOD, "model": f"m{n}"}, timeout=5)
        requests.get(f"{url}/v1/models/m{n}", timeout=5)

    assert samples(url).keys() - before == set()


def test_metrics_may_have_a_port_of_their_own(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = start(metrics_port=port)

    assert requests.get(f"{url}/metrics", timeout=5).status_code == 404
    assert "rapport_requests_total" in requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text


def test_prometheus_finds_nothing_to_complain_of_in_the_metrics(url: str) -> None:
    requests.post(f"{url}/v1/predict", json=GOOD, timeout=5)
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install Debian's package prometheus")
    exposition = requests.get(f"{url}/metrics", timeout=5).text

    run = subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_a_request_id_is_kept_where_it_is_one(url: str) -> None:
    kept = requests.post(f"{url}/v1/predict", json=GOOD, headers={"X-Request-Id": "order-17"}, timeout=5)
    made = requests.post(f"{url}/v1/predict", json=GOOD, headers={"X-Request-Id": 'a"b{}\\'}, timeout=5)

    assert kept.json()["request_id"] == kept.headers["x-request-id"] == "order-17"
    assert made.json()["request_id"] == made.headers["x-request-id"] != 'a"b{}\\'


def test_the_answer_says_where_its_time_went(url: str) -> None:
    response = requests.post(f"{url}/v1/predict", json=GOOD, timeout=5)

    stages = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert stages.keys() == {"decode", "admit", "features", "queue", "infer", "encode"}
    assert all(float(milliseconds) >= 0 for milliseconds in stages.values())


def test_work_of_a_client_that_has_gone_is_dropped(start: Start, customers: list[str], release: Release) -> None:
    backend = golden(release)
    url = start(backend, deadline_ms=30_000)
    backend.delay_s = 3_600.0
    host, _, port = url.removeprefix("http://").rpartition(":")
    body = json.dumps(GOOD).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(lambda: total(url, "rapport_inflight", lane="predict") == 1, "never admitted")

    until(lambda: total(url, "rapport_inflight", lane="predict") == 0, "still admitted")
    assert total(url, "rapport_requests_total", code="499") == 1


def test_one_event_is_one_json_line_whatever_is_in_it(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure("info")
        nasty = 'a\r\nb\x1b[31m"},{"event": "forged"} %s ${jndi}'
        logging.getLogger("rapport.test").info("happened", extra={"value": nasty})
    finally:
        root.handlers[:], root.level = before

    [line] = [line for line in capfd.readouterr().err.splitlines() if "rapport.test" in line]
    event = json.loads(line)
    assert event["event"] == "happened"
    assert event["value"] == nasty
    assert event["level"] == "INFO"


def test_the_documentation_is_complete(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=5).json()

    assert {path for path in document["paths"] if not path.startswith("/v2")} == {
        "/v1/predict", "/v1/explain", "/v1/features", "/v1/whatif",
        "/v1/models", "/v1/models/{model}", "/v1/models/{model}/importance", "/livez", "/readyz", "/metrics",
    }  # fmt: skip
    text = json.dumps(document)
    for reference in set(text.split('"$ref": "#/components/schemas/')[1:]):
        assert reference.split('"')[0] in document["components"]["schemas"]
    predict = document["paths"]["/v1/predict"]["post"]
    assert "PredictRequest" in json.dumps(predict["requestBody"])
    assert {"200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "502", "503", "504"} <= set(
        predict["responses"]
    )
    assert requests.get(f"{url}/docs", timeout=5).status_code == 200


@pytest.fixture(scope="module")
def three_releases(two_releases: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    root = tmp_path_factory.mktemp("three")
    shutil.copytree(two_releases.root, root, dirs_exist_ok=True)
    return build_tiny_release(root, tiny_run(rows=1_000, seed=2, epochs=1))


def answered_by(url: str) -> str:
    answer = requests.post(f"{url}/v1/predict", json=GOOD, timeout=5).json()
    return str(answer["predictions"][0]["version"])


def set_champion(root: Path, version: int) -> None:
    staged = root / "routes.toml.new"
    staged.write_text(f"[engagement]\nchampion = {version}\n")
    staged.replace(root / "routes.toml")


def test_a_promotion_and_a_rollback_need_no_restart(
    start: Start, customers: list[str], two_releases: Release, tmp_path: Path
) -> None:
    shutil.copytree(two_releases.root, tmp_path, dirs_exist_ok=True)
    set_champion(tmp_path, 1)
    url = start(models=tmp_path)
    assert answered_by(url) == "1"

    set_champion(tmp_path, 2)
    until(lambda: answered_by(url) == "2", "never promoted")
    set_champion(tmp_path, 1)
    until(lambda: answered_by(url) == "1", "never rolled back")


def test_the_champion_before_stays_loaded_for_the_rollback_whatever_else_is_newer(
    start: Start, customers: list[str], three_releases: Release, tmp_path: Path
) -> None:
    shutil.copytree(three_releases.root, tmp_path, dirs_exist_ok=True)
    set_champion(tmp_path, 1)
    url = start(models=tmp_path)
    set_champion(tmp_path, 2)
    until(lambda: answered_by(url) == "2", "never promoted")
    shutil.rmtree(tmp_path / "engagement.1.explain")  # whatever is not loaded by now cannot be

    assert requests.get(f"{url}/v1/models", timeout=5).json()["models"][0]["versions"] == ["1", "2"]
    assert total(url, "rapport_release_info", version="1", role="standby") == 1
    assert total(url, "rapport_release_info", version="3") == 0
    set_champion(tmp_path, 1)
    until(lambda: answered_by(url) == "1", "never rolled back")


def test_a_broken_standby_is_reported_and_keeps_nobody_from_answering(
    start: Start, customers: list[str], two_releases: Release, tmp_path: Path
) -> None:
    shutil.copytree(two_releases.root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "engagement.2" / "golden.npz").write_bytes(b"PK not quite")
    set_champion(tmp_path, 1)
    url = start(models=tmp_path)

    assert answered_by(url) == "1"
    assert requests.get(f"{url}/readyz", timeout=5).json()["last_reload"] == "failed"
    assert total(url, "rapport_reload_failures_total") >= 1


def test_a_cold_start_with_a_broken_champion_comes_up_on_the_last_good_release(
    start: Start, customers: list[str], two_releases: Release, tmp_path: Path
) -> None:
    shutil.copytree(two_releases.root, tmp_path, dirs_exist_ok=True)
    set_champion(tmp_path, 2)
    card = tmp_path / "engagement.2" / "card.md"
    whole = card.read_bytes()
    card.write_bytes(whole + b"x")
    url = start(models=tmp_path)

    assert answered_by(url) == "1"
    assert requests.get(f"{url}/readyz", timeout=5).json()["last_reload"] == "failed"
    card.write_bytes(whole)
    until(lambda: answered_by(url) == "2", "the mended champion was not taken")
    until(lambda: requests.get(f"{url}/readyz", timeout=5).json()["last_reload"] == "ok", "still failed")


@pytest.mark.parametrize("explainer", [None, "fast", "exact"])
def test_a_release_that_cannot_be_loaded_is_tried_ever_less_often_and_leaves_nothing_behind(
    two_releases: Release, tmp_path: Path, explainer: str | None
) -> None:
    for name in two_releases.graph_names:
        shutil.copytree(two_releases.root / name, tmp_path / name)
    set_champion(tmp_path, 2)
    graph = graph_file(tmp_path / two_releases.graph_name(explainer))
    shutil.move(graph, tmp_path / "aside")
    backend = EmbeddedBackend()

    async def look() -> None:
        releases = Releases(tmp_path, backend, Metrics(), grace_s=0.0)
        for _ in range(20):
            await releases.refresh()
        assert "missing" in releases.failures["engagement.2"]
        assert releases.served == {}
        assert backend.graphs == {}
        assert releases.metrics.registry.get_sample_value("rapport_reload_failures_total") == 1

        shutil.move(tmp_path / "aside", graph)
        while not releases.served:
            await releases.refresh()
            await asyncio.sleep(0.01)
        assert releases.failures == {}
        assert set(backend.graphs) == releases.graphs() == set(two_releases.graph_names)
        assert set(releases.served["engagement"].champion.paces) == set(two_releases.manifest.explainers)

    asyncio.run(look())


def test_a_release_of_which_one_graph_gives_other_answers_is_not_loaded_and_leaves_nothing_behind(
    two_releases: Release, tmp_path: Path
) -> None:
    """The last of its explainers, after all others were loaded."""
    with np.load(two_releases.golden) as file:
        arrays = dict(file)
    last = two_releases.manifest.explainers[-1]
    arrays[golden_name(last, "base")] += np.float32(0.5)
    np.savez(tmp_path / "golden.npz", **arrays)
    artifacts = replace(artifacts_of(two_releases), golden=tmp_path / "golden.npz")
    publish(tmp_path / "models", two_releases.contract, artifacts)
    set_champion(tmp_path / "models", 1)
    backend = EmbeddedBackend()

    async def look() -> None:
        releases = Releases(tmp_path / "models", backend, Metrics(), grace_s=0.0)
        await releases.refresh()
        assert "base differ from the golden answers" in releases.failures["engagement.1"]
        assert releases.served == {}
        assert backend.graphs == {}

    asyncio.run(look())


def test_a_release_that_is_let_go_leaves_no_explainer_behind(fast_alone: Release, tmp_path: Path) -> None:
    """Of releases with other explainers than their successors as well."""
    root = Path(shutil.copytree(fast_alone.root, tmp_path / "models"))
    backend = EmbeddedBackend()

    async def look() -> None:
        releases = Releases(root, backend, Metrics(), grace_s=0.0)
        for named in ((1, 2), (3, 2), (2, 1)):
            (root / "routes.toml").write_text("[engagement]\nchampion = {}\nprevious = {}\n".format(*named))
            await releases.refresh()
            await releases.refresh()
            graphs = {name for version in named for name in read_release(root, "engagement", version).graph_names}
            assert set(backend.graphs) == releases.graphs() == graphs
            assert ("engagement.3.explain" in graphs) == (3 in named)
            assert "engagement.3.explain_exact" not in graphs

    asyncio.run(look())


def test_a_client_in_a_hurry_is_no_store_that_is_down(start: Start, customers: list[str], release: Release) -> None:
    reader = MemoryReader({}, delay_s=0.2)
    url = start(reader=reader, redis_timeout_ms=1_000)

    answer = requests.post(f"{url}/v1/predict", json=GOOD, headers={"X-Deadline-Ms": "20"}, timeout=5)
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert total(url, "rapport_dependency_up", dependency="feature_store") == 1


def test_a_path_with_a_slash_too_many_is_not_redirected(url: str) -> None:
    answer = requests.post(f"{url}/v1/predict/", json=GOOD, timeout=5, allow_redirects=False)

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("damage", ["byte", "missing", "extra", "manifest", "routes"])
def test_a_damaged_release_is_refused_and_the_last_good_one_answers(
    start: Start, customers: list[str], two_releases: Release, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(two_releases.root, tmp_path, dirs_exist_ok=True)
    graph = tmp_path / "engagement.2" / "1" / "model.onnx"
    shutil.move(graph, tmp_path / "aside")
    set_champion(tmp_path, 1)
    url = start(models=tmp_path)
    good = bytearray((tmp_path / "aside").read_bytes())
    if damage == "byte":
        good[len(good) // 2] ^= 1
    # The graph comes last: until then the release is broken anyway, and tried again all the while.
    if damage == "extra":
        (graph.parent / "model.py").write_text("print('not ours')")
    if damage == "manifest":
        (tmp_path / "engagement.2" / "manifest.json").write_text("{")
    if damage != "missing":
        graph.write_bytes(good)
    before = total(url, "rapport_reload_failures_total")

    if damage == "routes":
        (tmp_path / "routes.toml").write_text("[engagement]\nchampion = ")
    else:
        set_champion(tmp_path, 2)

    until(lambda: total(url, "rapport_reload_failures_total") > before, "the failure was not counted")
    assert answered_by(url) == "1"
    ready = requests.get(f"{url}/readyz", timeout=5)
    assert ready.status_code == 200
    assert ready.json()["last_reload"] == "failed"


def test_the_gateway_imports_nothing_of_the_offline_half_and_stays_small() -> None:
    program = """
import json, psutil, sys
from service.app import create_app
from service.settings import Settings
create_app(Settings())
import service.server
print(json.dumps({"modules": sorted({name.split(".")[0] for name in sys.modules}),
                  "mebibytes": psutil.Process().memory_info().rss / 1024**2}))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)

    assert not {"torch", "feast", "pandas", "ibis", "duckdb", "pyarrow", "model_export"} & set(found["modules"])
    assert "onnxruntime" in found["modules"]
    assert found["mebibytes"] < 150


def test_serve_says_in_one_sentence_what_is_wrong(tmp_path: Path) -> None:
    def said(**environment: str) -> str:
        run = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve"],
            capture_output=True, text=True, check=False, env={"PATH": "", **environment},
        )  # fmt: skip
        assert run.returncode == 1
        assert "Traceback" not in run.stderr
        return run.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "Address already in use" in said(RAPPORT_PORT=port)
        assert "Address already in use" in said(RAPPORT_PORT="0", RAPPORT_METRICS_PORT=port)
    assert "binds loopback only" in said(RAPPORT_HOST="0.0.0.0")
    assert "keys file" in said(RAPPORT_KEYS_FILE=str(tmp_path / "none.toml"))
    assert "host:port" in said(RAPPORT_REDIS="nowhere")


PATIENCE = {
    "RAPPORT_REDIS_TIMEOUT_MS": "60000",
    "RAPPORT_DEADLINE_MS": "60000",
    "RAPPORT_EXPLAIN_DEADLINE_MS": "60000",
    "RAPPORT_DRAIN_S": "60",
}
"""For a store that says nothing for a while."""


@contextmanager
def stopped(redis: "Redis") -> Iterator[None]:
    """Its server answers at the end of the block what it was asked in it: meanwhile, requests are in flight."""
    pid = int(redis.info("server")["process_id"])  # type: ignore[index]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_what_is_in_flight_at_sigterm_is_answered(
    tmp_path: Path, release: Release, redis: "Redis", redis_url: str, customers: list[str]
) -> None:
    with gateway_process(tmp_path, release, redis_url, **PATIENCE) as (process, url), ThreadPoolExecutor(1) as pool:
        wait_ready(url)
        body = {"entities": [{"customer_id": "c1"}] * 32}
        with stopped(redis):
            asked = pool.submit(requests.post, f"{url}/v1/explain", json=body, timeout=60)
            until(lambda: total(url, "rapport_inflight", lane="explain") == 32, "never in flight")
            process.terminate()
        assert asked.result().status_code == 200
        process.wait(20)


@contextmanager
def gateway_process(
    tmp_path: Path, release: Release, redis_url: str, **environment: str
) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """`rapport serve` as a process of its own, its log in tmp_path/log."""
    settings = {"RAPPORT_PORT": "0", "RAPPORT_MODELS": str(release.root), "RAPPORT_REDIS": redis_url}
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"],
            stderr=stderr,
            env={"PATH": "", "RAPPORT_AS_OF": AS_OF.isoformat(), **settings, **environment},
        )
        try:
            until(lambda: "listening" in log.read_text(), "never listened")
            events = [json.loads(line) for line in log.read_text().splitlines()]
            port = next(event["port"] for event in events if event["event"] == "listening")
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def test_a_gateway_without_keys_says_so(tmp_path: Path, release: Release, redis_url: str) -> None:
    with gateway_process(tmp_path, release, redis_url) as (_, url):
        wait_ready(url)

    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    [warning] = [event for event in events if event["level"] == "WARNING"]
    assert "bound to loopback only" in warning["event"]
