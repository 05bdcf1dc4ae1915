"""`rapport serve`: what listens; uvicorn with limits, in one process or in several, and errors as sentences."""

import asyncio
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic
import uvicorn
from prometheus_client import start_http_server

from feature_client.errors import RapportError
from service import logs
from service.cpus import available_cpus, too_many_threads
from service.settings import Settings
from service.shared_metrics import forget, share, shared_registry
from service.workers import Child, supervise

if TYPE_CHECKING:
    from service.front import Front

log = logging.getLogger("rapport.server")

KEEP_ALIVE_S = 30
BACKLOG = 2048
COLLECT_AFTER = 50_000
"""Objects made and not yet freed, until the garbage collector looks for cycles among them. Answering makes next to
none, and to look every 700 objects, Python's default, took a fifth of the CPU of a request."""
BLOCKING_THREADS = 4
"""For what would block the event loop, such as loading a release. Python's own default grows with the machine."""
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""numpy starts a thread for every core of the machine when it is imported, and the gateway multiplies no matrices."""


def serve() -> None:
    """Runs until SIGINT or SIGTERM, then drains. Raises RapportError."""
    settings = read_settings()
    logs.configure(settings.log_level)
    for variable in BLAS_THREADS:
        os.environ.setdefault(variable, "1")
    cpus = available_cpus()
    if too_many_threads(settings.workers, settings.model_threads, cpus):
        log.warning(
            "more threads than CPUs: they will wait for each other",
            extra={"workers": settings.workers, "model_threads": settings.model_threads, "cpus": cpus},
        )
    if settings.workers == 1:
        _serve_alone(settings)
    else:
        _serve_with_workers(settings)


def _serve_alone(settings: Settings) -> None:
    # Here, for the parent of workers needs neither the web framework nor numpy, and BLAS must be told first.
    from service.app import create_app  # noqa: PLC0415

    app = create_app(settings)
    _run(app, settings, _listener(settings))


def _serve_with_workers(settings: Settings) -> None:
    listener = _listener(settings)
    directory = Path(tempfile.mkdtemp(prefix="rapport-metrics-", dir=_memory()))
    children = [
        Child(
            f"worker {number}",
            run=partial(_work, number, settings, listener, directory),
            ended=partial(forget, directory, number),
        )
        for number in range(settings.workers)
    ]
    if settings.metrics_port is not None:
        children.append(Child("metrics", run=partial(_expose, settings.host, settings.metrics_port, directory)))
    try:
        received = supervise(children, settings.drain_s)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(128 + received)


def _work(number: int, settings: Settings, listener: socket.socket, directory: Path) -> None:
    """The life of one worker, in its own process."""
    parent = os.getppid()
    share(directory, number)
    from service.app import create_app  # noqa: PLC0415
    from service.metrics import Metrics  # noqa: PLC0415

    metrics = Metrics()

    async def flush() -> None:
        metrics.flush()

    try:
        _run(create_app(settings, metrics=metrics), settings, listener, flush)
    finally:
        metrics.flush()
        if os.getppid() != parent:  # killed, so that nobody else tidies up
            shutil.rmtree(directory, ignore_errors=True)


def _expose(host: str, port: int, directory: Path) -> None:
    """A process of its own: workers cannot share a port, the parent may have no thread, and a scrape delays no one."""
    start_http_server(port, host, shared_registry(directory))
    while True:
        signal.pause()


def _memory() -> str | None:
    """Where files cost no disk, and where a container with a read-only root may write; None: wherever else one may."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  (mkdtemp makes it private)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        pool = ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="blocking")
        asyncio.get_running_loop().set_default_executor(pool)
        await super().startup(sockets)


def _run(
    app: "Front",
    settings: Settings,
    listener: socket.socket,
    every_second: Callable[[], Awaitable[None]] | None = None,
) -> None:
    from service.direct import direct  # noqa: PLC0415

    # What is there by now stays, and need not be looked through again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=direct(app),
        log_config=None,
        access_log=False,
        server_header=False,
        # No code of ours asks who the client is: a proxy's headers need not be read.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_s,
        callback_notify=every_second,
        timeout_notify=0,  # as often as uvicorn looks, which is every second
    )
    _Server(config).run(sockets=[listener])


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


def _listener(settings: Settings) -> socket.socket:
    """Bound before anything starts: a port in use is said in one sentence. Raises RapportError."""
    if settings.metrics_port is not None:
        _listen(settings.host, settings.metrics_port).close()
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    log.info("listening", extra={"host": host, "port": port})
    if settings.keys_file is None:
        log.warning("no API keys are configured: bound to loopback only, and everyone there may ask everything")
    return listener


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        raise RapportError(f"{host} port {port} cannot be bound: {exc.strerror}") from exc
