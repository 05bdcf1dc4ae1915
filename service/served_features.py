"""Asks a running gateway for feature vectors, as any client could: `rapport skew check` compares them with events."""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from feature_client.contract import Contract
from feature_client.schema import Override
from feature_client.served import BATCH, Served, ServedValue
from service.watching import KEY, GatewayError

TIMEOUT_S = 30.0
DEADLINE_MS = 20_000


class _State(msgspec.Struct):
    """What is read of each feature in an answer of POST /v1/features."""

    value: Override
    status: str
    computed_at: datetime | None


class _Entity(msgspec.Struct):
    entity: dict[str, str]
    version: str
    as_of: datetime
    stale: list[str]
    features: dict[str, _State]


class _Answer(msgspec.Struct):
    model: str
    entities: list[_Entity]


class _Contracts(msgspec.Struct):
    contract: msgspec.Raw


class GatewaySource:
    """url: http://host:port; its key, of the scope predict, is in RAPPORT_KEY.

    model, version: None leaves the choice to the gateway.
    """

    def __init__(self, url: str, model: str | None = None, version: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise GatewayError(f"{url} is not the URL of a gateway: it starts with http:// or https://")
        self.url = url.rstrip("/")
        self.asked = {name: value for name, value in (("model", model), ("version", version)) if value is not None}
        self._contracts: dict[tuple[str, str], Contract] = {}

    @property
    def name(self) -> str:
        return f"the gateway at {self.url}"

    def look_up(self, entities: Sequence[str]) -> list[Served]:
        """In their order. Raises GatewayError, ContractError."""
        found = []
        for start in range(0, len(entities), BATCH):
            named = [{self._entity: entity} for entity in entities[start : start + BATCH]]
            answer = msgspec.json.decode(self._ask("/v1/features", {"entities": named, **self.asked}), type=_Answer)
            found += [self._served(answer.model, one) for one in answer.entities]
        return found

    @cached_property
    def _entity(self) -> str:
        """The join key of the model."""
        model = self.asked.get("model") or self._only_model()
        keys = self._contract(model, self.asked.get("version")).schema.entity
        if len(keys) != 1:
            raise GatewayError(f"{model} has several join keys: only models of one are checked")
        return keys[0].name

    def _only_model(self) -> str:
        models = json.loads(self._ask("/v1/models"))["models"]
        if len(models) != 1:
            raise GatewayError(f"{self.url} serves several models: say which")
        return str(models[0]["model"])

    def _contract(self, model: str, version: str | None) -> Contract:
        key = (model, version or "")
        if key not in self._contracts:
            query = "" if version is None else f"?version={version}"
            body = msgspec.json.decode(self._ask(f"/v1/models/{model}{query}"), type=_Contracts)
            self._contracts[key] = Contract.from_json(bytes(body.contract))
        return self._contracts[key]

    def _served(self, model: str, one: _Entity) -> Served:
        [entity] = one.entity.values()
        features = {
            name: ServedValue(state.value, state.computed_at, name in one.stale) for name, state in one.features.items()
        }
        return Served(entity, self._contract(model, one.version).schema, one.version, one.as_of, features)

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        key = os.environ.get(KEY)
        headers = {"Content-Type": "application/json", "X-Deadline-Ms": str(DEADLINE_MS)}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310  (checked above)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
                return bytes(response.read())
        except urllib.error.HTTPError as exc:
            if exc.code in (401, 403):
                raise GatewayError(f"{self.url} wants an API key with the scope predict: set {KEY}") from exc
            raise GatewayError(f"{self.url}{path} answers {exc.code}: {_detail(exc)}") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise GatewayError(f"{self.url} does not answer ({exc})") from exc


def _detail(exc: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(exc)["detail"])
    except (OSError, ValueError, KeyError, TypeError):
        return "no reason given"
