"""A real tritonserver on loopback, for `rapport up`, tests and benchmarks: as long as the block that starts it."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import msgspec

from feature_client.errors import RapportError
from service.triton_install import BACKENDS, Installation, find
from service.triton_supervisor import Task, server_id

HOST = "127.0.0.1"
READY_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 5
"""tritonserver waits so long for requests in flight and for clients that stay connected, then it leaves."""

STOP_TIMEOUT_S = 20.0
"""More than its supervisor takes to end it, by force if need be."""

PROBE_TIMEOUT_S = 1.0
PROBE_INTERVAL_S = 0.05
FREE_PORT_TRIES = 5


class LocalTriton:
    """`with LocalTriton(directory) as triton: triton.address` is "127.0.0.1:PORT", of its gRPC.

    One that dies is started again, on the same ports and with no model loaded; it ends with the block, or with the
    thread that entered it, and leaves no process, no shared memory and no file but its log.

    models: the repository that it may load from; without one it has those that it is sent. http_port, metrics_port:
    None switches these off; 0 takes a free one. Nobody but Triton's own tools should use its HTTP: a load stalls it.
    Raises RapportError, in one sentence, where Triton is not installed, a port is in use, or it does not start.
    """

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        *,
        models: Path | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        installation: Installation | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.models = models.absolute() if models else self.directory / "models"
        self.port = port
        self.http_port = http_port
        self.metrics_port = metrics_port
        self.installation = installation
        self._wanted = (port, http_port, metrics_port)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._task: Task | None = None

    def __enter__(self) -> "LocalTriton":
        if find_spec("grpc") is None:
            raise RapportError("grpc is not installed: pip install 'rapport[triton]'")
        installation = self.installation or find()
        (self.directory / "models").mkdir(parents=True, exist_ok=True)
        for port in self._wanted:
            if port:
                _require_free(port)
        for attempt in range(FREE_PORT_TRIES):
            self.port, self.http_port, self.metrics_port = _chosen(self._wanted)
            try:
                self._start(installation)
            except RapportError:
                # Between our look and its bind another process may have taken a port that we found free.
                taken = [port for port in self._ports if not _is_free(port)]
                if attempt == FREE_PORT_TRIES - 1 or not taken or set(taken) & set(self._wanted):
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
        """Of the tritonserver that runs; another one after each restart. Raises RapportError between two."""
        try:
            return int(self._running.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            raise RapportError(f"no tritonserver runs; its log is {self.log}") from None

    @property
    def supervisor_pid(self) -> int:
        """What `rapport down` ends, where nobody else is left to end it."""
        if self._supervisor is None:
            raise RapportError("this tritonserver is not running")
        return self._supervisor.pid

    @property
    def is_running(self) -> bool:
        """It, or the one that is about to be started in its place."""
        return self._supervisor is not None and self._supervisor.poll() is None

    @property
    def log(self) -> Path:
        return self.directory / "triton.log"

    @property
    def shared_memory(self) -> str:
        """How the names of its regions start. Of our own, so that they can be tidied up, by the next one if need be."""
        return f"rapport_{hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]}"

    def python_processes(self) -> list[int]:
        """Ids of the processes that execute models, one for each loaded instance."""
        children = Path(f"/proc/{self.pid}/task").glob("*/children")
        pids = [int(pid) for tasks in children for pid in tasks.read_text().split()]
        return [pid for pid in pids if _name(pid).startswith("triton_python")]

    def kill(self) -> None:
        """SIGKILL to tritonserver, for tests: returns when the next one is ready, with no model loaded."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """The same in order, as an operator does it."""
        self._end(signal.SIGTERM)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Raises RapportError where it has ended for good, or does not answer in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.is_running:
                raise RapportError(f"tritonserver did not start: {self._last_words()}")
            with suppress(RapportError):  # between two, for a moment
                # The other two listen a moment later.
                if _answers(self.address, self.pid) and not any(map(_is_free, self._ports)):
                    return
            time.sleep(PROBE_INTERVAL_S)
        raise RapportError(f"tritonserver was not ready after {timeout_s:.0f} s: {self._last_words()}")

    @property
    def _running(self) -> Task:
        if self._task is None:
            raise RapportError("this tritonserver is not running")
        return self._task

    @property
    def _ports(self) -> list[int]:
        return [port for port in (self.port, self.http_port, self.metrics_port) if port]

    def _start(self, installation: Installation) -> None:
        self._task = task = self._make_task(installation)
        command = [sys.executable, "-m", "service.triton_supervisor"]
        # Appended to, in one place, by each that runs in this directory.
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            # Its own session: Ctrl-C reaches us alone, and the block ends it after those who still use it.
            self._supervisor = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        # Not on its command line: everybody may read that, and the environment is in it.
        assert self._supervisor.stdin is not None  # noqa: S101
        with suppress(BrokenPipeError), self._supervisor.stdin as pipe:
            pipe.write(msgspec.json.encode(task))
        try:
            self.wait_ready()
        except BaseException:
            self._stop()
            raise
        task.ready_mark.touch()

    def _make_task(self, installation: Installation) -> Task:
        backends = self._lay_out(installation)
        command = [
            str(installation.server),
            f"--model-repository={self.models}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory}",
            # A model is loaded when it is told to, never because a file appeared; and as its configuration says.
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--grpc-address={HOST}",
            f"--grpc-port={self.port}",
            *_listening("http", self.http_port),
            *_listening("metrics", self.metrics_port),
        ]
        scratch = str(self.directory / "scratch")
        return Task(
            command, installation.environment() | {"TMPDIR": scratch}, str(self.directory), self.shared_memory,
            os.getpid(), EXIT_TIMEOUT_S,
        )  # fmt: skip

    def _lay_out(self, installation: Installation) -> Path:
        """Triton's own backend and ours in one directory, as links: ours is the one of this checkout, always."""
        directory = self.directory / "backends"
        directory.mkdir(exist_ok=True)
        for name, target in (("python", installation.backends / "python"), ("onnxruntime", BACKENDS / "onnxruntime")):
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(target)
        return directory

    def _end(self, number: signal.Signals) -> None:
        before = self.pid
        os.kill(before, number)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(RapportError):
                if self.pid != before:
                    break
            time.sleep(PROBE_INTERVAL_S)
        self.wait_ready()

    def _stop(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        self._task = None
        if supervisor is None:
            return
        supervisor.terminate()
        try:
            supervisor.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()

    def _last_words(self) -> str:
        """The last error in the log of this start, else its last line."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith(("E", "error:"))]
        return (errors or lines or ["its log is empty"])[-1]


def _answers(address: str, pid: int) -> bool:
    """Whether this very process is ready, by Triton's own protocol."""
    import grpc  # type: ignore[import-untyped]  # noqa: PLC0415  (of an extra)

    service = "/inference.GRPCInferenceService"
    # Without what grpc shares between channels: one that failed would make the next wait.
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            who = channel.unary_unary(f"{service}/ServerMetadata")(b"", timeout=PROBE_TIMEOUT_S)
            ready = channel.unary_unary(f"{service}/ServerReady")(b"", timeout=PROBE_TIMEOUT_S)
        except grpc.RpcError:
            return False
    # Two protobuf messages, read as they are: field 1 of the first is the name, of the second is true.
    name = server_id(pid).encode()
    return bool(who.startswith(b"\x0a" + bytes([len(name)]) + name) and ready == b"\x08\x01")


def _listening(what: str, port: int | None) -> list[str]:
    if port is None:
        return [f"--allow-{what}=false"]
    return [f"--{what}-address={HOST}", f"--{what}-port={port}"]


def _chosen(wanted: tuple[int, int | None, int | None]) -> tuple[int, int | None, int | None]:
    """A free port for each 0, none of them twice."""
    with (
        socket.create_server((HOST, 0)) as first,
        socket.create_server((HOST, 0)) as second,
        socket.create_server((HOST, 0)) as third,
    ):
        free = [probe.getsockname()[1] for probe in (first, second, third)]
    port, http, metrics = (found if port == 0 else port for port, found in zip(wanted, free, strict=True))
    assert port is not None  # noqa: S101
    return port, http, metrics


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # A port that only waits for its last packets is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _require_free(port: int) -> None:
    if not _is_free(port):
        raise RapportError(f"port {port} on {HOST} is in use: end what listens there, or choose another port")


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
