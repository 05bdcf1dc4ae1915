"""The judge can condemn: for each thing that must never happen, a history in which it does."""

import copy
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest

from feature_client.routes import Canary, Route
from tests.faults.checks import Violation, counted_once, judge
from tests.faults.oracle import Answer, Oracle, Reasons
from tests.faults.promise import GONE, MODEL_DOWN, Promise
from tests.faults.traffic import HUNG, LOST, Ask, Asks, Connection, Kind, Outcome, TrafficDriver

Body = dict[str, Any]

WHY_BUYS = {"how often": 0.15, "recency": 0.05}
ORACLE = Oracle(
    {
        "1": {
            "a": Answer("ok", {"buys": 0.3, "leaves": None}, {"buys": Reasons(0.1, WHY_BUYS)}),
            "b": Answer("ok", {"buys": 0.7, "leaves": 0.2}, {}),
        },
        "2": {
            "a": Answer("ok", {"buys": 0.4, "leaves": None}, {"buys": Reasons(0.2, WHY_BUYS)}),
            "b": Answer("ok", {"buys": 0.6, "leaves": 0.1}, {}),
        },
    }
)


def answered(number: int, ask: Ask, version: str, *, at: float = 1.0, reasons_of: str | None = None) -> Outcome:
    """A right answer of `version`, whose reasons may be those of another."""
    predictions = []
    for customer in ask.customers:
        answer = ORACLE.answers[version][customer]
        prediction: Body = {
            "entity": {"customer_id": customer},
            "version": version,
            "status": answer.status,
            "scores": dict(answer.scores),
        }
        if ask.kind != "predict":
            prediction["explanations"] = _explanations(ORACLE.answers[reasons_of or version][customer])
        predictions.append(prediction)
    body = {"request_id": f"chaos-{number}", "predictions": predictions}
    return Outcome(number, 0, ask, at, at + 0.01, 200, f"chaos-{number}", body)


def _explanations(answer: Answer) -> Body:
    return {
        task: score
        and {
            "score": score,
            "base": answer.reasons[task].base,
            "reasons": [
                {"group": group, "contribution": value} for group, value in answer.reasons[task].contributions.items()
            ],
        }
        for task, score in answer.scores.items()
    }


def promised(*routes: tuple[float, Route]) -> Promise:
    """Each route from its instant on; the one before is over one second later."""
    promise = Promise()
    for since, route in routes:
        promise.expect(route).since = since
        for period in promise.periods[:-1]:
            period.until = min(period.until, since + 1.0)
    return promise


FIRST = promised((0.0, Route(champion=1)))
ONE = Ask("predict", ("a",))
WHY = Ask("explain", ("a",))


def kinds(*history: Outcome, promise: Promise = FIRST) -> list[str]:
    return [violation.kind for violation in judge(history, promise, ORACLE)]


def changed(outcome: Outcome, change: Callable[[Body], object]) -> Outcome:
    body = copy.deepcopy(outcome.body)
    change(body["predictions"][0])
    return Outcome(**{**vars(outcome), "body": body})


def without_answer(status: int, code: str = "", *, ask: Ask = ONE, at: float = 1.0) -> Outcome:
    return Outcome(1, 0, ask, at, at + 0.01, status, None, {"code": code} if code else {})


def test_right_answers_are_acquitted() -> None:
    many = Ask("predict", ("b", "a"))
    assert kinds(answered(1, ONE, "1"), answered(2, many, "1"), answered(3, WHY, "1")) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda given: given["scores"].update(buys=0.7), "wrong"),  # b's
        (lambda given: given["scores"].update(buys=0.30002), "wrong"),
        (lambda given: given["scores"].update(buys=float("nan")), "wrong"),
        (lambda given: given["scores"].update(buys=None), "wrong"),
        (lambda given: given["scores"].update(leaves=0.0), "wrong"),
        (lambda given: given["scores"].pop("leaves"), "wrong"),
        (lambda given: given.update(status="degraded"), "wrong"),
        (lambda given: given.update(version="9"), "stale"),
        (lambda given: given.update(entity={"customer_id": "b"}), "foreign"),
        (lambda given: given["explanations"]["buys"].update(score=0.4), "wrong"),
        (lambda given: given["explanations"]["buys"]["reasons"].pop(), "wrong"),
        (lambda given: given["explanations"]["buys"]["reasons"][0].update(contribution=0.2), "wrong"),
        (lambda given: given["explanations"].update(buys=None), "wrong"),
        (lambda given: given.update(explanations=None), "wrong"),
    ],
)
def test_one_changed_value_is_found(change: Callable[[Body], object], kind: str) -> None:
    assert kind in kinds(changed(answered(1, WHY, "1"), change))


def test_another_customers_answer_is_found_and_named() -> None:
    theirs = ORACLE.answers["1"]["b"]
    [violation] = judge(
        [changed(answered(1, ONE, "1"), lambda given: given.update(scores=dict(theirs.scores)))], FIRST, ORACLE
    )
    assert (violation.kind, violation.what) == ("wrong", "scores of a: those of b")


def test_the_answer_to_another_request_is_found() -> None:
    outcome = answered(1, ONE, "1")
    assert kinds(Outcome(**{**vars(outcome), "request_id": "chaos-2"})) == ["foreign"]


def test_score_and_reasons_of_different_versions_are_mixed() -> None:
    assert kinds(answered(1, WHY, "1", reasons_of="2")) == ["mixed"]


def test_the_old_version_may_answer_until_the_flip_is_over_and_the_new_one_from_its_beginning() -> None:
    flip = promised((0.0, Route(champion=1)), (10.0, Route(champion=2)))
    early, late = answered(1, ONE, "2", at=9.0), answered(2, ONE, "1", at=11.5)
    assert kinds(early, promise=flip) == kinds(late, promise=flip) == ["stale"]
    assert kinds(answered(1, ONE, "2", at=10.5), answered(2, ONE, "1", at=10.5), promise=flip) == []


def test_a_version_asked_for_by_number_is_the_one_that_answers() -> None:
    both = promised((0.0, Route(champion=1, previous=2)))
    assert kinds(answered(1, Ask("predict", ("a",), version="2"), "2"), promise=both) == []
    assert kinds(answered(1, Ask("predict", ("a",), version="2"), "1"), promise=both) == ["stale"]
    refused = without_answer(404, "unknown_model", ask=Ask("predict", ("a",), version="2"))
    assert kinds(refused, promise=both) == ["refused"]
    assert kinds(refused, promise=FIRST) == []


def test_a_customer_that_changes_arms_is_found_unless_the_route_has_changed() -> None:
    split = promised((0.0, Route(champion=1, canary=Canary(version=2, percent=50))))
    assert kinds(answered(1, ONE, "2"), answered(2, WHY, "1"), promise=split) == ["stray"]
    assert kinds(answered(1, ONE, "2"), answered(2, WHY, "2"), promise=split) == []


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (without_answer(500, "internal"), "defect"),
        (without_answer(503, "model_unavailable"), "refused"),
        (without_answer(LOST), "refused"),
        (without_answer(HUNG), "hung"),
    ],
)
def test_whoever_gets_no_answer_without_a_fault_is_found(outcome: Outcome, kind: str) -> None:
    assert kinds(outcome) == [kind]


def test_a_fault_excuses_only_its_own_refusals_and_only_while_it_lasts() -> None:
    promise = promised((0.0, Route(champion=1)))
    with promise.window("fault", MODEL_DOWN, GONE) as window:
        pass
    window.since, window.until = 5.0, 6.0
    assert kinds(without_answer(503, "model_unavailable", at=5.5), promise=promise) == []
    assert kinds(without_answer(LOST, at=5.5), promise=promise) == []
    assert kinds(without_answer(503, "model_unavailable", at=6.5), promise=promise) == ["refused"]
    assert kinds(without_answer(504, "deadline_exceeded", at=5.5), promise=promise) == ["refused"]
    assert kinds(without_answer(500, "internal", at=5.5), promise=promise) == ["defect"]
    assert kinds(without_answer(HUNG, at=5.5), promise=promise) == ["hung"]


def test_every_request_has_exactly_one_outcome() -> None:
    def said(violations: Iterator[Violation]) -> list[str]:
        return [violation.what for violation in violations]

    assert said(counted_once([1, 2], started=[1, 2])) == []
    assert said(counted_once([1, 1])) == ["request 1 has 2 outcomes"]
    assert said(counted_once([1], started=[1, 2])) == ["request 2 has 0 outcomes"]


class Odd(http.server.BaseHTTPRequestHandler):
    """What a client may meet, by the path it asks for."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/hang":
            threading.Event().wait(0.5)
            return
        if self.path == "/drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = b"not JSON" if self.path == "/garbage" else b'{"code": "internal"}'
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Request-Id", "r")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def odd_server() -> Iterator[tuple[str, int]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield "127.0.0.1", server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/fine", 200, {"code": "internal"}),
        ("/broken", 500, {"code": "internal"}),
        ("/garbage", 200, {}),
        ("/drop", LOST, {}),
        ("/hang", HUNG, {}),
    ],
)
def test_a_client_notes_whatever_it_gets_and_goes_on(path: str, status: int, body: Body) -> None:
    with odd_server() as address:
        connection = Connection(0, address, patience_s=0.2)
        answers = [connection.exchange("POST", path, b"{}") for _ in range(2)]
        connection.close()
    assert [(one[0], one[2]) for one in answers] == [(status, body)] * 2


def test_an_open_load_goes_on_whatever_it_gets_and_notes_all_of_it() -> None:
    asks = Asks(["a"] * 50, ["a"] * 2, lambda: ["1"], seed=0)
    with odd_server() as address, TrafficDriver(address, asks, rate=500.0, connections=4) as driver:
        driver.wait_for(100)
    assert not list(counted_once([outcome.number for outcome in driver.history], driver.started))
    assert {outcome.ask.kind for outcome in driver.history} == set(get_args(Kind))
    assert {violation.kind for violation in judge(driver.history, FIRST, ORACLE)} == {"foreign"}
