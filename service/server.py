"""`rapport serve`: one process that listens; uvicorn with limits, and errors as sentences."""

import logging
import socket

import pydantic
import uvicorn

from feature_client.errors import RapportError
from service import logs
from service.app import create_app
from service.settings import Settings

log = logging.getLogger("rapport.server")

KEEP_ALIVE_S = 30
BACKLOG = 2048


def serve() -> None:
    """Runs until SIGINT or SIGTERM, then drains. Raises RapportError."""
    settings = read_settings()
    logs.configure(settings.log_level)
    app = create_app(settings)
    # Bound before the application starts: a port in use is said in one sentence.
    if settings.metrics_port is not None:
        _listen(settings.host, settings.metrics_port).close()
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    log.info("listening", extra={"host": host, "port": port})
    if settings.keys_file is None:
        log.warning("no API keys are configured: bound to loopback only, and everyone there may ask everything")
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_s,
    )
    uvicorn.Server(config).run(sockets=[listener])


def read_settings() -> Settings:
    """Raises RapportError, naming every setting that is wrong."""
    try:
        return Settings()
    except pydantic.ValidationError as exc:
        faults = [
            f"{'RAPPORT_' + str(fault['loc'][0]).upper() + ': ' if fault['loc'] else ''}"
            f"{fault['msg'].removeprefix('Value error, ')}"
            for fault in exc.errors(include_input=False)
        ]
        raise RapportError("; ".join(faults)) from exc


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        raise RapportError(f"{host} port {port} cannot be bound: {exc.strerror}") from exc
