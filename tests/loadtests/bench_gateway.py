"""A gateway in sixty lines, right or wrong as the environment says, for tests of the benchmark.

python -m uvicorn tests.loadtests.bench_gateway:app
"""

import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

WRONG = os.environ.get("WRONG", "")
STATUS = {"sheds": 503, "late": 504, "breaks": 500}
"""What every second request for reasons gets instead of them."""

explained: "Counter[int]" = Counter()
turn = itertools.count()
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    body = b""
    while scope["method"] == "POST":
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    status, answer = (200, answer_to(json.loads(body))) if body else (200, {"ready": True})
    if dict(scope["headers"]).get(b"authorization") != b"Bearer secret" and body:
        status = 401
    if scope["path"] == "/v1/explain":
        status = STATUS.get(WRONG, status) if next(turn) % 2 else status
        explained[status] += 1
    data = metrics() if scope["path"] == "/metrics" else json.dumps(answer).encode()
    headers = [(b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def metrics() -> bytes:
    counts = [("/v1/predict", 200, 7), *(("/v1/explain", status, count) for status, count in explained.items())]
    lines = [
        f'rapport_requests_total{{route="{route}",model="",code="{code}"}} {count}.0' for route, code, count in counts
    ]
    return "\n".join(["# TYPE rapport_requests_total counter", *lines, ""]).encode()


def answer_to(question: dict[str, Any]) -> dict[str, Any]:
    customers = [entity["customer_id"] for entity in question["entities"]]
    # Whoever is asked about in company gets somebody else's scores.
    scored = customers[::-1] if WRONG == "mixed up" else customers
    rows = zip(customers, scored, strict=True)
    return {"request_id": "r", "predictions": [prediction(customer, other) for customer, other in rows]}


def prediction(customer: str, scored: str) -> dict[str, Any]:
    share = 0.5 if WRONG == "constant" else zlib.crc32(scored.encode()) % 1000 / 1000
    status = "unknown_entity" if WRONG == "unknown" else "ok"
    scores = {"purchase_30d": share, "churn_90d": share, "spend_90d": 500 * share}
    reasons = {
        task: {"score": score, "base": 0, "method": "constant", "reasons": [{"contribution": score}]}
        for task, score in scores.items()
    }
    entity = {"customer_id": customer}
    return {"entity": entity, "version": "1", "status": status, "scores": scores, "explanations": reasons}
