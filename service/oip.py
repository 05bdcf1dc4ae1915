"""The Open Inference Protocol (KServe's v2) at /v2, with Triton's binary tensors: for clients that speak it already.

A model is asked with its tensors, or with the ids of customers in their place: then the gateway reads the features, as
/v1 does, and says with the scores what it found. `engagement.explain` is the model that gives attributions as well;
other explainers of a release are `engagement.explain_exact` and the like.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI, Request
from starlette.responses import Response

from feature_client.contract import Contract
from feature_client.release import EXPLAIN_SUFFIX
from service import bodies
from service.admission import deadline_of
from service.endpoints import Endpoints, json_response
from service.errors import DeadlineExceeded, InvalidRequest, UnknownModel
from service.exchange import Exchange, problem_response
from service.oip_body import Input, Output, read_question, write_answer
from service.oip_protocol import InferRequest, InferResponse, ModelMetadata, ServerMetadata, TensorMetadata
from service.oip_tensors import TensorScorer, max_rows, tensor_rows
from service.openapi import KEY, answers_of, reference
from service.predictor import Answered, Predictor
from service.protocol import Prediction, PredictRequest
from service.releases import Loaded, Served

EXTENSIONS = ["binary_tensor_data", "model_configuration"]
EXPLAINER_OF = {suffix: explainer for explainer, suffix in EXPLAIN_SUFFIX.items()}
HEADER = b"inference-header-content-length"
BINARY = "application/octet-stream"
MEDIA_TYPES = (b"", bodies.JSON, BINARY.encode())
"""tritonclient sends none."""

MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"

TENSORS = ("numeric", "categorical")
BY_ID = ("status", "applicable", "version")
"""Outputs that come on top where features were read."""


@dataclass(frozen=True)
class Graph:
    """What a path names. name: as it was written. explainer: whose graph; None: the score graph."""

    name: str
    explainer: str | None
    served: Served
    loaded: Loaded

    @property
    def contract(self) -> Contract:
        return self.loaded.release.contract

    @property
    def max_rows(self) -> int:
        return max_rows(self.explainer)

    def outputs(self, rows: int) -> Mapping[str, tuple[int, ...]]:
        return self.contract.outputs(rows, self.explainer)

    @property
    def keys(self) -> list[str]:
        """Inputs that may stand in place of the tensors."""
        return [key.name for key in self.contract.schema.entity]


@dataclass
class OpenInference:
    endpoints: Endpoints
    predictor: Predictor
    tensors: TensorScorer

    async def server(self, request: Request) -> Response:
        """Name, version and extensions."""
        Exchange.of(request).route = "/v2"
        return json_response(ServerMetadata("rapport", version("rapport"), EXTENSIONS))

    async def live(self, request: Request) -> Response:
        """200 while the process answers."""
        response = await self.endpoints.livez(request)
        Exchange.of(request).route = "/v2/health/live"
        return response

    async def ready(self, request: Request) -> Response:
        """200 once a release gave its golden answers and the store answered once, as /readyz."""
        response = await self.endpoints.readyz(request)
        Exchange.of(request).route = "/v2/health/ready"
        return response

    async def model(self, request: Request) -> Response:
        """Tensors of a model; its `parameters` name their columns, and the inputs that may stand in their place."""
        graph = self._graph(request, "")
        schema = graph.contract.schema
        inputs = [
            TensorMetadata("numeric", "FP32", [-1, len(schema.numeric)]),
            TensorMetadata("categorical", "INT64", [-1, len(schema.categorical)]),
        ]
        columns = {
            "numeric": [feature.name for feature in schema.numeric],
            "categorical": {feature.name: ["", "", *feature.vocabulary] for feature in schema.categorical},
            "tasks": list(graph.contract.task_names),
            "groups": list(schema.groups),
            "features": [feature.name for feature in schema.features],
        }
        outputs = [TensorMetadata(name, "FP32", [-1, *shape]) for name, (_, *shape) in graph.outputs(1).items()]
        by_id = {
            "inputs": [TensorMetadata(key, "BYTES", [-1]) for key in graph.keys],
            "outputs": [
                TensorMetadata("status", "BYTES", [-1]),
                TensorMetadata("applicable", "BOOL", [-1, len(graph.contract.tasks)]),
                TensorMetadata("version", "BYTES", [-1]),
            ],
        }
        model, _, _ = graph.name.partition(".")
        versions = _graphs(model, graph.served)[graph.name]
        parameters = {"columns": columns, "instead_of_tensors": by_id, "max_rows": graph.max_rows}
        return json_response(ModelMetadata(graph.name, versions, "onnxruntime_onnx", inputs, outputs, parameters))

    async def model_ready(self, request: Request) -> Response:
        """200 where the model, in this version, is loaded and gave its golden answers."""
        graph = self._graph(request, "/ready")
        return json_response({"name": graph.name, "ready": True})

    async def config(self, request: Request) -> Response:
        """What Triton's clients ask of a model's configuration: batching, inputs and outputs."""
        graph = self._graph(request, "/config")
        schema = graph.contract.schema
        outputs = graph.outputs(1)
        return json_response(
            {
                "name": graph.name,
                "platform": "onnxruntime_onnx",
                "backend": "onnxruntime",
                "max_batch_size": graph.max_rows,
                "input": [
                    {"name": "numeric", "data_type": "TYPE_FP32", "dims": [len(schema.numeric)]},
                    {"name": "categorical", "data_type": "TYPE_INT64", "dims": [len(schema.categorical)]},
                ],
                "output": [
                    {"name": name, "data_type": "TYPE_FP32", "dims": list(shape)}
                    for name, (_, *shape) in outputs.items()
                ],
            }
        )

    async def index(self, request: Request) -> Response:
        """Every model and version that is loaded."""
        self.endpoints.enter(request, "/v2/repository/index", "predict")
        return json_response(
            [
                {"name": name, "version": number, "state": "READY", "reason": ""}
                for model, served in self.endpoints.releases.served.items()
                for name, numbers in _graphs(model, served).items()
                for number in numbers
            ]
        )

    async def infer(self, request: Request) -> Response:
        """Scores for tensors, or for the customers whose ids stand in their place; JSON, binary, or both."""
        exchange = Exchange.of(request)
        try:
            return await self._infer(request, exchange)
        except asyncio.CancelledError:
            # By uvicorn: the time to drain is over.
            return problem_response(DeadlineExceeded(), exchange, open_inference=True)

    async def _infer(self, request: Request, exchange: Exchange) -> Response:
        exchange.has_left = partial(bodies.has_gone, request.receive)
        graph = self._graph(request, "/infer")
        settings, headers = self.endpoints.settings, dict(request.scope["headers"])
        body = await bodies.read(
            headers, request.receive, settings.max_body_bytes, settings.body_timeout_ms / 1_000, MEDIA_TYPES
        )
        arrived = time.monotonic()
        question = read_question(body, headers.get(HEADER))
        default_ms = settings.deadline_ms if graph.explainer is None else settings.explain_deadline_ms
        deadline = deadline_of(headers.get(b"x-deadline-ms"), default_ms, settings.max_deadline_ms, exchange.started)
        if question.timeout_s is not None:
            deadline = min(deadline, exchange.started + question.timeout_s)
        exchange.deadline = deadline
        asked = request.path_params.get("version")
        if question.model not in (None, graph.name) or question.version not in (None, asked):
            raise InvalidRequest("model_name or model_version: not those of the path")
        answer = InferResponse(graph.name, [], id=question.id)
        given = tuple(graph.outputs(1))
        if _asks_by_id(graph, question.inputs):
            wanted = question.wanted((*given, *BY_ID))
            entities = entities_of(question.inputs, graph.keys, graph.max_rows)
            _note_decoded(exchange, arrived)
            request_of_ids = PredictRequest(entities=entities, model=graph.contract.model, version=asked)
            response, answered = await self.predictor.outputs(request_of_ids, graph.explainer, exchange)
            outputs = _of_customers(graph, response.predictions, answered)
            versions = {prediction.version for prediction in response.predictions}
            answer.model_version = versions.pop() if len(versions) == 1 else None
            answer.parameters = {"as_of": response.as_of}
        else:
            wanted = question.wanted(given)
            rows = tensor_rows(graph.contract.schema, question.inputs, graph.max_rows)
            _note_decoded(exchange, arrived)
            found = await self.tensors.score(graph.loaded, rows, exchange, graph.explainer)
            outputs = [Output(name, "FP32", values) for name, values in found.items()]
            answer.model_version = graph.loaded.release.version
        content, head = write_answer(answer, outputs, wanted)
        exchange.stages["encode"] = exchange.stages.get("encode", 0.0) + time.monotonic() - exchange.since
        if head is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type=BINARY, headers={HEADER.decode(): str(head)})

    def _graph(self, request: Request, below: str) -> Graph:
        """Lets the request in, and finds what its path names. Raises the errors of both."""
        name = request.path_params["model"]
        asked = request.path_params.get("version")
        model, _, suffix = name.partition(".")
        explainer = EXPLAINER_OF.get(suffix)
        self.endpoints.enter(
            request, (VERSION if asked else MODEL) + below, "predict" if explainer is None else "explain"
        )
        served = self.endpoints.releases.find(model if explainer else name)
        # Without customers there is nobody to be in a canary.
        loaded = served.champion if asked is None else served.arms((), asked)[0].loaded
        if explainer not in (None, *loaded.release.manifest.explainers):
            raise UnknownModel("the release has no such explainer")
        return Graph(name, explainer, served, loaded)


def _asks_by_id(graph: Graph, inputs: Mapping[str, Input]) -> bool:
    """Raises InvalidRequest where these are neither the tensors nor the ids of a model."""
    if inputs.keys() == set(TENSORS):
        return False
    if inputs.keys() == set(graph.keys):
        return True
    raise InvalidRequest(f"inputs: either {' and '.join(TENSORS)}, or {' and '.join(graph.keys)}")


def _note_decoded(exchange: Exchange, arrived: float) -> None:
    exchange.since = time.monotonic()
    exchange.stages["decode"] = exchange.since - arrived


def entities_of(inputs: Mapping[str, Input], keys: Sequence[str], most: int) -> list[dict[str, str]]:
    """One a row, of at most so many; an input holds one join key of all. Raises InvalidRequest, InvalidJson."""
    columns = [inputs[key].texts(most) for key in keys]
    if len(set(map(len, columns))) > 1:
        raise InvalidRequest(f"{' and '.join(keys)} have not as many rows")
    return [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]


def _of_customers(graph: Graph, predictions: Sequence[Prediction], answered: Sequence[Answered]) -> list[Output]:
    """All that the graph gives is NaN where a task is not defined for a customer.

    Raises InvalidRequest where a customer is unknown and the route gives no score then, and where two releases answer
    that are not alike.
    """
    for row, prediction in enumerate(predictions):
        if prediction.scores is None:
            raise InvalidRequest(f"{graph.keys[0]}[{row}]: nothing is known of it, and this model does not score such")
    outputs = {name: np.full(shape, np.nan, np.float32) for name, shape in graph.outputs(len(predictions)).items()}
    for (loaded, positions), _, parts in answered:
        if not _alike(loaded.release.contract, graph):
            raise InvalidRequest("versions that answer these customers differ in tasks or groups; ask for one version")
        rows = iter(range(len(predictions)) if positions is None else positions)
        for part in parts:
            eligible = loaded.release.contract.eligible(part.encoded)
            for found in range(part.first, part.first + len(part.predictions)):
                row = next(rows)
                for name, values in outputs.items():
                    values[row, eligible[found]] = part.outputs[name][found, eligible[found]]
    return [
        *(Output(name, "FP32", values) for name, values in outputs.items()),
        Output("status", "BYTES", [prediction.status for prediction in predictions]),
        Output("applicable", "BOOL", ~np.isnan(outputs["scores"])),
        Output("version", "BYTES", [prediction.version for prediction in predictions]),
    ]


def _parts(contract: Contract, explainer: str) -> list[str]:
    """What its attributions are of."""
    if contract.explanation.explainers[explainer].by_feature:
        return [feature.name for feature in contract.schema.features]
    return list(contract.schema.groups)


def _alike(contract: Contract, graph: Graph) -> bool:
    """Whether outputs of `graph` under another contract mean the same, column by column."""
    if contract is graph.contract:
        return True
    if contract.task_names != graph.contract.task_names:
        return False
    return graph.explainer is None or (
        graph.explainer in contract.explanation.explainers
        and _parts(contract, graph.explainer) == _parts(graph.contract, graph.explainer)
    )


def _graphs(model: str, served: Served) -> dict[str, list[str]]:
    """Name under /v2 of every graph of a model -> the versions that have it."""
    found: dict[str, list[str]] = {}
    for number in sorted(served.versions, key=int):
        found.setdefault(model, []).append(number)
        for explainer in served.versions[number].release.manifest.explainers:
            found.setdefault(f"{model}.{EXPLAIN_SUFFIX[explainer]}", []).append(number)
    return found


def add_routes(app: FastAPI, service: OpenInference) -> None:
    """Of both forms where a path may name a version."""
    app.get("/v2", response_model=None, responses=_answers(ServerMetadata))(service.server)
    app.get("/v2/health/live", response_model=None)(service.live)
    app.get("/v2/health/ready", response_model=None)(service.ready)
    app.post("/v2/repository/index", response_model=None, openapi_extra=KEY)(service.index)
    for path in (MODEL, VERSION):
        extra = {**KEY, "parameters": [_in_path(name) for name in ("model", "version") if f"{{{name}}}" in path]}
        document: dict[str, Any] = {"response_model": None, "openapi_extra": extra}
        app.get(path, **document, responses=_answers(ModelMetadata))(service.model)
        app.get(f"{path}/ready", **document)(service.model_ready)
        app.get(f"{path}/config", **document)(service.config)
        document["openapi_extra"] = {**extra, "requestBody": _question()}
        app.post(f"{path}/infer", **document, responses=_answers(InferResponse))(service.infer)


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _question() -> dict[str, Any]:
    example = {"inputs": [{"name": "customer_id", "shape": [1], "datatype": "BYTES", "data": ["17850"]}]}
    content = {"application/json": {"schema": reference(InferRequest), "example": example}, BINARY: {}}
    return {"required": True, "content": content}


def _answers(kind: type[msgspec.Struct]) -> dict[int | str, dict[str, Any]]:
    return answers_of(kind, problems_as="application/json")
