"""The peers: how each is started by its documentation, how it is asked, and what its answers mean."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtests.peers.model import Model

MAX_BATCH, BATCH_TIME_S = 64, 0.001
"""As litserve_app.py has them."""
BATCHES = f"batches of up to {MAX_BATCH} within {BATCH_TIME_S * 1e3:g} ms"
ID = "customer_id"
NO_MOMENT = -(2**63)
"""A missing timestamp in the answer of Feast's server, where its SDK says None."""

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Start:
    """What a peer needs to start. folder: its own, to write its settings into; Feast's settings are in `repo`."""

    python: Path
    port: int
    repo: Path
    folder: Path


@dataclass(frozen=True)
class Peer:
    """ways: documented ways to run it, by name; the fastest at 64 clients is measured.

    packages: whose versions are told. path, ready: of its URLs, the first of a way. question: a customer's request.
    scores: an answer's, by task. whole_job: False for a lookup alone.
    """

    name: str
    title: str
    documentation: str
    packages: Sequence[str]
    settings: str
    ways: Mapping[str, Callable[[Start], list[str]]]
    path: Callable[[str], str]
    ready: str
    question: Callable[[str], Mapping[str, Any]]
    scores: Callable[[Any, Model], Scores]
    whole_job: bool = True


def plain(customer: str) -> Mapping[str, Any]:
    return {ID: customer}


def open_inference(customer: str) -> Mapping[str, Any]:
    return {"inputs": [{"name": ID, "shape": [1, 1], "datatype": "BYTES", "data": [customer]}]}


def online_features(customer: str) -> Mapping[str, Any]:
    return {"feature_service": "engagement", "entities": {ID: [customer]}}


def uvicorn(start: Start) -> list[str]:
    options = ["--port", str(start.port), "--no-access-log", "--log-level", "warning"]
    return [str(start.python), "-m", "uvicorn", "loadtests.peers.fastapi_app:app", *options]


def mlserver(runtime: str, workers: int) -> Callable[[Start], list[str]]:
    def command(start: Start) -> list[str]:
        server = {
            "debug": False,
            "host": "127.0.0.1",
            "http_port": start.port,
            # gRPC and the metrics' port are not asked for: any free port.
            "grpc_port": 0,
            "metrics_endpoint": None,
            "gzip_enabled": False,
            "parallel_workers": workers,
        }
        model = {
            "name": "engagement",
            "implementation": f"loadtests.peers.mlserver_runtime.{runtime}",
            "max_batch_size": MAX_BATCH,
            "max_batch_time": BATCH_TIME_S,
        }
        (start.folder / "settings.json").write_text(json.dumps(server))
        (start.folder / "model-settings.json").write_text(json.dumps(model))
        return [str(start.python.with_name("mlserver")), "start", str(start.folder)]

    return command


def litserve(workers: int, queue: str) -> Callable[[Start], list[str]]:
    return lambda start: [
        *(str(start.python), "-m", "loadtests.peers.litserve_app", str(start.port), str(workers), queue)
    ]


def feast_serve(start: Start) -> list[str]:
    # By default a worker restarts after 1,000 requests.
    options = ["--host", "127.0.0.1", "--port", str(start.port), "--no-access-log", "--max-requests", "0"]
    feast = [str(start.python.with_name("feast")), "--chdir", str(start.repo), "--log-level", "warning"]
    return [*feast, "serve", *options]


def named_scores(answer: Any, _: Model) -> Scores:
    return dict(answer["scores"])


def tensor_scores(answer: Any, model: Model) -> Scores:
    [output] = answer["outputs"]
    return dict(zip(model.tasks, output["data"], strict=True))


def scores_of_features(answer: Any, model: Model) -> Scores:
    """Of a lookup alone: what its features give, so that they can be held against the gateway's scores, too."""
    names = answer["metadata"]["feature_names"]
    columns = {name: result["values"] for name, result in zip(names, answer["results"], strict=True)}
    for field in model.encoder.timestamps:
        columns[field] = [None if at == NO_MOMENT else datetime.fromtimestamp(at, UTC) for at in columns[field]]
    [scores] = model.named(columns)
    return scores


PEERS = (
    Peer(
        name="fastapi",
        title="FastAPI",
        documentation="FastAPI: Concurrency and async / await; Feast: Python SDK, get_online_features",
        packages=("fastapi", "uvicorn", "feast", "redis", "onnxruntime"),
        settings="uvicorn, one worker, uvloop, httptools, no access log",
        ways={"sync": uvicorn, "async": uvicorn},
        path=lambda way: f"/{way}",
        ready="/health",
        question=plain,
        scores=named_scores,
    ),
    Peer(
        name="mlserver",
        title="MLServer",
        documentation="MLServer: Custom Inference Runtimes; Adaptive Batching; Parallel Inference",
        packages=("mlserver", "fastapi", "uvicorn", "feast", "redis", "onnxruntime"),
        settings=f"{BATCHES}, uvloop, httptools, no metrics, no compression",
        ways={
            "in process, async SDK": mlserver("Runtime", 0),
            "in process, sync SDK": mlserver("BlockingRuntime", 0),
            "one worker, sync SDK": mlserver("BlockingRuntime", 1),
        },
        path=lambda _: "/v2/models/engagement/infer",
        ready="/v2/models/engagement/ready",
        question=open_inference,
        scores=tensor_scores,
    ),
    Peer(
        name="litserve",
        title="LitServe",
        documentation="LitServe: Batching; LitServer (workers_per_device, fast_queue)",
        packages=("litserve", "fastapi", "uvicorn", "feast", "redis", "onnxruntime"),
        settings=f"{BATCHES}, one worker, uvloop, httptools",
        ways={"queue": litserve(1, "queue"), "fast_queue": litserve(1, "zeromq")},
        path=lambda _: "/predict",
        ready="/health",
        question=plain,
        scores=named_scores,
    ),
    Peer(
        name="feast",
        title="Feast's feature server",
        documentation="Feast: Python feature server",
        packages=("feast", "fastapi", "uvicorn", "gunicorn", "redis"),
        settings="one worker that never restarts, no access log",
        ways={"lookup alone": feast_serve},
        path=lambda _: "/get-online-features",
        ready="/health",
        question=online_features,
        scores=scores_of_features,
        whole_job=False,
    ),
)
