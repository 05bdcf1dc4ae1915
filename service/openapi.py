"""The OpenAPI document: FastAPI's, with the routes of front.py and the bodies of protocol.py, which it does not see."""

from typing import Any

import msgspec
from fastapi import FastAPI

from service import features_protocol, oip_protocol, protocol, whatif_protocol
from service.errors import INTERNAL, TABLE

COMPONENTS = (
    protocol.PredictRequest,
    protocol.ExplainRequest,
    protocol.PredictResponse,
    features_protocol.FeaturesRequest,
    features_protocol.FeaturesResponse,
    whatif_protocol.WhatIfRequest,
    whatif_protocol.WhatIfResponse,
    protocol.ModelList,
    protocol.ImportanceResponse,
    protocol.Problem,
    oip_protocol.InferRequest,
    oip_protocol.InferResponse,
    oip_protocol.ServerMetadata,
    oip_protocol.ModelMetadata,
)


KEY: dict[str, Any] = {"security": [{"key": []}]}
"""`openapi_extra` of an endpoint that needs a key."""

ONE_RELEASE: dict[str, Any] = KEY | {
    "parameters": [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}},
        {
            "name": "version",
            "in": "query",
            "description": "A release that is loaded. Default: the champion.",
            "schema": {"type": "string"},
        },
    ]
}
"""`openapi_extra` of what is answered about one release of a model."""


class Gateway(FastAPI):
    """FastAPI with the routes of front.py in its document."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document["paths"] = {**_front(), **document["paths"]}
        _, schemas = msgspec.json.schema_components(COMPONENTS, ref_template="#/components/schemas/{name}")
        components = document.setdefault("components", {})
        components["schemas"] = {**components.get("schemas", {}), **schemas}
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return document


def _front() -> dict[str, Any]:
    entities = [{"customer_id": "17850"}]
    predict = _post(
        "Predict",
        "Scores for up to 1,000 entities, from their stored features; with `explain`, reasons for up to 32.",
        protocol.PredictRequest,
        {"entities": entities, "explain": 3},
    )
    explain = _post(
        "Explain",
        "Scores and reasons for up to 32 entities: base plus all contributions is the score, in its own unit.",
        protocol.ExplainRequest,
        {"entities": entities, "tasks": ["churn_90d"], "top": 3},
    )
    features = _post(
        "Features",
        "What the online store holds for up to 1,000 entities, value by value, as the model gets it.",
        features_protocol.FeaturesRequest,
        {"entities": entities},
        features_protocol.FeaturesResponse,
    )
    whatif = _post(
        "Whatif",
        "How one customer's scores change with one or two values, and which changes of one value cross a threshold.",
        whatif_protocol.WhatIfRequest,
        {"entity": entities[0], "sweep": [{"feature": "sessions_30d"}], "goal": {"task": "churn_90d", "at_most": 0.2}},
        whatif_protocol.WhatIfResponse,
    )
    posts = {"/v1/predict": predict, "/v1/explain": explain, "/v1/features": features, "/v1/whatif": whatif}
    return {path: {"post": operation} for path, operation in posts.items()}


def _post(
    summary: str,
    description: str,
    request: type,
    example: dict[str, Any],
    answer: type = protocol.PredictResponse,
) -> dict[str, Any]:
    """The operation that takes `request` as JSON and answers `answer`."""
    answers = answers_of(answer)
    return {
        "summary": summary,
        "description": description,
        "operationId": f"{summary.lower()}_v1_{summary.lower()}_post",
        "responses": {str(status): answer for status, answer in answers.items()},
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": reference(request), "example": example}},
        },
        **KEY,
        "parameters": [
            {"name": "X-Deadline-Ms", "in": "header", "schema": {"type": "integer", "minimum": 1}},
            {"name": "X-Request-Id", "in": "header", "schema": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"}},
            {"name": "traceparent", "in": "header", "schema": {"type": "string"}},
        ],
    }


def answers_of(response: type, problems_as: str = "application/problem+json") -> dict[int | str, dict[str, Any]]:
    """`responses` of an endpoint: its answer, and every problem that the table of errors holds."""
    statuses: dict[int, list[str]] = {}
    for entry in [*TABLE.values(), INTERNAL]:
        statuses.setdefault(entry.status, []).append(f"`{entry.code}`: {entry.title}")
    problem = {problems_as: {"schema": reference(protocol.Problem)}}
    problems: dict[int | str, dict[str, Any]] = {
        status: {"description": "; ".join(lines), "content": problem}
        for status, lines in sorted(statuses.items())
        if status != 499  # nobody is left to read it
    }
    answer = {"description": "The answer", "content": {"application/json": {"schema": reference(response)}}}
    return {200: answer, **problems}


def reference(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
