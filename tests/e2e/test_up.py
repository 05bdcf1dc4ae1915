"""The whole path, as a visitor takes it: up, ask, again, down."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import psutil
import requests
import torch
from redis import Redis

from feature_client.contract import discrepancy
from feature_client.online.plan import ReadPlan
from feature_client.online.redis_reader import RedisReader
from feature_client.release import read_release
from feature_client.schema import Encoded
from model_export.network import Network
from model_export.pipeline import read_run
from service.backends.embedded import EmbeddedBackend
from service.protocol import PredictResponse
from tests.e2e.conftest import Visitor, free_port
from tests.feast_layout import field_of, key_of, stored_value


def redis_of(visitor: Visitor) -> str:
    [server] = [process for process in visitor.family() if process.name() == "redis-server"]
    [connection] = [c for c in server.net_connections("tcp4") if c.status == psutil.CONN_LISTEN]
    return f"127.0.0.1:{connection.laddr.port}"


def predict(visitor: Visitor, customers: list[str]) -> PredictResponse:
    body = {"entities": [{"customer_id": customer} for customer in customers]}
    response = requests.post(f"{visitor.url}/v1/predict", json=body, timeout=10)
    assert response.status_code == 200, response.text
    return msgspec.json.decode(response.content, type=PredictResponse)


def test_up_prints_a_prediction_and_an_explanation_for_a_real_customer(visitor: Visitor, customers: list[str]) -> None:
    answers = [json.loads(text) for text in re.findall(r"^\{.*?^\}", visitor.printed, re.DOTALL | re.MULTILINE)]

    predicted, explained = (answer["predictions"][0] for answer in answers)
    assert predicted["entity"] == {"customer_id": customers[0]}
    assert predicted["status"] == "ok"
    assert all(score is not None for score in predicted["scores"].values())
    assert explained["explanations"]["churn_90d"]["reasons"]
    assert visitor.printed.count("$ curl") == 2


def test_every_customer_of_the_store_is_answered_from_its_features(visitor: Visitor, customers: list[str]) -> None:
    answer = predict(visitor, customers)

    assert {prediction.status for prediction in answer.predictions} == {"ok"}
    assert {prediction.features.age_s for prediction in answer.predictions} == {0.0}
    assert len({json.dumps(prediction.scores) for prediction in answer.predictions}) > len(customers) / 2


def test_http_objects_and_torch_give_the_same_scores(visitor: Visitor, customers: list[str]) -> None:
    asked = [*customers[:40], "nobody"]
    answer = predict(visitor, asked)
    workspace = visitor.workspace
    release = read_release(workspace.models, "engagement", int(answer.predictions[0].version))
    schema = release.contract.schema

    async def through_objects() -> tuple[Encoded, np.ndarray]:
        reader, backend = RedisReader.from_connection_string(redis_of(visitor), 1.0), EmbeddedBackend()
        await backend.load(release.graphs()[0])
        entities = [{"customer_id": customer} for customer in asked]
        plan = ReadPlan(schema)
        stored = await reader.fetch(plan, plan.keys(entities), 5.0)
        encoded = schema.encode(stored, workspace.dataset().as_of.timestamp())
        outputs = await backend.infer(release.name, encoded.tensors, 5.0)
        await reader.close()
        await backend.close()
        return encoded, outputs["scores"]

    encoded, objects = asyncio.run(through_objects())
    run = read_run(workspace.root / "run")
    network = Network(run.contract.schema, run.contract.tasks)
    network.load_state_dict(dict(run.weights))
    with torch.no_grad():
        forward = network.eval()(torch.from_numpy(encoded.numeric), torch.from_numpy(encoded.categorical)).numpy()
    names = release.contract.task_names
    http = np.array([[(p.scores or {})[name] for name in names] for p in answer.predictions], dtype=np.float64)
    defined = ~np.isnan(http)

    assert defined.mean() > 0.8
    assert (discrepancy(objects, forward) <= 1).all()
    assert (discrepancy(http[defined], forward[defined]) <= 1).all()


def skew_check(visitor: Visitor, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service.cli", "skew", "check", "--workspace", str(visitor.workspace.root)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def test_features_in_service_are_what_events_say_and_one_that_is_not_is_named(
    visitor: Visitor, customers: list[str]
) -> None:
    """Asked of the gateway, and read from the store; with a row that was altered in Redis."""
    asked = skew_check(visitor, "--gateway", visitor.url, "--customers", "150")
    read = skew_check(visitor, "--redis", redis_of(visitor), "--customers", "150", "--seed", "3")
    for run in (asked, read):
        assert run.returncode == 0, run.stdout + run.stderr
        found = json.loads(run.stdout.splitlines()[-1])
        assert (found["ok"], found["customers"], found["features"]) == (True, 150, {})

    schema = read_release(visitor.workspace.models, "engagement", 1).contract.schema
    host, _, port = redis_of(visitor).rpartition(":")
    with Redis(host, int(port)) as redis:
        key, place = key_of(schema, customers[0]), field_of("orders_rolling", "spend_365d")
        before = redis.hget(key, place)
        assert isinstance(before, bytes)
        redis.hset(key, place, stored_value(1e6, timestamp=False))
        run = skew_check(visitor, "--gateway", visitor.url, "--ids", ",".join(customers[:40]))
        known = skew_check(visitor, "--gateway", visitor.url, "--ids", customers[0], "--allow", "spend_365d")
        redis.hset(key, place, before)

    assert run.returncode == 1
    assert run.stderr == "rapport: skew: service and raw events differ in spend_365d\n"
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["skewed"] == ["spend_365d"]
    assert found["features"]["spend_365d"]["differ"] == 1
    assert found["features"]["spend_365d"]["examples"][0]["customer"] == customers[0]
    assert any(line.startswith("spend_365d") for line in run.stdout.splitlines())
    assert known.returncode == 0, known.stderr


def test_a_check_for_skew_that_cannot_be_made_says_why(visitor: Visitor) -> None:
    nobody = skew_check(visitor, "--gateway", f"http://127.0.0.1:{free_port()}")
    wrong = skew_check(visitor, "--gateway", visitor.url, "--version", "99")
    for run, said in ((nobody, "does not answer"), (wrong, "/v1/models/engagement?version=99 answers 404")):
        assert run.returncode == 1
        assert said in run.stderr
        assert run.stderr.startswith("rapport: http://127.0.0.1:")
        assert "Traceback" not in run.stderr


def test_locust_finds_no_wrong_answer(visitor: Visitor) -> None:
    run = subprocess.run(
        [
            sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--host", visitor.url,
            "--users", "4", "--spawn-rate", "4", "--run-time", "5s", "--customers", str(visitor.workspace.customers),
            "--statuses", "ok",
        ],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip

    assert run.returncode == 0, run.stdout + run.stderr


def test_a_second_up_meanwhile_is_refused(visitor: Visitor) -> None:
    command = [sys.executable, "-m", "service.cli", "up", "--home", str(visitor.home), "--port", str(visitor.port)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert run.returncode == 1
    assert run.stderr == f"rapport: already up, as process {visitor.family()[0].pid}: `make down` ends it\n"


def test_what_cannot_be_is_said_in_one_sentence(visitor: Visitor, tmp_path: Path) -> None:
    def said(*options: str) -> str:
        command = [sys.executable, "-m", "service.cli", "up", "--home", str(tmp_path / "home"), *options]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 1
        assert run.stdout == ""
        return run.stderr

    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    assert said("--port", str(visitor.port)).startswith(f"rapport: port {visitor.port} is in use")
    assert said("--port", str(free_port()), "--data", "none.parquet") == "rapport: there is no file none.parquet\n"
    assert "rapport: broken.parquet cannot be taken over" in said("--port", str(free_port()), "--data", str(broken))


def test_too_little_disk_is_said_before_anything_is_done(visitor: Visitor, tmp_path: Path) -> None:
    """On a real file system of 8 MB, in a mount namespace of its own."""
    up = f"{sys.executable} -m service.cli up --home {tmp_path}/home --port {free_port()}"
    script = f"mount -t tmpfs -o size=8m none {tmp_path} && exec {up}"
    run = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )

    assert run.returncode == 1, run.stderr
    assert re.fullmatch(r"rapport: .* has \d+ MiB free; 2048 MiB are needed\n", run.stderr)


def test_down_leaves_no_process_and_a_second_up_builds_nothing(visitor: Visitor, customers: list[str]) -> None:
    """The last of this file: it ends the visitor's gateway and starts it again."""
    before = predict(visitor, customers[:20])
    family = visitor.family()
    assert len(family) >= 3  # up, redis-server, gateway

    run = subprocess.run(
        [sys.executable, "-m", "service.cli", "down", "--home", str(visitor.home)], capture_output=True, check=True
    )
    assert run.stdout.startswith(b"ended ")
    assert visitor.process is not None
    assert visitor.process.wait(30) == 0
    assert [process for process in family if process.is_running() and process.status() != "zombie"] == []

    visitor.up()
    assert "still valid: nothing to rebuild" in visitor.said
    after = predict(visitor, customers[:20])
    assert after.predictions == before.predictions

    family = visitor.family()
    assert visitor.end(signal.SIGINT) == 0
    assert [process for process in family if process.is_running() and process.status() != "zombie"] == []
    visitor.up()


def test_a_release_that_was_damaged_is_published_again(visitor: Visitor, customers: list[str]) -> None:
    visitor.end()
    for card in visitor.workspace.models.glob("*/card.md"):
        card.write_text(card.read_text() + "x")
    visitor.up()

    assert "to do: publish" in visitor.said
    assert predict(visitor, customers[:1]).predictions[0].status == "ok"


def test_up_ends_in_a_sentence_when_its_redis_is_gone(visitor: Visitor) -> None:
    [server] = [process for process in visitor.family() if process.name() == "redis-server"]
    server.kill()
    assert visitor.process is not None
    assert visitor.process.wait(60) == 1
    assert "its redis-server stopped" in visitor.said
    visitor.up()


def test_down_ends_what_a_killed_supervisor_left(visitor: Visitor) -> None:
    family = visitor.family()
    assert visitor.end(signal.SIGKILL) == -signal.SIGKILL
    assert len([process for process in family if process.is_running() and process.status() != "zombie"]) >= 2

    subprocess.run([sys.executable, "-m", "service.cli", "down", "--home", str(visitor.home)], check=True)
    assert [process for process in family if process.is_running() and process.status() != "zombie"] == []
    visitor.up()
