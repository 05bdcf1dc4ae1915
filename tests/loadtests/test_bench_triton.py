"""The parts of the Triton rows: what perf_analyzer is given and says, on the real one and a real Triton; what a varied
config is; and what the page recommends."""

import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_client.release import Release
from loadtests.answers import WrongAnswer
from loadtests.bench.explainers import INPUTS
from loadtests.bench.home import PreparationError
from loadtests.bench.load import Load, LoadError, closed_loop, find_wrk
from loadtests.bench.perf_analyzer import WAYS, Asked, PerfAnalyzer, install, read_report, write_rows
from loadtests.bench.report import Row, pages
from loadtests.bench.servers import ServerError
from loadtests.bench.targets import Cost
from loadtests.bench.triton_page import recommended
from loadtests.bench.triton_server import Graph, Triton, golden_rows
from loadtests.bench.triton_settings import SETTINGS, compared, varied
from loadtests.bench.triton_tail import path_of, write_requests
from service.local_triton import LocalTriton
from service.triton_install import find
from tests.model_export.tiny_release import build_tiny_release
from tests.triton_calls import connected, load

SAID = "Request concurrency: 64\n  Client: \n    Request count: 24827\n    Throughput: 9416.32 infer/sec\n"
REPORT = (
    "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency\n"
    "64,9416.32,1,4812,11364,15032,25487\n\n\n"
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return build_tiny_release(tmp_path_factory.mktemp("models"))


@pytest.fixture
def served(triton: LocalTriton, release: Release) -> Any:
    """The release's graph of scores in Triton, as a gateway sends it."""
    graph = release.graphs()[0]
    with connected(triton.address) as client:
        load(client, graph)
        yield Triton(triton.address, "").graph(graph.name, graph.file)
        client.unload_model(graph.name)


@pytest.fixture(scope="module")
def analyzer(triton: LocalTriton) -> PerfAnalyzer:  # where there is a Triton at all
    return install(find().home)


def test_a_report_is_read() -> None:
    load = read_report(SAID, REPORT)

    assert (load.requests, load.p50_ms, load.p99_ms, load.errors) == (24_827, 4.812, 25.487, 0)
    assert load.requests_per_s == pytest.approx(9_416.32)


@pytest.mark.parametrize(
    ("said", "report"),
    [("", REPORT), (SAID, ""), (SAID, REPORT.splitlines()[0]), (SAID, REPORT.replace("9416.32", "0")), (SAID, "a\n1")],
)
def test_a_report_that_is_not_understood_is_no_figure(said: str, report: str) -> None:
    with pytest.raises(LoadError, match="not understood"):
        read_report(said, report)


def test_rows_reach_it_to_the_last_bit_missing_values_too(tmp_path: Path) -> None:
    tensors: Mapping[str, Any] = {
        "numeric": np.array([[1.5, np.nan, -0.0], [1e-45, 3e38, 7]], np.float32),
        "categorical": np.array([[2], [2**40]], np.int64),
    }
    rows = json.loads(write_rows(tmp_path / "rows.json", tensors).read_text())["data"]

    assert [row["numeric"]["shape"] for row in rows] == [[3], [3]]
    for name, values in tensors.items():
        assert b"".join(b64decode(row[name]["b64"]) for row in rows) == values.tobytes()


@pytest.mark.parametrize("way", WAYS)
def test_perf_analyzer_asks_the_real_triton_for_golden_rows(
    way: str, analyzer: PerfAnalyzer, triton: LocalTriton, release: Release, served: Graph, tmp_path: Path
) -> None:
    golden = golden_rows(release.directory)
    rows = write_rows(tmp_path / "rows.json", {name: golden[name] for name in INPUTS})
    asked = Asked(triton.address, served.name, served.version, rows)

    load = analyzer.drive(asked, way, 4, 0.6, None)

    assert load.requests > 0
    assert 0 < load.p50_ms <= load.p99_ms


def test_perf_analyzer_without_a_model_measures_nothing(
    analyzer: PerfAnalyzer, triton: LocalTriton, release: Release, tmp_path: Path
) -> None:
    golden = golden_rows(release.directory)
    rows = write_rows(tmp_path / "rows.json", {name: golden[name] for name in INPUTS})

    with pytest.raises(LoadError, match=r"perf_analyzer measured nothing: .*no_such_model"):
        analyzer.drive(Asked(triton.address, "no_such_model", "1", rows), "async", 1, 0.6, None)


def test_it_is_installed_once(analyzer: PerfAnalyzer) -> None:
    parts = [analyzer.program, *(path for path in analyzer.libraries.iterdir() if path.is_symlink())]
    before = [path.lstat().st_mtime_ns for path in parts]

    assert install(find().home) == analyzer
    assert len(parts) == 3
    assert [path.lstat().st_mtime_ns for path in parts] == before


def test_without_tritons_libraries_there_is_no_perf_analyzer(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match=r"needs libb64.so.0d, which the Triton in .*/nothing does not have"):
        install(tmp_path / "nothing", tmp_path / "perf_analyzer")


def test_a_varied_config_is_what_triton_runs(triton: LocalTriton, release: Release, served: Graph) -> None:
    server, golden = Triton(triton.address, ""), golden_rows(release.directory)
    for at, setting in enumerate(one for one in SETTINGS if one.model):
        one = varied(served, setting.model)
        one = one.varied({}, f"{one.name}.{at}")
        server.load(one)
        try:
            server.check(one, golden)
            found = server.graph(one.name, release.graphs()[0].file).config
            for field in served.config:
                if field not in ("name", "instance_group", *setting.model):
                    assert found[field] == served.config[field]
            for field, value in setting.model.items():
                if value is None:
                    assert field in served.config
                    assert field not in found
                else:
                    assert found[field] == {**served.config[field], **value}
        finally:
            server.client.unload_model(one.name)


def test_golden_rows_with_other_answers_are_seen(triton: LocalTriton, release: Release, served: Graph) -> None:
    server, golden = Triton(triton.address, ""), golden_rows(release.directory)
    server.check(served, golden)

    for wrong in (golden["scores"] + 1e-3, np.full_like(golden["scores"], np.nan), golden["scores"][:, :2]):
        with pytest.raises(WrongAnswer, match="other scores"):
            server.check(served, {**golden, "scores": wrong})


def test_a_model_that_is_not_there_is_named(triton: LocalTriton, release: Release, served: Graph) -> None:
    server = Triton(triton.address, "")

    with pytest.raises(ServerError, match="does not have no_such_model in one version"):
        server.graph("no_such_model", release.graphs()[0].file)
    with pytest.raises(ServerError, match=f"does not take {served.name} as it was varied"):
        server.load(served.varied({"backend": "no_such_backend"}, f"{served.name}"))


@pytest.mark.usefixtures("triton")  # that there is one at all
def test_http_requests_are_answered_by_triton(release: Release, tmp_path: Path) -> None:
    """Those of the open loop, on a Triton with HTTP."""
    try:
        find_wrk()
    except LoadError as exc:
        pytest.skip(str(exc))
    rows = write_requests(tmp_path / "requests.jsonl", golden_rows(release.directory))
    graph = release.graphs()[0]
    with LocalTriton(tmp_path / "triton", http_port=0) as server, connected(server.address) as client:
        load(client, graph)
        one = Triton(server.address, f"http://127.0.0.1:{server.http_port}").graph(graph.name, graph.file)
        url = f"http://127.0.0.1:{server.http_port}"
        answered = closed_loop(url, rows, 2, 1, path=path_of(one), key=None, core=None)
        missing = closed_loop(url, rows, 2, 1, path="/v2/models/no_such_model/infer", key=None, core=None)

    assert answered.errors == 0 < answered.requests
    assert 0 <= answered.slow <= 1
    assert missing.errors == missing.requests > 0


def rated(what: str, rates: Sequence[float]) -> Row:
    [setting] = [setting for setting in SETTINGS if setting.what == what]
    pairs = [[Cost(Load(round(rate), 1.0, 1.0, 2.0, 0), 50.0) for rate in (one, 100)] for one in rates]
    return compared("triton_settings_1", setting, [(one, other) for one, other in pairs])


def recommends(*rows: Row) -> str:
    return "\n".join(recommended([{"group": "triton_settings", **row.as_json()} for row in rows]))


def test_what_is_recommended_was_better_in_every_round() -> None:
    lucky, steady = rated("8 batches in flight", [300, 300, 90]), rated("4 batches in flight", [120, 130, 110])
    told = recommends(lucky, steady)

    assert "`RAPPORT_BATCHES_IN_FLIGHT=4`, `RAPPORT_TRITON_BATCHES_IN_FLIGHT=4`" in told
    assert "1.20 times the throughput of the defaults with 64 clients, 1.10 in the worst round" in told
    assert "Recommended here: the defaults." in recommends(lucky)
    assert "Recommended here: the defaults." in recommends(rated("2 threads", [104, 104, 104]))
    unbatched = recommends(steady, rated("no dynamic batching", [200, 200, 200]))
    assert '`{"dynamic_batching": null}` in the model\'s config' in unbatched
    assert "Recommended here: the defaults." in recommends(steady, rated("2 batches in flight", [90, 100, 125]))
    assert "1.25 times as good" in recommends(steady, rated("2 batches in flight", [90, 100, 125]))
    assert recommends() == ""


def test_triton_has_a_page_of_its_own() -> None:
    facts = {"machine": "a machine", "commit": "abc1234", "date": "2026-01-01", "versions": {"python": "3.11"}}
    run = {**facts, "seconds": 1.0, "rounds": 1, "failed": {"triton": "no such server"}}
    row = rated("2 threads", [100])
    results = [{"group": "triton_settings", **row.as_json()}]
    written = pages({**run, "results": results, "rows": ["triton", "triton_settings"]})

    assert list(written) == ["performance-triton.md"]
    page = written["performance-triton.md"]
    assert page.count(row.what) == 1
    assert "Recommended here: the defaults." in page
    assert "Not measured: triton (no such server)." in page
    both = pages({**run, "results": results, "rows": ["tail", "triton"]})
    assert row.what not in both["performance.md"]
    assert list(pages({**run, "results": [], "rows": ["tail"]})) == ["performance.md"]
