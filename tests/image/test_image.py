"""What the gateway's image promises: small parts, no privileges, an answer before its dependencies have one."""

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from redis import Redis

from loadtests.answers import check_answer
from tests.feast_layout import store
from tests.image.conftest import Container
from tests.model_export.tiny_release import AS_OF, build_tiny_release
from tests.service.conftest import rows_of

pytestmark = pytest.mark.image

UID = 10001
START_TIMEOUT_S = 60.0  # of a cold start from a disk that has just been written
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Process:
    """The gateway in the container: its host-side process id, and where it listens."""

    pid: int
    runner: subprocess.Popen[bytes]
    settings: dict[str, str]
    seconds_to_listen: float

    def get(self, path: str, port: str = "RAPPORT_PORT") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", int(self.settings[port]), timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@contextmanager
def serving(
    container: Container, models: Path, settings: dict[str, str], keys: Path | None = None
) -> Iterator[Process]:
    """The image's own command. Chroot isolation shares the network, so that its ports are ours and must be free."""
    port, metrics_port, nobody = _free_ports(3)
    settings = {
        "RAPPORT_PORT": str(port),
        "RAPPORT_METRICS_PORT": str(metrics_port),
        "RAPPORT_REDIS": f"127.0.0.1:{nobody}",
        **settings,
    }
    volumes = {models: "/models", **({keys: settings["RAPPORT_KEYS_FILE"]} if keys else {})}
    command = container.command(container.config["Cmd"], settings, volumes)
    started = time.monotonic()
    with TemporaryFile() as log:
        runner = subprocess.Popen(command, env=container.buildah.environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not _listens(port):
                log.seek(0)
                assert runner.poll() is None, log.read().decode()
                assert time.monotonic() - started < START_TIMEOUT_S, log.read().decode()
                time.sleep(0.05)
            yield Process(_last_descendant(runner.pid), runner, settings, time.monotonic() - started)
        finally:
            # buildah kills what it runs when it is told to stop; the gateway itself may drain.
            if runner.poll() is None:
                os.kill(_last_descendant(runner.pid), signal.SIGTERM)
            runner.wait(STOP_TIMEOUT_S)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository without a release yet."""
    directory = tmp_path_factory.mktemp("models")
    directory.chmod(0o755)  # pytest's are for their owner alone, who is not the gateway's user
    return directory


@pytest.fixture(scope="module")
def gateway(container: Container, models: Path) -> Iterator[Process]:
    with serving(container, models, {"RAPPORT_HOST": "127.0.0.1"}) as process:
        yield process


def test_it_is_alive_before_its_dependencies_are_there_and_says_that_it_is_not_ready(gateway: Process) -> None:
    assert gateway.get("/livez")[0] == 200
    assert gateway.get("/readyz")[0] == 503
    print(f"\nlistening after {gateway.seconds_to_listen:.1f} s, container start included")  # noqa: T201


def test_metrics_have_a_port_of_their_own(gateway: Process) -> None:
    status, text = gateway.get("/metrics", "RAPPORT_METRICS_PORT")

    assert status == 200
    assert "rapport_" in text
    assert gateway.get("/metrics")[0] == 404


def test_it_runs_as_a_user_without_privileges(gateway: Process, container: Container) -> None:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{gateway.pid}/status").read_text().splitlines())

    assert {int(uid) for uid in status["Uid"].split()} == {UID}
    assert {int(gid) for gid in status["Gid"].split()} == {UID}
    assert int(status["CapEff"], 16) == 0
    assert container.config["User"] == f"{UID}:{UID}"  # a number, which Kubernetes' runAsNonRoot can check


def test_its_health_check_tells_alive_from_not_alive(gateway: Process, container: Container) -> None:
    [kind, *check] = container.config["Healthcheck"]["Test"]
    assert kind == "CMD"

    def exit_status(port: str) -> int:
        command = container.command(check, {"RAPPORT_PORT": port})
        return subprocess.run(command, env=container.buildah.environment, capture_output=True, check=False).returncode

    assert exit_status(gateway.settings["RAPPORT_PORT"]) == 0
    assert exit_status(str(_free_ports(1)[0])) != 0


def test_it_stops_when_it_is_told_to(container: Container, models: Path) -> None:
    with serving(container, models, {"RAPPORT_HOST": "127.0.0.1"}) as process:
        assert container.config["StopSignal"] == "SIGTERM"
        os.kill(process.pid, signal.SIGTERM)
        process.runner.wait(STOP_TIMEOUT_S)
        assert not _listens(int(process.settings["RAPPORT_PORT"]))


def test_without_keys_it_refuses_to_listen_for_everybody(container: Container) -> None:
    """The image's default address is all of them."""
    command = container.command(container.config["Cmd"], {"RAPPORT_PORT": str(_free_ports(1)[0])})
    done = subprocess.run(
        command, env=container.buildah.environment, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
    )

    assert done.returncode != 0
    assert "RAPPORT_KEYS_FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_keys_it_listens_for_everybody_who_has_one(container: Container, models: Path) -> None:
    token = "rk_image"
    keys = models.parent / "keys.toml"
    keys.write_text(
        f'[[keys]]\nname = "image"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\nscopes = ["predict"]\n'
    )
    with serving(container, models, {"RAPPORT_KEYS_FILE": "/run/keys.toml"}, keys) as process:
        assert process.get("/livez")[0] == 200
        assert process.get("/v1/models")[0] == 401
        connection = http.client.HTTPConnection("127.0.0.1", int(process.settings["RAPPORT_PORT"]), timeout=5)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {token}"})
        assert connection.getresponse().status == 200
        connection.close()


def test_with_a_release_and_a_store_it_answers_with_reasons(
    container: Container, redis_url: str, tmp_path: Path
) -> None:
    """The release is mounted as it was published: its files are readable for others than who published them."""
    release = build_tiny_release(tmp_path / "models")
    release.root.chmod(0o755)
    host, _, redis_port = redis_url.rpartition(":")
    with Redis(host, int(redis_port)) as redis:
        store(redis, release.contract.schema, "c1", rows_of("c1"))
    settings = {"RAPPORT_HOST": "127.0.0.1", "RAPPORT_REDIS": redis_url, "RAPPORT_AS_OF": AS_OF.isoformat()}

    with serving(container, release.root, settings) as process:
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.get("/readyz")[0] != 200:
            assert time.monotonic() < deadline, process.get("/readyz")
            time.sleep(0.1)
        connection = http.client.HTTPConnection("127.0.0.1", int(process.settings["RAPPORT_PORT"]), timeout=5)
        body = json.dumps({"entities": [{"customer_id": "c1"}]})
        connection.request("POST", "/v1/explain", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        connection.close()

    assert response.status == 200, answer
    assert check_answer(answer, ["c1"], explained=True) == ["ok"]


def test_only_what_serves_is_in_it(container: Container) -> None:
    unwanted = ["torch", "feast", "pandas", "ibis", "duckdb", "pyarrow", "sklearn", "pip", "setuptools"]
    found = container.python(
        f"import importlib.util, json; print(json.dumps([m for m in {unwanted} if importlib.util.find_spec(m)]))"
    )
    assert json.loads(found) == []
    assert json.loads(
        container.python("import onnxruntime, json; print(json.dumps(onnxruntime.get_available_providers()))")
    )

    compilers = [
        name
        for name in ("gcc", "cc", "g++", "make")
        for folder in ("usr/bin", "usr/local/bin", "bin")
        if (container.root / folder / name).exists()
    ]
    assert compilers == []


def test_nothing_of_the_build_stays_in_it(container: Container) -> None:
    left = [
        path
        for path in ("src", "wheels", "build", "etc/pip.conf", "root/.config/pip", "root/.cache/pip")
        if (container.root / path).exists()
    ]
    assert left == []
    assert not [variable for variable in container.config["Env"] if variable.startswith("PIP_")]


def test_its_size_is_told(container: Container) -> None:
    """Printed, not gated: the base image is the reader's choice. Ours are the megabytes of the environment."""
    for what, path in (("image", container.root), ("environment", container.root / "opt/rapport")):
        size = subprocess.run(["du", "-sxm", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
        print(f"\n{what}: {size} MiB", end="")  # noqa: T201
        assert int(size) > 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _last_descendant(pid: int) -> int:
    """buildah starts its runtime, which starts an executor, which starts the command."""
    while True:
        threads = Path(f"/proc/{pid}/task").glob("*/children")
        children = [int(child) for thread in threads for child in thread.read_text().split()]
        if not children:
            return pid
        pid = children[0]
