"""The floor: what uvicorn itself costs. An ASGI application that reads the request, decodes it and answers, no more.

python -m uvicorn loadtests.bench.bare:app --no-access-log --no-server-header --log-level warning
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

Message = dict[str, Any]

decode = msgspec.json.Decoder(dict[str, list[dict[str, str]]]).decode
encode = msgspec.json.Encoder().encode


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = (await receive())["body"]
    asked = decode(body)["entities"][0]["customer_id"] if body else "nobody"
    answer = encode({"customer_id": asked, "purchase_30d": 0.31, "churn_90d": 0.12, "spend_90d": 141.2})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
