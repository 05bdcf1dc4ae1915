"""A request's body: read within its limits, and decoded into a type of protocol.py."""

import asyncio
from collections.abc import Container, Coroutine, Mapping
from typing import Any, TypeVar, cast

import msgspec
from starlette.types import Message, Receive

from service.errors import BodyTooLarge, ClientGone, InvalidJson, InvalidRequest, SlowBody, UnsupportedMediaType

Body = TypeVar("Body")
JSON = b"application/json"


async def read(
    headers: Mapping[bytes, bytes],
    receive: Receive,
    max_bytes: int,
    timeout_s: float,
    media_types: Container[bytes] = (JSON,),
) -> bytes:
    """The body. Raises UnsupportedMediaType, BodyTooLarge, SlowBody, ClientGone."""
    check_type(headers, media_types)
    # Mostly it is there already, and needs no timer.
    message = poll(receive)
    if message is None or message.get("more_body", False):
        message = await _rest(message, receive, max_bytes, timeout_s)
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    check_size(body, max_bytes)
    return body


def check_type(headers: Mapping[bytes, bytes], media_types: Container[bytes] = (JSON,)) -> None:
    """Raises UnsupportedMediaType."""
    media_type = headers.get(b"content-type", b"")
    if media_type != JSON and media_type.partition(b";")[0].strip().lower() not in media_types:
        raise UnsupportedMediaType("send Content-Type: application/json")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("send the body uncompressed")


def check_size(body: bytes, max_bytes: int) -> None:
    """Raises BodyTooLarge."""
    if len(body) > max_bytes:
        raise BodyTooLarge(f"at most {max_bytes} bytes")


def poll(receive: Receive) -> Message | None:
    """The message that is there already; None where `receive` would wait."""
    coroutine = cast("Coroutine[Any, Any, Message]", receive())
    try:
        coroutine.send(None)
    except StopIteration as returned:
        message: Message = returned.value
        return message
    coroutine.close()
    return None


def has_gone(receive: Receive) -> bool:
    """Whether the client has closed the connection. Only once the body is read."""
    message = poll(receive)
    return message is not None and message["type"] == "http.disconnect"


def decode(body: bytes, decoder: msgspec.json.Decoder[Body]) -> Body:
    """JSON to a request. Raises InvalidJson, and InvalidRequest with where it is wrong but never with a value."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        # Decoding into a type stops at the first mismatch: what follows may still not be JSON.
        _check_json(body)
        raise InvalidRequest(_without_values(str(exc))) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidJson(_json_fault(exc)) from exc


async def _rest(message: Message | None, receive: Receive, max_bytes: int, timeout_s: float) -> Message:
    """All parts as one message, or the disconnect; of a body that is too large, no more than says so."""
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = message or await receive()
                if message["type"] == "http.disconnect":
                    return message
                # Counted, not believed: Content-Length may lie, and chunks have none.
                body += message.get("body", b"")
                if not message.get("more_body", False) or len(body) > max_bytes:
                    return {"type": "http.request", "body": bytes(body)}
                message = None
    except TimeoutError as exc:
        raise SlowBody(f"the body must arrive within {timeout_s:g} s") from exc


def _check_json(body: bytes) -> None:
    try:
        msgspec.json.decode(body)
    except msgspec.ValidationError:
        return  # JSON, with a number that no float can hold
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidJson(_json_fault(exc)) from exc


def _json_fault(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _without_values(message: str) -> str:
    """msgspec names types, lengths and paths of ours; only the name of an unknown field is the client's."""
    if message.startswith("Object contains unknown field"):
        return "unknown field" + message[message.rindex("`") + 1 :] if " - at " in message else "unknown field"
    return message
