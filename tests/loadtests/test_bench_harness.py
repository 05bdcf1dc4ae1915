"""The benchmark's own parts, on real processes: what they count, what they refuse, and what they leave behind."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests.answers import WrongAnswer
from loadtests.bench.home import Home
from loadtests.bench.load import LoadError, closed_loop, find_wrk
from loadtests.bench.plan import Plan
from loadtests.bench.servers import ServerError, free_port, server
from loadtests.bench.targets import Cores, Target, bodies_of, check, refusals

CUSTOMERS = [str(number) for number in range(12_000, 12_200)]


def core() -> int:
    return min(os.sched_getaffinity(0))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, "127.0.0.1:1", "", CUSTOMERS, tmp_path / "keys.toml", "secret", tmp_path, {})


@pytest.fixture
def wrk() -> None:
    try:
        find_wrk()
    except LoadError as exc:
        pytest.skip(str(exc))


@contextmanager
def fake_gateway(wrong: str = "") -> Iterator[Target]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "tests.loadtests.bench_gateway:app", "--port", str(port)]
    with server([*command, "--lifespan", "off"], {"WRONG": wrong}, f"{url}/readyz", core()) as process:
        yield Target("fake", url, process, "secret", core())


@pytest.mark.usefixtures("wrk")
def test_load_counts_answers_and_what_they_cost_the_server(home: Home) -> None:
    with fake_gateway() as target:
        cost = target.drive(bodies_of(home, CUSTOMERS), 4, 1)

    assert cost.load.requests > 0
    assert cost.load.errors == 0
    assert 0 < cost.load.p50_ms <= cost.load.p99_ms
    # All CPU time of one core, at most: a second is 1e6 microseconds.
    assert 0 < cost.cpu_us * cost.load.requests_per_s < 1.2e6


@pytest.mark.usefixtures("wrk")
def test_every_refusal_is_an_error_and_no_figure(home: Home) -> None:
    with fake_gateway() as target:
        bodies = bodies_of(home, CUSTOMERS)
        load = closed_loop(target.url, bodies, 2, 1, path="/v1/predict", key="another", core=core())
        stranger = Target("stranger", target.url, target.server, None, target.core)

        assert load.errors == load.requests > 0
        with pytest.raises(WrongAnswer, match=r"stranger: \d+ errors in \d+ requests"):
            stranger.drive(bodies, 2, 1)


@pytest.mark.usefixtures("wrk")
def test_right_answers_pass_the_check(home: Home) -> None:
    with fake_gateway() as target:
        check(target, home, CUSTOMERS)


@pytest.mark.usefixtures("wrk")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("mixed up", "not the expected answer"),
        ("constant", "most customers have the same scores"),
        ("unknown", "status 'unknown_entity', not one of ok"),
    ],
)
def test_wrong_answers_do_not_pass_the_check(home: Home, wrong: str, told: str) -> None:
    with fake_gateway(wrong) as target, pytest.raises(WrongAnswer, match=told):
        check(target, home, CUSTOMERS)


def test_load_that_cannot_be_made_is_no_figure(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "wrk"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'unable to connect'\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=os.pathsep)

    with pytest.raises(LoadError, match="unable to connect"):
        closed_loop("http://127.0.0.1:9", bodies_of(home, CUSTOMERS), 1, 1, path="/", key=None, core=core())


def test_a_server_that_ends_says_its_last_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('out of luck')"]

    with pytest.raises(ServerError, match="code 1: out of luck"), server(command, {}, "http://127.0.0.1:9/", None):
        pytest.fail("it never was ready")


def test_a_server_that_never_is_ready_says_why_and_not_that_it_was_asked() -> None:
    said = ['{"event": "release not loaded", "reason": "damaged"}', '{"event": "request", "status": 503}']
    command = ["sh", "-c", "".join(f"echo '{line}'; " for line in said) + "exec sleep 600"]

    with (
        pytest.raises(
            ServerError, match=r'not answer within 1 s: {"event": "release not loaded", "reason": "damaged"}$'
        ),
        server(command, {}, f"http://127.0.0.1:{free_port()}/", None, timeout_s=1),
    ):
        pytest.fail("it never was ready")


def test_a_server_that_ends_meanwhile_is_not_measured() -> None:
    with pytest.raises(ServerError, match="ended with code 0"), server(["true"], {}, None, None) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_server_ends_with_its_children_even_if_they_would_not(tmp_path: Path) -> None:
    told = tmp_path / "child"
    os.mkfifo(tmp_path / "ready")
    command = ["sh", "-c", f"(trap '' TERM; exec sleep 600) & echo $! > {told}; echo > {tmp_path / 'ready'}; wait"]

    with server(command, {}, None, None):
        (tmp_path / "ready").read_text()  # waits for the other side

    child = int(told.read_text())
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2][:3]


def test_cpu_seconds_hold_those_of_children(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ready")
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    command = ["sh", "-c", f"{sys.executable} -c '{burn}'; echo > {tmp_path / 'ready'}; exec sleep 600"]

    with server(command, {}, None, None) as process:
        (tmp_path / "ready").read_text()

        assert process.cpu_s() >= 0.29


def test_a_servers_environment_has_nothing_of_the_shells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAPPORT_DEADLINE_MS", "1")
    os.mkfifo(tmp_path / "told")
    command = ["sh", "-c", f"env > {tmp_path / 'told'}; exec sleep 600"]

    with server(command, {"RAPPORT_PORT": "8080"}, None, None):
        told = (tmp_path / "told").read_text().splitlines()

    assert [line for line in told if line.startswith("RAPPORT_")] == ["RAPPORT_PORT=8080"]


def test_pairs_alternate_who_goes_first_and_keep_their_order(home: Home) -> None:
    went: list[str] = []

    def run(name: str) -> str:
        went.append(name)
        return name

    plan = Plan(home, Cores(core(), core()), seconds=1, rounds=3, customers=1, models=1)
    pairs = list(plan.interleaved(lambda: run("ours"), lambda: run("other")))

    assert pairs == [("ours", "other")] * 3
    assert went == ["ours", "other", "other", "ours", "ours", "other"]


@pytest.mark.parametrize(("size", "requests"), [(1, 200), (60, 3), (1_000, 1)])
def test_bodies_ask_for_everyone_once_in_another_order(home: Home, size: int, requests: int) -> None:
    bodies = [json.loads(line) for line in bodies_of(home, CUSTOMERS, size, {"model": "m"}).read_text().splitlines()]
    asked = [entity["customer_id"] for body in bodies for entity in body["entities"]]

    assert [len(body["entities"]) for body in bodies] == [size] * requests
    assert {body["model"] for body in bodies} == {"m"}
    assert set(asked) <= set(CUSTOMERS)
    if size < len(CUSTOMERS):
        assert len(set(asked)) == len(asked)
        assert asked != CUSTOMERS[: len(asked)]


def test_taskset_is_there() -> None:
    """What pins every server: util-linux, on every Linux."""
    assert shutil.which("taskset")


def test_the_gateways_own_reasons_are_told() -> None:
    log = [
        '{"event": "request", "status": 200, "code": null}',
        '{"event": "request failed", "code": "feature_store_unavailable", "reason": "Redis did not answer in time"}',
        '{"event": "request failed", "code": "feature_store_unavailable", "reason": "Redis did not answer in time"}',
        'a line with a "reason" that is not JSON',
    ]

    assert refusals("\n".join(log)) == "; 2 x feature_store_unavailable (Redis did not answer in time)"
    assert refusals("nothing") == ""
