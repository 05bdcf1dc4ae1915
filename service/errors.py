"""The only table of statuses: every error of the domain, its HTTP status and its stable code (RFC 9457)."""

from dataclasses import dataclass

from feature_client.online.reader import EntityError, FeatureStoreUnavailable
from feature_client.schema import OverrideError
from service.backends import BackendUnavailable, BadModelOutput
from service.protocol import Problem


class InvalidJson(Exception):
    """The body is not JSON."""


class InvalidRequest(Exception):
    """The body is JSON but cannot be a request; the message says where and never echoes a value."""


class InvalidEntity(InvalidRequest):
    """EntityError of a body that has one entity."""


class InvalidFeature(InvalidRequest):
    """OverrideError of a body that has no list of them; the message says where."""


class Unauthenticated(Exception):
    """No key, or one that is malformed, unknown, or expired: one answer for all."""


class Forbidden(Exception):
    """The key is valid but lacks the scope."""


class NotFound(Exception):
    """No such path."""


class MethodNotAllowed(Exception):
    """The path exists, with another method."""


class UnknownModel(Exception):
    """No such model or version is served."""


class SlowBody(Exception):
    """The request body did not arrive in time."""


class BodyTooLarge(Exception):
    """The request body is over the limit."""


class UnsupportedMediaType(Exception):
    """Not application/json, or compressed."""


class QuotaExceeded(Exception):
    """The key's own rate is used up."""


class Overloaded(Exception):
    """More work is admitted than can be answered in time."""


class NotReady(Exception):
    """No release is loaded yet."""


class DeadlineExceeded(Exception):
    """The request's budget was spent before the answer was there."""


class ClientGone(Exception):
    """The client closed the connection; nobody reads the answer (499 in the log only)."""


@dataclass(frozen=True)
class Entry:
    status: int
    code: str
    title: str
    retry_after_s: int | None = None


TABLE: dict[type[Exception], Entry] = {
    InvalidJson: Entry(400, "invalid_json", "The body is not JSON"),
    Unauthenticated: Entry(401, "unauthenticated", "A valid API key is required"),
    Forbidden: Entry(403, "forbidden", "The API key lacks the scope"),
    NotFound: Entry(404, "not_found", "No such path"),
    UnknownModel: Entry(404, "unknown_model", "No such model or version is served"),
    MethodNotAllowed: Entry(405, "method_not_allowed", "The path does not take this method"),
    SlowBody: Entry(408, "slow_body", "The request body did not arrive in time"),
    BodyTooLarge: Entry(413, "body_too_large", "The request body is too large"),
    UnsupportedMediaType: Entry(415, "unsupported_media_type", "The body must be plain application/json"),
    InvalidRequest: Entry(422, "invalid_request", "The request cannot be answered as it stands"),
    EntityError: Entry(422, "invalid_entity", "An entity id cannot be a key of this model"),
    OverrideError: Entry(422, "invalid_feature", "A request-time feature cannot be used"),
    InvalidEntity: Entry(422, "invalid_entity", "An entity id cannot be a key of this model"),
    InvalidFeature: Entry(422, "invalid_feature", "A request-time feature cannot be used"),
    QuotaExceeded: Entry(429, "quota_exceeded", "The API key's quota is used up", retry_after_s=1),
    ClientGone: Entry(499, "client_closed", "The client closed the connection"),
    BadModelOutput: Entry(502, "bad_model_output", "The model answered something that cannot be an answer"),
    Overloaded: Entry(503, "overloaded", "Too much is in flight", retry_after_s=1),
    NotReady: Entry(503, "not_ready", "No release is loaded yet", retry_after_s=2),
    FeatureStoreUnavailable: Entry(503, "feature_store_unavailable", "The feature store is down", retry_after_s=1),
    BackendUnavailable: Entry(503, "model_unavailable", "The model cannot be reached", retry_after_s=1),
    DeadlineExceeded: Entry(504, "deadline_exceeded", "The deadline passed before the answer was there"),
}

INTERNAL = Entry(500, "internal", "A defect of the gateway; its trace is in the log under this request id")

DETAILED = (InvalidJson, InvalidRequest, UnknownModel, BodyTooLarge, UnsupportedMediaType, Forbidden, SlowBody)
"""Errors whose own message is written for the client. What dependencies say goes into the log only."""


def entry_of(error: Exception) -> Entry:
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), INTERNAL)


def problem_of(error: Exception, request_id: str) -> tuple[Entry, Problem]:
    entry = entry_of(error)
    if isinstance(error, EntityError | OverrideError):
        where = "entities" if isinstance(error, EntityError) else "features"
        detail = f"{where}[{error.row}]: {error}"
    elif isinstance(error, DETAILED):
        detail = str(error) or entry.title
    else:
        detail = entry.title
    return entry, Problem(
        type=f"urn:rapport:problem:{entry.code}",
        title=entry.title,
        status=entry.status,
        code=entry.code,
        detail=detail[:300],
        request_id=request_id,
    )
