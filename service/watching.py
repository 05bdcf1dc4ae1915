"""Asks a running gateway, as any client could, until every worker of it serves what a route says."""

import http.client
import os
import time
import urllib.error
import urllib.request
from typing import TypeVar

import msgspec

from feature_client.errors import RapportError
from feature_client.routes import Route

Body = TypeVar("Body")

TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 2.0
PAUSE_S = 0.05

AGREEING = 20
"""Answers in a row, each on a connection of its own, which the kernel deals to some worker: of four workers, one that
has not followed stays unseen once in 300 times."""

KEY = "RAPPORT_KEY"
"""The variable with an API key of scope predict. Not an option: everyone on the machine sees those."""


class GatewayError(RapportError):
    """A gateway that cannot be asked, or does not serve what it should in time; the message says what it says."""


class _Served(msgspec.Struct):
    """What is read of each in GET /v1/models."""

    model: str
    champion: str
    versions: list[str]


class _Models(msgspec.Struct):
    models: list[_Served]


class _Routed(msgspec.Struct):
    """What is read of GET /v1/models/{model}."""

    route: Route


class _Behind(Exception):
    """What is not yet as it should be."""


def wait_until_served(url: str, model: str, route: Route) -> float:
    """url: of the gateway, http://host:port. Returns the seconds until all answers agreed with `route`.

    Raises GatewayError, after TIMEOUT_S at the latest.
    """
    if not url.startswith(("http://", "https://")):
        raise GatewayError(f"{url} is not the URL of a gateway: it starts with http:// or https://")
    began = time.monotonic()
    agreed, since = 0, 0.0
    while True:
        try:
            _check(url.rstrip("/"), model, route)
        except _Behind as behind:
            agreed = 0
            if time.monotonic() - began > TIMEOUT_S:
                raise GatewayError(
                    f"routes.toml is as asked, but after {TIMEOUT_S:.0f} s {url} does not serve it: {behind}; "
                    "its /readyz and its log say more"
                ) from None
            time.sleep(PAUSE_S)
        else:
            since = since if agreed else time.monotonic() - began
            agreed += 1
            if agreed == AGREEING:
                return since


def _check(url: str, model: str, route: Route) -> None:
    models = _get(f"{url}/v1/models", _Models).models
    served = next((one for one in models if one.model == model), None)
    if served is None:
        raise _Behind(f"it does not serve {model}")
    if served.champion != str(route.champion):
        raise _Behind(f"its champion is {served.champion}")
    if missing := [str(version) for version in route.named if str(version) not in served.versions]:
        raise _Behind(f"it has not loaded {model} {', '.join(missing)}")
    if _get(f"{url}/v1/models/{model}", _Routed).route != route:
        raise _Behind("its route is another one")


def _get(url: str, body: type[Body]) -> Body:
    key = os.environ.get(KEY)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310  (checked above)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:  # noqa: S310
            return msgspec.json.decode(response.read(), type=body)
    except urllib.error.HTTPError as exc:
        if exc.code in (401, 403):
            raise GatewayError(f"{url} wants an API key with the scope predict: set {KEY}") from exc
        raise _Behind(f"it answers {exc.code}") from exc
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as exc:
        raise _Behind(f"it does not answer ({exc})") from exc
