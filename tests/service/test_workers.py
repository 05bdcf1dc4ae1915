"""Several workers: one gateway to those who ask and to Prometheus, whatever happens to one of them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from redis import Redis

from feature_client.release import Release
from service.cpus import available_cpus, too_many_threads
from tests.service.conftest import wait_ready
from tests.service.test_operations import GOOD, PATIENCE, gateway_process, samples, stopped, total, until

REQUESTS = 60

FOLLOWED = '"event": "releases"'
"""In the log of a worker once it has loaded what routes.toml names."""


@dataclass(frozen=True)
class Gateway:
    process: "subprocess.Popen[bytes]"
    url: str

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def ask(self) -> int:
        """Over a connection of its own, which any worker may take; the status, or 0 where the connection was lost."""
        try:
            return requests.post(f"{self.url}/v1/predict", json=GOOD, timeout=20).status_code
        except requests.ConnectionError:
            return 0

    def answered(self) -> float:
        return total(self.url, "rapport_requests_total", route="/v1/predict", code="200")


@pytest.fixture
def workers(tmp_path: Path, release: Release, redis_url: str, customers: list[str]) -> Iterator[Gateway]:
    """Two, both up."""
    with two_workers(tmp_path, release, redis_url) as gateway:
        yield gateway


@contextmanager
def two_workers(tmp_path: Path, release: Release, redis_url: str, **settings: str) -> Iterator[Gateway]:
    with gateway_process(tmp_path, release, redis_url, RAPPORT_WORKERS="2", **settings) as (process, url):
        until(lambda: (tmp_path / "log").read_text().count(FOLLOWED) == 2, "they never came up")
        wait_ready(url)
        yield Gateway(process, url)


def test_every_request_is_counted_once_whichever_worker_answered(workers: Gateway) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: workers.ask(), range(REQUESTS))) == {200}

    seen: list[float] = []

    def counted() -> bool:
        seen.append(workers.answered())
        return seen[-1] >= REQUESTS

    until(counted, "some were never counted")
    assert seen == sorted(seen)
    assert {workers.answered() for _ in range(20)} == {REQUESTS}
    assert total(workers.url, "rapport_request_duration_seconds_count", route="/v1/predict") == REQUESTS
    assert total(workers.url, "rapport_scores_count", task="purchase_30d") == REQUESTS
    assert total(workers.url, "rapport_release_info", role="champion") == 1
    assert total(workers.url, "rapport_dependency_up", dependency="feature_store") == 1
    until(lambda: total(workers.url, "rapport_inflight") == 0, "still in flight")


def test_a_worker_that_dies_is_replaced_and_takes_no_count_with_it(workers: Gateway, tmp_path: Path) -> None:
    assert {workers.ask() for _ in range(20)} == {200}
    until(lambda: workers.answered() == 20, "never counted")
    before = samples(workers.url)
    victim, other = workers.children()
    answers: set[int] = set()

    def asking_until(loaded: int) -> bool:
        with ThreadPoolExecutor(8) as pool:
            answers.update(pool.map(lambda _: workers.ask(), range(32)))
        return log.read_text().count(FOLLOWED) == loaded

    log = tmp_path / "log"
    victim.kill()
    until(lambda: asking_until(3), "never replaced")
    # Who was connected to it may lose the connection; nobody hears of a worker that is not ready.
    assert answers <= {200, 0}
    assert len(workers.children()) == 2
    assert victim not in workers.children()
    assert other in workers.children()
    assert {workers.ask() for _ in range(20)} == {200}

    after = samples(workers.url)
    fallen = {
        name: (value, after.get(name, 0))
        for name, value in before.items()
        if name[0].endswith(("_total", "_count", "_sum", "_bucket")) and after.get(name, 0) < value
    }
    assert fallen == {}


def test_what_is_in_flight_at_sigterm_is_answered_by_every_worker(
    tmp_path: Path, release: Release, redis: "Redis", redis_url: str, customers: list[str]
) -> None:
    with (
        two_workers(tmp_path, release, redis_url, **PATIENCE) as workers,
        ThreadPoolExecutor(40) as pool,
    ):
        children = workers.children()
        with stopped(redis):
            asked = [pool.submit(requests.post, f"{workers.url}/v1/predict", json=GOOD, timeout=60) for _ in range(40)]
            until(lambda: total(workers.url, "rapport_inflight", lane="predict") == 40, "never in flight")
            workers.process.terminate()
        assert {answer.result().status_code for answer in asked} == {200}

        assert workers.process.wait(20) == 128 + signal.SIGTERM
        assert not any(map(alive, children))


def test_workers_do_not_outlive_a_parent_that_is_killed(workers: Gateway) -> None:
    children = workers.children()
    directory = shared(children[0])
    assert directory.is_dir()
    workers.process.kill()

    until(lambda: not any(map(alive, children)), "orphans")
    until(lambda: not directory.exists(), "files of theirs are left")


def test_nothing_is_left_after_a_drain(workers: Gateway) -> None:
    directory = shared(workers.children()[0])
    workers.process.send_signal(signal.SIGINT)

    assert workers.process.wait(20) == 128 + signal.SIGINT
    assert not directory.exists()


def alive(process: psutil.Process) -> bool:
    # Whoever is orphaned in a container may wait for ever for its exit status to be read.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def shared(worker: psutil.Process) -> Path:
    """Where the worker keeps its metrics."""
    files = {Path(file.path).parent for file in worker.memory_maps() if file.path.endswith(".db")}
    [directory] = files
    return directory


def test_several_workers_have_one_metrics_port_and_prometheus_nothing_to_complain_of(
    tmp_path: Path, release: Release, redis_url: str, customers: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with two_workers(tmp_path, release, redis_url, RAPPORT_METRICS_PORT=str(port)) as gateway:
        assert {gateway.ask() for _ in range(REQUESTS)} == {200}

        exporter = f"http://127.0.0.1:{port}"
        assert requests.get(f"{gateway.url}/metrics", timeout=5).status_code == 404
        until(lambda: total(exporter, "rapport_requests_total", route="/v1/predict") >= REQUESTS, "never counted")
        assert total(exporter, "rapport_requests_total", route="/v1/predict") == REQUESTS
        exposition = requests.get(f"{exporter}/metrics", timeout=5).text

        gateway.children()[-1].kill()  # the last one started is the exporter
        until(lambda: answers(exporter), "never replaced")
        assert total(exporter, "rapport_requests_total", route="/v1/predict") == REQUESTS
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install Debian's package prometheus")
    run = subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def answers(exporter: str) -> bool:
    try:
        return requests.get(f"{exporter}/metrics", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_workers_that_cannot_start_are_one_sentence_and_not_tried_for_ever(tmp_path: Path) -> None:
    run = start_in_vain(RAPPORT_WORKERS="2")

    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "host:port" in run.stderr
    assert "cannot start; the log says why" in run.stderr.splitlines()[-1]


def start_in_vain(**environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service.cli", "serve"],
        capture_output=True, text=True, check=False,
        env={"PATH": "", "RAPPORT_PORT": "0", "RAPPORT_REDIS": "nowhere", **environment},
    )  # fmt: skip


def test_more_threads_than_cpus_are_warned_of() -> None:
    assert "more threads than CPUs" in start_in_vain(RAPPORT_MODEL_THREADS="1000").stderr
    assert "more threads than CPUs" not in start_in_vain().stderr


def test_one_worker_is_one_process_with_a_bounded_number_of_threads(
    tmp_path: Path, release: Release, redis_url: str
) -> None:
    with gateway_process(tmp_path, release, redis_url) as (process, url):
        wait_ready(url)

        assert psutil.Process(process.pid).children() == []
        # The event loop, scores, explanations, ONNX Runtime's own one, and what loads releases; none for each core.
        assert threads_of(process.pid) <= 4 + 4


def threads_of(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Threads:")]
    return int(line.split()[1])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="BLAS starts one thread for each core but the first")
def test_numpy_starts_no_threads_in_the_gateway() -> None:
    program = """
import sys
import service.server as server
assert "numpy" not in sys.modules
server.create_app = None
def stop(settings):
    import numpy
    [line] = [line for line in open("/proc/self/status") if line.startswith("Threads:")]
    print(line.split()[1])
server._serve_alone = stop
server.serve()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PATH": ""})
    assert run.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        # A container of version 2: the root of its own namespace.
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        # A service on a host: the limit of the slice above it holds as well.
        ("0::/a.slice/b.service\n", {"a.slice/cpu.max": "200000 100000", "a.slice/b.service/cpu.max": "max 100000"}, 2),
        ("0::/a.slice/b.service\n", {"a.slice/cpu.max": "max 1", "a.slice/b.service/cpu.max": "300000 100000"}, 3),
        # More than there are cores.
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        # Docker on version 1: the path is the host's, the mount is the container's own.
        (
            "12:cpuset:/docker/4f\n4:cpu,cpuacct:/docker/4f\n1:name=systemd:/docker/4f\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        (
            "4:cpu,cpuacct:/\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            8,
        ),
        (
            "3:cpu:/kube/pod1\n",
            {"cpu/kube/pod1/cpu.cfs_quota_us": "100000", "cpu/kube/pod1/cpu.cfs_period_us": "50000"},
            2,
        ),
        # Seen from inside a namespace whose root is elsewhere.
        ("0::/../../other\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/../../other\n", {"../other/cpu.max": "100000 100000\n"}, 8),
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "not what it was"}, 8),
    ],
)  # fmt: skip
def test_the_limit_of_the_container_counts_not_the_cores_of_the_machine(
    tmp_path: Path, cgroup: str, files: dict[str, str], cpus: float
) -> None:
    mount = tmp_path / "mount"
    for name, content in files.items():
        file = mount / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (tmp_path / "cgroup").write_text(cgroup)

    assert available_cpus(tmp_path / "cgroup", mount, cores=8) == cpus


def test_without_control_groups_the_cores_count(tmp_path: Path) -> None:
    assert available_cpus(tmp_path / "none", tmp_path, cores=3) == 3
    assert 0 < available_cpus() <= (os.cpu_count() or 1)


def test_too_many_threads_are_more_than_one_for_each_cpu() -> None:
    assert not too_many_threads(1, 1, 0.5)  # fewer there cannot be
    assert not too_many_threads(2, 1, 1.5)
    assert too_many_threads(2, 1, 1.0)
    assert not too_many_threads(2, 2, 4.0)
    assert too_many_threads(3, 2, 4.0)


def test_what_forks_has_one_thread_and_has_imported_nothing_that_starts_another() -> None:
    program = """
import os, sys
import service.cli, service.server
print(len(os.listdir("/proc/self/task")), sorted({"numpy", "fastapi", "onnxruntime", "grpc"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "1 []\n"
