"""A real gateway in this process: uvicorn in a thread, on a free loopback port."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from service.direct import direct
from service.front import Front

START_TIMEOUT_S = 20.0


@contextmanager
def running(app: ASGIApp, *, straight: bool = True) -> Iterator[str]:
    """Serves `app` inside the block; yields its URL. straight: as `rapport serve` does, else as any ASGI server."""
    listener = socket.create_server(("127.0.0.1", 0))
    http = direct(app) if isinstance(app, Front) and straight else "auto"
    config = uvicorn.Config(
        app, http=http, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the gateway did not start")
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_TIMEOUT_S)
        listener.close()
