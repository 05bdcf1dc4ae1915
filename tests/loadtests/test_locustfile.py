"""The load test itself, run by Locust against a fake gateway: right answers pass, every kind of wrong one fails it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
Body = dict[str, Any]
Spoil = Callable[[Body], tuple[int, Body] | None]


def right_answer(route: str, request_id: str, customers: list[str]) -> Body:
    """What the gateway would say, with scores that depend on the customer alone."""
    predictions = []
    for customer in customers:
        share = int(customer) % 97 / 100
        prediction: Body = {
            "entity": {"customer_id": customer},
            "version": "3",
            "status": "ok",
            "scores": {"purchase_30d": share, "churn_90d": None, "spend_90d": 500 * share},
            "not_applicable": ["churn_90d"],
        }
        if route == "/v1/explain":
            prediction["explanations"] = {
                task: score
                if score is None
                else {"score": score, "base": 0.5, "reasons": [{"contribution": score - 0.5}]}
                for task, score in prediction["scores"].items()
            }
        predictions.append(prediction)
    return {"model": "engagement", "request_id": request_id, "predictions": predictions}


@contextmanager
def fake_gateway(spoil: Spoil) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body are two writes: with Nagle's algorithm the second waits 40 ms for the client's delayed ACK.
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            entities = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["entities"]
            customers = [entity["customer_id"] for entity in entities]
            authorized = self.headers.get("Authorization") == "Bearer secret" and self.headers["X-Deadline-Ms"] == "250"
            answer = right_answer(self.path, self.headers["X-Request-Id"], customers)
            status, answer = (spoil(answer) or (200, answer)) if authorized else (401, {"code": "unauthenticated"})
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Says nothing: Locust's output is what a failing test should show."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def locust(url: str, *arguments: str, users: int = 4) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary"]
    command += ["--host", url, "--users", str(users), "--spawn-rate", str(max(users, 1)), "--run-time", "1s"]
    command += ["--api-key", "secret", "--deadline-ms", "250", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def nothing(_: Body) -> None:
    return None


def each_prediction(change: Callable[[Body], object]) -> Spoil:
    def spoil(answer: Body) -> None:
        for prediction in answer["predictions"]:
            change(prediction)

    return spoil


def swap(answer: Body) -> None:
    predictions = answer["predictions"]
    predictions[0], predictions[-1] = predictions[-1], predictions[0]


def mix(answer: Body) -> None:
    answer["predictions"][-1]["version"] = "4"


def raise_sums(prediction: Body) -> None:
    for explanation in prediction["explanations"].values():
        if explanation is not None:
            explanation["base"] += 0.01


def test_right_answers_pass_with_the_figures_printed(tmp_path: Path) -> None:
    expected = tmp_path / "expected.jsonl"
    scores = right_answer("/v1/predict", "", ["17850"])["predictions"][0]["scores"]
    expected.write_text(json.dumps({"customer_id": "17850", "scores": scores}) + "\n")
    customers = tmp_path / "customers.txt"
    customers.write_text("17850\n12583\n13047\n")

    with fake_gateway(nothing) as url:
        # Ten users: the weights then give every kind of user at least one.
        run = locust(url, "--rate", "4", "--customers", str(customers), "--expected", str(expected), users=10)

    assert run.returncode == 0, run.stdout + run.stderr
    assert "p50 ms    p95 ms    p99 ms" in run.stdout
    for name in ("predict 1 ", "predict 100 ", "explain 1 ", "offered ", "achieved "):
        assert name in run.stdout


@pytest.mark.parametrize(
    ("user", "spoil", "told"),
    [
        ("ExplainUser", each_prediction(raise_sums), "add up to"),
        ("BatchUser", swap, "in other order"),
        ("BatchUser", mix, "mixes versions"),
        ("PredictUser", each_prediction(lambda p: p["scores"].update(spend_90d=float("nan"))), "NaN"),
        ("PredictUser", lambda _: (500, {"code": "internal"}), "status 500 internal"),
    ],
    ids=["sums", "swapped", "versions", "nan", "500"],
)
def test_a_wrong_answer_fails_the_run(user: str, spoil: Spoil, told: str) -> None:
    with fake_gateway(spoil) as url:
        run = locust(url, user)

    assert run.returncode == 1
    assert told in run.stdout + run.stderr


def test_scores_that_are_not_the_expected_ones_fail_the_run(tmp_path: Path) -> None:
    customers, expected = tmp_path / "customers.txt", tmp_path / "expected.jsonl"
    customers.write_text("17850\n")
    expected.write_text('{"customer_id": "17850", "scores": {"spend_90d": 1}}\n')

    with fake_gateway(nothing) as url:
        run = locust(url, "--customers", str(customers), "--expected", str(expected))

    assert run.returncode == 1
    assert "not the expected answer" in run.stdout + run.stderr


def test_a_run_without_requests_fails() -> None:
    with fake_gateway(nothing) as url:
        run = locust(url, users=0)

    assert run.returncode == 1
    assert "No request was made" in run.stderr


def test_a_gateway_that_is_not_there_fails_the_run() -> None:
    with fake_gateway(nothing) as url:
        pass

    assert locust(url).returncode == 1


def test_a_missing_file_is_said_in_one_sentence() -> None:
    run = locust("http://127.0.0.1:9", "--customers", "no-such-file")

    assert run.returncode == 1
    assert "The load test cannot start" in run.stderr
    assert "Traceback" not in run.stderr
