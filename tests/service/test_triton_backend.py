"""A real Triton that is killed, stopped, robbed of its models, and given wrong ones; and a fake one that lies."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
import requests
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-untyped]

from feature_client.contract import discrepancy
from feature_client.errors import RapportError
from feature_client.golden import Tensors
from feature_client.release import Release, ReleaseGraph
from feature_client.triton_config import config_json
from service.app import create_app
from service.backends import BackendUnavailable, BadModelOutput, check_outputs
from service.backends import replica as replica_module
from service.backends.endpoint import Endpoint
from service.backends.replica import Package, Replica
from service.backends.triton import TritonBackend, TritonLimits
from service.local_triton import LocalTriton
from service.settings import Settings
from tests.model_export.tiny_release import AS_OF
from tests.service.conftest import wait_ready
from tests.service.lying_triton import Lie, LyingTriton
from tests.service.serving import running
from tests.service.test_backends import Offline, inputs
from tests.service.test_operations import total

Scenario = Callable[[TritonBackend, ReleaseGraph], Awaitable[None]]

LONG_S = 30.0
ERRORS = (BackendUnavailable, BadModelOutput, TimeoutError)
AWAY = "127.0.0.1:1"
"""Nobody listens there."""


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, triton: LocalTriton) -> Iterator[LocalTriton]:
    """Another Triton, that knows nothing of the first."""
    with LocalTriton(tmp_path_factory.mktemp("second"), installation=triton.installation) as server:
        yield server


@pytest.fixture(scope="module")
def graph(release: Release) -> ReleaseGraph:
    return release.graphs()[0]


@pytest.fixture(scope="module")
def truth(release: Release) -> Offline:
    return Offline(release)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (what it waits for is in other processes)
            await asyncio.sleep(0.005)


class World:
    """One loaded graph on some Tritons, with answers held against what the graph gives without any of them."""

    def __init__(self, backend: TritonBackend, graph: ReleaseGraph, truth: Offline) -> None:
        self.backend = backend
        self.graph = graph
        self.tensors: Tensors = inputs(graph, 3)
        self.expected = truth(graph.name, self.tensors)

    async def ask(self, timeout_s: float = LONG_S) -> None:
        outputs = await self.backend.infer(self.graph.name, self.tensors, timeout_s)
        check_outputs(self.graph.name, outputs, self.graph.outputs(3))
        assert (discrepancy(outputs["scores"], self.expected["scores"], 0.0) <= 1).all(), "a wrong answer"

    async def outcome(self, timeout_s: float = LONG_S) -> str:
        try:
            await self.ask(timeout_s)
        except ERRORS as exc:
            return next(kind.__name__ for kind in ERRORS if isinstance(exc, kind))
        return "ok"

    async def until(self, outcome: str, timeout_s: float = LONG_S) -> list[str]:
        """Asks until it is so; gives all that came before."""
        before: list[str] = []
        async with asyncio.timeout(60):
            while (this := await self.outcome(timeout_s)) != outcome:
                before.append(this)
                await asyncio.sleep(0.01)
        return before

    async def until_proven(self, address: str, *, ready: bool = True) -> None:
        await until(lambda: self.replica(address).ready == ready)

    async def until_busy(self, address: str) -> None:
        await until(lambda: self.replica(address).endpoint.busy > 0)

    def replica(self, address: str) -> Replica:
        return next(r for r in self.backend.replicas[self.graph.name] if r.endpoint.address == address)


def on(
    truth: Offline,
    graph: ReleaseGraph,
    scenario: Callable[[World], Awaitable[None]],
    *addresses: str,
    limits: TritonLimits | None = None,
) -> None:
    async def run() -> None:
        backend = TritonBackend(addresses, limits or TritonLimits())
        try:
            await backend.load(graph)
            await scenario(World(backend, graph, truth))
        finally:
            await backend.unload(graph.name)
            await backend.close()

    asyncio.run(run())


@contextlib.contextmanager
def stopped(server: LocalTriton) -> Iterator[None]:
    """It is there and does nothing, as after a hang of its machine."""
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        threads = list(Path(f"/proc/{pid}/task").glob("*/stat"))
        while not all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads):
            time.sleep(0.01)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def another(address: str) -> AsyncIterator[Endpoint]:
    """Somebody else who uses the same Triton."""
    endpoint = Endpoint(address, 1)
    try:
        yield endpoint
    finally:
        await endpoint.close()


def test_a_killed_triton_is_refused_by_name_and_back_with_the_model_when_it_is(
    triton: LocalTriton, graph: ReleaseGraph, truth: Offline
) -> None:
    async def scenario(world: World) -> None:
        os.kill(triton.pid, signal.SIGKILL)
        await world.until("BackendUnavailable")
        assert not world.backend.available

        before = await world.until("ok")
        assert set(before) <= {"BackendUnavailable"}, "nobody waits for what is known to be away"
        assert world.backend.available

    on(truth, graph, scenario, triton.address)


def test_a_stopped_triton_is_late_then_refused_and_back_when_it_goes_on(
    triton: LocalTriton, graph: ReleaseGraph, truth: Offline
) -> None:
    async def scenario(world: World) -> None:
        with stopped(triton):
            assert await world.outcome(0.2) == "TimeoutError"
            assert set(await world.until("BackendUnavailable", 0.2)) <= {"TimeoutError"}
        assert set(await world.until("ok")) <= {"BackendUnavailable"}

    on(truth, graph, scenario, triton.address)


def test_a_dead_process_behind_a_healthy_triton_is_replaced(
    triton: LocalTriton, graph: ReleaseGraph, truth: Offline
) -> None:
    async def scenario(world: World) -> None:
        for pid in triton.python_processes():
            os.kill(pid, signal.SIGKILL)
        # Triton takes a second to notice; who has that much time, gets an answer.
        assert await world.outcome() == "ok"

    on(truth, graph, scenario, triton.address, limits=TritonLimits(timeout_s=10.0))


def test_a_dead_process_is_noticed_without_any_request(
    triton: LocalTriton, graph: ReleaseGraph, truth: Offline
) -> None:
    async def scenario(world: World) -> None:
        dead = triton.python_processes()
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: bool(set(triton.python_processes()) - set(dead)))
        await world.until_proven(triton.address)
        assert await world.outcome() == "ok"

    on(truth, graph, scenario, triton.address)


def test_a_model_that_somebody_unloads_is_loaded_again_and_no_request_fails(
    triton: LocalTriton, graph: ReleaseGraph, truth: Offline
) -> None:
    async def scenario(world: World) -> None:
        async with another(triton.address) as rival:
            for _ in range(3):
                await rival.unload(graph.name)
                assert await asyncio.gather(*(world.outcome() for _ in range(8))) == ["ok"] * 8

    on(truth, graph, scenario, triton.address)


def test_another_graph_under_the_same_name_is_never_taken_for_it(
    triton: LocalTriton, graph: ReleaseGraph, truth: Offline, versions: tuple[Release, Release]
) -> None:
    """Neither while it answers, nor by who comes later: it asks for the version that its own bytes determine."""
    other = Package.read(versions[1].graphs()[0])
    assert other.content != graph.file.read_bytes()

    async def scenario(world: World) -> None:
        async with another(triton.address) as rival:
            for version in (other.version, "1"):
                await rival.unload(graph.name)
                config = config_json(graph, version=int(version))
                await rival.load(graph.name, config, f"{version}/model.onnx", other.content)
                assert await asyncio.gather(*(world.outcome() for _ in range(8))) == ["ok"] * 8

    on(truth, graph, scenario, triton.address)


def test_wrong_bytes_under_the_right_version_do_not_outlive_the_next_proof(
    triton: LocalTriton, graph: ReleaseGraph, truth: Offline, versions: tuple[Release, Release]
) -> None:
    """Nobody does that by mistake. A golden row tells, here and when the next gateway loads."""
    right, wrong = Package.read(graph), Package.read(versions[1].graphs()[0])

    async def scenario(world: World) -> None:
        async with another(triton.address) as rival:
            await rival.unload(graph.name)
            await rival.load(graph.name, right.config, f"{right.version}/model.onnx", wrong.content)
            newcomer = TritonBackend([triton.address])
            await newcomer.load(graph)
            await newcomer.close()
            await world.ask()

    on(truth, graph, scenario, triton.address)


def test_several_gateways_may_load_at_once_and_do_not_reload_what_is_there(
    triton: LocalTriton, graph: ReleaseGraph
) -> None:
    async def run() -> None:
        gateways = [TritonBackend([triton.address]) for _ in range(4)]
        await asyncio.gather(*(gateway.load(graph) for gateway in gateways))
        processes = triton.python_processes()
        late = TritonBackend([triton.address])
        await late.load(graph)
        assert triton.python_processes() == processes
        for gateway in (*gateways, late):
            await gateway.infer(graph.name, inputs(graph, 1), LONG_S)
        await late.unload(graph.name)
        for gateway in (*gateways, late):
            await gateway.close()

    asyncio.run(run())


def test_with_two_tritons_none_of_the_requests_fails_when_one_dies(
    triton: LocalTriton, second: LocalTriton, graph: ReleaseGraph, truth: Offline
) -> None:
    async def scenario(world: World) -> None:
        outcomes: list[str] = []

        async def client() -> None:
            while not over.is_set():
                outcomes.append(await world.outcome())

        over = asyncio.Event()
        clients = [asyncio.create_task(client()) for _ in range(8)]
        for victim in (second, triton):
            await world.until_busy(victim.address)
            os.kill(victim.pid, signal.SIGKILL)
            await world.until_proven(victim.address, ready=False)
            await world.until_proven(victim.address)
        over.set()
        await asyncio.gather(*clients)

        assert set(outcomes) == {"ok"}

    on(truth, graph, scenario, triton.address, second.address)


def test_one_that_hangs_is_given_up_for_the_other_within_the_deadline(
    triton: LocalTriton, second: LocalTriton, graph: ReleaseGraph, truth: Offline
) -> None:
    async def scenario(world: World) -> None:
        with stopped(second):
            outcomes = [await world.outcome() for _ in range(20)]
            await world.until_proven(second.address, ready=False)
            outcomes += [await world.outcome() for _ in range(20)]
        assert set(outcomes) == {"ok"}
        await world.until_proven(second.address)

    on(truth, graph, scenario, triton.address, second.address, limits=TritonLimits(timeout_s=0.3))


def test_one_that_is_away_gets_the_model_when_it_comes(
    triton: LocalTriton, second: LocalTriton, graph: ReleaseGraph, truth: Offline
) -> None:
    told: dict[str, bool] = {}

    async def run() -> None:
        backend = TritonBackend([triton.address, second.address], told=told.__setitem__)
        with stopped(second):
            await backend.load(graph)
            world = World(backend, graph, truth)
            assert await world.outcome() == "ok"
            assert told == {triton.address: True, second.address: False}
        await world.until_proven(second.address)
        await until(lambda: bool(told[second.address]))
        await backend.unload(graph.name)
        await backend.close()

    asyncio.run(run())


def test_no_triton_at_all_is_an_error_of_the_load(graph: ReleaseGraph) -> None:
    async def run() -> None:
        backend = TritonBackend([AWAY])
        with pytest.raises(BackendUnavailable):
            await backend.load(graph)
        with pytest.raises(BackendUnavailable):
            await backend.infer(graph.name, inputs(graph, 1), LONG_S)
        await backend.unload(graph.name)
        await backend.close()

    asyncio.run(run())


def test_what_triton_cannot_load_is_refused_with_its_words(triton: LocalTriton, graph: ReleaseGraph) -> None:
    async def run() -> None:
        package = Package.read(graph)
        endpoint = Endpoint(triton.address, 1)
        broken = Replica(replace(package, content=package.content[:-100], version="7"), endpoint)
        with pytest.raises(BackendUnavailable, match="load failed"):
            await broken.prove()
        assert not broken.ready
        assert broken.refusal is not None
        with pytest.raises(BackendUnavailable):
            await endpoint.infer(package.request(inputs(graph, 1))[0], LONG_S)
        await endpoint.close()

    asyncio.run(run())


def put(**values: object) -> Lie:
    """Changes fields of the first output."""

    def lie(reply: pb.ModelInferResponse) -> None:
        for name, value in values.items():
            if isinstance(value, list):
                reply.outputs[0].shape[:] = value
            else:
                setattr(reply.outputs[0], name, value)

    return lie


def bytes_of(change: Callable[[bytes], bytes]) -> Lie:
    def lie(reply: pb.ModelInferResponse) -> None:
        reply.raw_output_contents[0] = change(reply.raw_output_contents[0])

    return lie


def more_rows(reply: pb.ModelInferResponse) -> None:
    reply.outputs[0].shape[0] += 1
    reply.raw_output_contents[0] += bytes(4 * reply.outputs[0].shape[1])


def not_finite(reply: pb.ModelInferResponse) -> None:
    reply.raw_output_contents[0] = np.full(len(reply.raw_output_contents[0]) // 4, np.nan, np.float32).tobytes()


LIES: dict[str, Lie] = {
    "another model": lambda reply: setattr(reply, "model_name", "other.1"),
    "another version": lambda reply: setattr(reply, "model_version", "1"),
    "another output": put(name="probabilities"),
    "no output": lambda reply: reply.ClearField("outputs"),
    "an output twice": lambda reply: (reply.outputs.append(reply.outputs[0]), None)[1],
    "float64": put(datatype="FP64"),
    "integers": put(datatype="INT32"),
    "one column": put(shape=[3, 1]),
    "flat": put(shape=[9]),
    "negative": put(shape=[-3, -3]),
    "huge": put(shape=[2**40, 2**40]),
    "no bytes": bytes_of(lambda _: b""),
    "a byte short": bytes_of(lambda content: content[:-1]),
    "a row short": bytes_of(lambda content: content[:-12]),
    "a byte more": bytes_of(lambda content: content + b"\0"),
    "no contents": lambda reply: reply.ClearField("raw_output_contents"),
    "empty tensors": lambda reply: (put(shape=[0, 3])(reply), bytes_of(lambda _: b"")(reply), None)[2],
    "more rows": more_rows,
    "not finite": not_finite,
}


def on_liar(graph: ReleaseGraph, scenario: Callable[[LyingTriton, TritonBackend], Awaitable[None]]) -> None:
    async def run() -> None:
        async with LyingTriton(graph).running() as liar:
            backend = TritonBackend([liar.address], TritonLimits(in_flight=2))
            try:
                await backend.load(graph)
                await scenario(liar, backend)
            finally:
                await backend.close()

    asyncio.run(run())


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_reply_that_cannot_be_the_answer_is_bad_output(graph: ReleaseGraph, lie: Lie) -> None:
    async def scenario(liar: LyingTriton, backend: TritonBackend) -> None:
        liar.lie = lie
        with pytest.raises(BadModelOutput):
            check_outputs(graph.name, await backend.infer(graph.name, inputs(graph, 3), LONG_S), graph.outputs(3))

    on_liar(graph, scenario)


@pytest.mark.parametrize("lie", [LIES["empty tensors"], LIES["not finite"], LIES["float64"]], ids=str)
def test_a_server_that_lies_about_golden_rows_gets_no_traffic(graph: ReleaseGraph, lie: Lie) -> None:
    async def run() -> None:
        async with LyingTriton(graph).running() as liar:
            liar.golden_too, liar.lie = True, lie
            backend = TritonBackend([liar.address])
            with pytest.raises(BadModelOutput):
                await backend.load(graph)
            asked = liar.asked
            with pytest.raises(BackendUnavailable):
                await backend.infer(graph.name, inputs(graph, 3), LONG_S)
            assert liar.asked == asked
            await backend.close()

    asyncio.run(run())


def test_golden_answers_that_go_wrong_take_it_out_of_service(graph: ReleaseGraph) -> None:
    async def scenario(liar: LyingTriton, backend: TritonBackend) -> None:
        liar.golden_too, liar.lie = True, LIES["not finite"]
        await until(lambda: not backend.available)

    on_liar(graph, scenario)


@pytest.mark.parametrize(
    "code",
    [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)],
    ids=lambda code: code.name,
)
def test_every_error_of_grpc_is_unavailable_by_name(graph: ReleaseGraph, code: grpc.StatusCode) -> None:
    async def scenario(liar: LyingTriton, backend: TritonBackend) -> None:
        liar.error = code, "it says so"
        with pytest.raises(BackendUnavailable):
            await backend.infer(graph.name, inputs(graph, 3), LONG_S)
        liar.error = None
        await until(lambda: bool(backend.available))
        await backend.infer(graph.name, inputs(graph, 3), LONG_S)

    on_liar(graph, scenario)


def test_who_stops_waiting_cancels_what_triton_does_for_it(graph: ReleaseGraph) -> None:
    async def scenario(liar: LyingTriton, backend: TritonBackend) -> None:
        liar.gate.clear()
        waiting = asyncio.create_task(backend.infer(graph.name, inputs(graph, 3), LONG_S))
        await until(lambda: liar.asked == 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        await until(lambda: liar.cancelled == 1)
        assert backend.endpoints[0].busy == 0

    on_liar(graph, scenario)


def test_no_more_batches_than_allowed_are_at_an_endpoint_and_waiting_costs_the_deadline(graph: ReleaseGraph) -> None:
    async def scenario(liar: LyingTriton, backend: TritonBackend) -> None:
        liar.gate.clear()
        two = [asyncio.create_task(backend.infer(graph.name, inputs(graph, 3), LONG_S)) for _ in range(2)]
        await until(lambda: liar.asked == 2)
        with pytest.raises(TimeoutError):
            await backend.infer(graph.name, inputs(graph, 3), 0.1)
        assert liar.asked == 2
        aside = [asyncio.create_task(backend.infer_aside(graph.name, inputs(graph, 3), LONG_S)) for _ in range(2)]
        await until(lambda: liar.asked == 3)
        await asyncio.wait(aside, timeout=0.1)
        assert liar.asked == 3, "one more, for what nobody waits for"
        liar.gate.set()
        await asyncio.gather(*aside)
        await asyncio.gather(*two)
        await backend.infer(graph.name, inputs(graph, 3), LONG_S)

    on_liar(graph, scenario)


def test_a_score_never_waits_behind_explanations() -> None:
    async def run() -> None:
        endpoint = Endpoint(AWAY, 1)
        ends = time.monotonic() + LONG_S
        async with endpoint.slot("explanations", ends), endpoint.slot("aside", ends), endpoint.slot("scores", ends):
            assert endpoint.busy == 3
            with pytest.raises(TimeoutError):
                async with endpoint.slot("scores", time.monotonic() + 0.02):
                    pass
        assert endpoint.busy == 0

    asyncio.run(run())


def test_short_deadlines_of_clients_do_not_take_a_server_out_of_service(graph: ReleaseGraph) -> None:
    async def scenario(liar: LyingTriton, backend: TritonBackend) -> None:
        liar.gate.clear()
        for _ in range(3 * replica_module.LATE_AT_MOST):
            with pytest.raises(TimeoutError):
                await backend.infer(graph.name, inputs(graph, 3), replica_module.PATIENCE_S / 5)
        assert backend.available
        liar.gate.set()
        await backend.infer(graph.name, inputs(graph, 3), LONG_S)

    on_liar(graph, scenario)


def test_deadlines_that_no_server_could_meet_do_not_take_it_out_of_service(graph: ReleaseGraph) -> None:
    """Reasons for many take longer than PATIENCE_S: a client that gives them less must not end everybody's."""
    given = 2 * replica_module.PATIENCE_S

    async def scenario(liar: LyingTriton, backend: TritonBackend) -> None:
        liar.golden_s = 2 * given
        await backend.load(graph)
        liar.gate.clear()
        for _ in range(3 * replica_module.LATE_AT_MOST):
            with pytest.raises(TimeoutError):
                await backend.infer(graph.name, inputs(graph, 3), given)
        assert backend.available
        liar.gate.set()
        await backend.infer(graph.name, inputs(graph, 3), LONG_S)

    on_liar(graph, scenario)


def test_the_gateway_serves_on_triton_by_its_settings(
    triton: LocalTriton, release: Release, redis_url: str, customers: list[str], tmp_path: Path
) -> None:
    def ask() -> requests.Response:
        return requests.post(f"{url}/v1/predict", json={"entities": [{"customer_id": "c1"}]}, timeout=10)

    with contextlib.ExitStack() as stack, LocalTriton(tmp_path, installation=triton.installation) as server:
        settings = Settings(
            backend="triton", triton=server.address, models=release.root, redis=redis_url, as_of=AS_OF,
            log_level="warning",
        )  # fmt: skip
        url = stack.enter_context(running(create_app(settings)))
        wait_ready(url)
        assert ask().status_code == 200, ask().text
        assert requests.get(f"{url}/readyz", timeout=5).json()["backend"] == "ok"
        assert total(url, "rapport_dependency_up", dependency=f"backend:{server.address}") == 1

        with stopped(server):
            answers = [ask().status_code]
            while answers[-1] != 503:
                answers.append(ask().status_code)
        assert set(answers) == {504, 503}, "late at first, and then it is not asked any more"
        wait_ready(url, "backend", "ok")
        assert ask().status_code == 200, ask().text

        server.__exit__(None, None, None)
        wait_ready(url, "backend", "unavailable")
        refused = ask()
        assert (refused.status_code, refused.json()["code"]) == (503, "model_unavailable")
        assert server.address not in refused.text
        assert total(url, "rapport_dependency_up", dependency=f"backend:{server.address}") == 0


def test_a_gateway_that_starts_before_its_triton_waits_for_the_champion_and_takes_no_older_release(
    triton: LocalTriton, two_releases: Release, redis_url: str, customers: list[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = Settings(
        backend="triton", triton=f"127.0.0.1:{port}", models=two_releases.root, redis=redis_url, as_of=AS_OF,
        log_level="warning", release_poll_s=0.05,
    )  # fmt: skip
    body = {"entities": [{"customer_id": "c1"}]}
    with running(create_app(settings)) as url:
        for _ in range(20):
            assert requests.post(f"{url}/v1/predict", json=body, timeout=5).json()["code"] == "not_ready"
        with LocalTriton(tmp_path, port, installation=triton.installation):
            wait_ready(url)
            answer = requests.post(f"{url}/v1/predict", json=body, timeout=5).json()
            assert answer["predictions"][0]["version"] == two_releases.version
            wait_ready(url, "last_reload", "ok")


def test_the_missing_client_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.backends.triton", None)

    with pytest.raises(RapportError, match=r"rapport\[triton\]"):
        create_app(Settings(backend="triton", triton="127.0.0.1:8001"))
