"""`rapport up`: a real Redis, everything that is stale rebuilt, a gateway that answers, until Ctrl-C; on request, a
real Triton that runs the models."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
from redis import Redis

from feature_client.errors import RapportError
from feature_client.offline.workspace import Workspace
from feature_client.online.local_redis import LocalRedis
from feature_client.release import read_release
from feature_client.routes import read_routes
from service.local_triton import LocalTriton
from service.steps import Stamps
from service.triton_install import install

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
WATCH_S = 0.5
SHOWN_DEADLINE_MS = "30000"
"""The first requests show that it works, also on a machine that is busy with something else."""

MIN_FREE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Request:
    """home: where everything is kept. data: a file of events, or None for generated ones.

    backend: what runs models: embedded (ONNX Runtime in the gateway), or triton. accept: why a model is published even
    if it fails its gates.
    """

    home: Path
    data: Path | None
    customers: int
    seed: int
    port: int
    backend: str = "embedded"
    accept: str | None = None

    @property
    def workspace(self) -> Path:
        return self.home / (self.data.stem if self.data else "generated")

    @property
    def parameters(self) -> dict[str, object]:
        """What everything depends on, besides the code."""
        if self.data is None:
            return {"customers": self.customers, "seed": self.seed}
        files = sorted(path for path in self.data.rglob("*") if path.is_file()) if self.data.is_dir() else [self.data]
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return {"data": stats, "seed": self.seed}

    def prepare_command(self, redis: str) -> list[str]:
        source = ["--data", str(self.data)] if self.data else ["--customers", str(self.customers)]
        accept = [] if self.accept is None else ["--accept", self.accept]
        return [
            *_rapport("prepare"), "--home", str(self.home), "--redis", redis, "--seed", str(self.seed), *source, *accept
        ]  # fmt: skip


def up(request: Request) -> None:
    """Serves until SIGINT or SIGTERM. Raises RapportError with one sentence for everything a person can mend."""
    request.home.mkdir(parents=True, exist_ok=True)
    with _only_one(request.home) as state, _until_signal():
        _check(request)
        _serve(request, state)


def _serve(request: Request, state: "_State") -> None:
    with LocalRedis(request.workspace / "redis", persistent=True) as redis:
        state.add(redis.pid)
        _prepare(request, redis.address, state)
        workspace = Workspace(request.workspace, redis.address)
        with _triton(request, workspace, state) as triton, _gateway(request, workspace, triton, state) as gateway:
            url = f"http://127.0.0.1:{request.port}"
            _wait_ready(gateway, url, workspace)
            try:
                _show(url, workspace)
            except OSError as exc:
                log = workspace.root / "gateway.log"
                raise RapportError(f"the gateway did not answer ({exc}); its log is {log}") from exc
            while not (stopped := _stopped(gateway, redis, triton)):
                time.sleep(WATCH_S)
    raise RapportError(f"{stopped}; the logs are in {workspace.root}")


def _stopped(gateway: subprocess.Popen[bytes], redis: LocalRedis, triton: LocalTriton | None) -> str | None:
    """What of it has ended by itself, and will not come back."""
    if gateway.poll() is not None:
        return f"the gateway stopped with code {gateway.returncode}"
    if not redis.is_running:
        return "its redis-server stopped"
    if triton is not None and not triton.is_running:
        return "its tritonserver stopped"
    return None


def down(home: Path) -> list[int]:
    """Ends what the last `up` in `home` started, and returns the process ids. Leaves other processes alone."""
    alive = _State.read(home)
    # The supervisor first: it ends its children itself, in order. Whoever is left was left alone by it.
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            if not _has_ended(process, 2 * STOP_TIMEOUT_S):
                process.kill()
                _has_ended(process, STOP_TIMEOUT_S)
    _state_file(home).unlink(missing_ok=True)
    return [process.pid for process in alive]


def _has_ended(process: psutil.Process, timeout_s: float) -> bool:
    """Waits for a process that is not our child: one that its parent has not yet reaped has ended as well."""
    deadline = time.monotonic() + timeout_s
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class _State:
    """The processes of one `up`, on disk: what `down` ends even if the supervisor was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.processes: list[dict[str, float]] = []

    def add(self, pid: int) -> None:
        self.processes.append({"pid": pid, "started": psutil.Process(pid).create_time()})
        self.path.write_text(json.dumps(self.processes))

    @staticmethod
    def read(home: Path) -> list[psutil.Process]:
        """Those that still run; a reused process id has another start time."""
        try:
            entries = json.loads(_state_file(home).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return []
        alive = []
        for entry in entries:
            try:
                process = psutil.Process(int(entry["pid"]))
                if abs(process.create_time() - entry["started"]) < 0.1:
                    alive.append(process)
            except psutil.NoSuchProcess:
                continue
        return alive


def _state_file(home: Path) -> Path:
    return home / "up.json"


@contextmanager
def _only_one(home: Path) -> Iterator[_State]:
    if alive := _State.read(home):
        raise RapportError(f"already up, as process {alive[0].pid}: `make down` ends it")
    state = _State(_state_file(home))
    state.add(os.getpid())
    try:
        yield state
    finally:
        _state_file(home).unlink(missing_ok=True)


@contextmanager
def _until_signal() -> Iterator[None]:
    """SIGINT and SIGTERM end the block through its `finally`s, with exit code 0: they are how `up` is meant to end."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        # A second signal must not interrupt the tidying up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(0)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check(request: Request) -> None:
    if request.data is not None and not request.data.exists():
        raise RapportError(f"there is no file {request.data}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", request.port))
        except OSError as exc:
            raise RapportError(
                f"port {request.port} is in use: end what listens there, or choose another with PORT=..."
            ) from exc
    free = shutil.disk_usage(request.home).free
    if free < MIN_FREE_BYTES:
        raise RapportError(
            f"{request.home.resolve()} has {free / 1024**2:.0f} MiB free; {MIN_FREE_BYTES / 1024**2:.0f} MiB are needed"
        )


def _prepare(request: Request, redis: str, state: _State) -> None:
    stamps = Stamps(request.workspace, request.parameters)
    with _client(redis) as store:
        if store.dbsize() == 0:
            stamps.forget("materialize")
        if not _is_whole(Workspace(request.workspace)):
            stamps.forget("publish")
        stale = stamps.stale()
        if "materialize" in stale:
            # This store is `up`'s own: customers of events that are gone must not be answered from it.
            store.flushdb()
    if not stale:
        _say("events, features, model and online store are still valid: nothing to rebuild")
        return
    _say(f"to do: {', '.join(stale)}")
    started = time.monotonic()
    with _child(request.prepare_command(redis), None, state) as process:
        code = process.wait()
    if code != 0:
        # The step said what was wrong, in one sentence, where everyone can read it.
        raise RapportError(f"not up: preparing failed with code {code}")
    _say(f"prepared in {time.monotonic() - started:.0f} s")


def _is_whole(workspace: Workspace) -> bool:
    """The champion of every route is there, undamaged."""
    try:
        for model, route in read_routes(workspace.models).items():
            read_release(workspace.models, model, route.champion)
    except RapportError:
        return False
    return True


def _client(address: str) -> Redis:
    host, _, port = address.rpartition(":")
    return Redis(host, int(port))


@contextmanager
def _triton(request: Request, workspace: Workspace, state: _State) -> Iterator[LocalTriton | None]:
    """The one that runs the models; None where the gateway does that itself."""
    if request.backend == "embedded":
        yield None
        return
    _say("a local Triton: NVIDIA's server, with ONNX Runtime on CPUs in place of its executor")
    with LocalTriton(workspace.root / "triton", models=workspace.models, installation=install()) as triton:
        state.add(triton.supervisor_pid)
        yield triton


@contextmanager
def _gateway(
    request: Request, workspace: Workspace, triton: LocalTriton | None, state: _State
) -> Iterator[subprocess.Popen[bytes]]:
    # Not the shell's RAPPORT_*: keys or another port would make what `up` prints untrue.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAPPORT_")} | {
        "RAPPORT_HOST": "127.0.0.1",
        "RAPPORT_PORT": str(request.port),
        "RAPPORT_MODELS": str(workspace.models),
        "RAPPORT_REDIS": workspace.redis,
        "RAPPORT_SHADOW_DIR": str(workspace.root / "shadow"),
        "RAPPORT_AS_OF": workspace.dataset().as_of.isoformat(),
    }
    if triton is not None:
        environment |= {"RAPPORT_BACKEND": "triton", "RAPPORT_TRITON": triton.address}
    with (
        (workspace.root / "gateway.log").open("wb") as log,
        _child(_rapport("serve"), log.fileno(), state, environment) as process,
    ):
        yield process


@contextmanager
def _child(
    command: list[str], stderr: int | None, state: _State, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with this one. Its own session: Ctrl-C reaches the supervisor, which ends it in order."""
    process = subprocess.Popen(command, stdout=stderr, stderr=stderr, env=environment, start_new_session=True)  # noqa: S603
    try:
        state.add(process.pid)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(gateway: subprocess.Popen[bytes], url: str, workspace: Workspace) -> None:
    log = workspace.root / "gateway.log"
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if gateway.poll() is not None:
            raise RapportError(f"the gateway did not start: {_last_words(log)}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310  (our own loopback address)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RapportError(f"the gateway was not ready after {READY_TIMEOUT_S:.0f} s: {_last_words(log)}")


def _show(url: str, workspace: Workspace) -> None:
    """One predict and one explain for a real customer, as anyone could send them."""
    customer = workspace.customers.read_text().split("\n", 1)[0]
    entities = [{"customer_id": customer}]
    for path, body in (
        ("/v1/predict", {"entities": entities}),
        ("/v1/explain", {"entities": entities, "tasks": ["churn_90d"], "top": 3}),
    ):
        sent = json.dumps(body)
        request = urllib.request.Request(  # noqa: S310  (our own loopback address)
            url + path, sent.encode(), {"Content-Type": "application/json", "X-Deadline-Ms": SHOWN_DEADLINE_MS}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            answer = json.dumps(json.load(response), indent=2)
        print(f"\n$ curl -s {url}{path} -H 'Content-Type: application/json' -d '{sent}'\n{answer}", flush=True)  # noqa: T201
    _say(f"serving on {url} (docs: {url}/docs, metrics: {url}/metrics), until Ctrl-C")


def _last_words(log: Path) -> str:
    """The last fault in the gateway's log, else its last line."""
    lines = log.read_text(errors="replace").strip().splitlines()
    for line in reversed(lines):
        with suppress(json.JSONDecodeError, AttributeError):
            event = json.loads(line)
            if event.get("level") == "ERROR":
                return f"{event['event']}: {event.get('reason', event.get('exc_info', ''))}"
    return lines[-1] if lines else "its log is empty"


def _rapport(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service.cli", *arguments]


def _say(text: str) -> None:
    print(f"rapport: {text}", file=sys.stderr, flush=True)  # noqa: T201
