"""`make bench` as it runs, but short: every row is measured on the real gateway, and none of its answers is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from feature_client.online.local_redis import LocalRedis
from loadtests.bench.__main__ import ON_TRITON, ROWS
from loadtests.bench.load import LoadError, find_wrk
from tests.e2e.conftest import CUSTOMERS, Visitor

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600


@pytest.fixture(scope="module")
def home(visitor: Visitor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the visitor built, for a bench of its own. Its store writes nothing any more, so its file can be copied."""
    try:
        find_wrk()
    except LoadError as exc:
        pytest.skip(str(exc))
    home = tmp_path_factory.mktemp("bench")
    shutil.copytree(visitor.workspace.root, home / "generated")
    return home


def bench(home: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "loadtests.bench", "--home", str(home), "--base", str(CUSTOMERS), "--patient"]
    return subprocess.run(
        [*command, "--seconds", "1", "--rounds", "1", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def measured(run: "subprocess.CompletedProcess[str]") -> dict[str, dict[str, Any]]:
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["failed"] == {}
    return {row["name"]: row for row in result["results"]}


def test_every_row_is_measured(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    names = ",".join(name for name in ROWS if name not in ON_TRITON)
    rows = measured(bench(home, "--rows", names, "--models", "3", "--customers", "1200", "--docs", str(tmp_path)))

    assert set(rows) >= {
        "throughput_64", "one_client_cpu", "one_client_p50", "tail_rapport", "read_single", "read_batch",
        "read_300_features", "batch_1000", "customers", "models", "startup_s", "resident_mib", "mixed", "explain",
        "explain_exact", "explain_graph_1", "explain_graph_256", "explain_error", "explain_peers_KernelExplainer",
        "explain_peers_PermutationExplainer", "explain_flood", "explain_flood_light",
    }  # fmt: skip
    for name, row in rows.items():
        assert row["figure"] > 0, name
        assert row["values"], name
        assert row["what"] in page.read_text()
    # Not all: some have no event before the data set's instant.
    assert rows["read_single"]["details"]["compared"] > 0.9 * CUSTOMERS
    assert 1_000 < rows["customers"]["details"]["customers"] < 1_400


@pytest.mark.usefixtures("triton")  # that there is one at all: the bench starts its own
def test_every_row_on_triton_is_measured(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "performance-triton.md"
    rows = measured(bench(home, "--rows", "on_triton", "--docs", str(tmp_path)))

    assert {row["group"] for row in rows.values()} == set(ON_TRITON)
    assert set(rows) >= {
        "triton_1", "triton_16", "triton_64", "triton_unbatched", "triton_pinned", "triton_rows_predict_1000",
        "triton_rows_explain_32", "triton_tail", "triton_tail_rapport", "triton_queue_policy", "triton_shm_1",
        "triton_explain_flood",
    }  # fmt: skip
    assert rows["triton_64"]["mark"] == 1.5
    for name, row in rows.items():
        # On a day on which nobody had to wait, a queue policy costs nothing.
        assert row["figure"] >= 0 if name == "triton_queue_policy" else row["figure"] > 0, name
        assert row["values"], name
        assert row["what"] in page.read_text()
    assert "Recommended here: " in page.read_text()


def test_a_store_without_the_customers_is_no_figure(home: Path, tmp_path: Path) -> None:
    """Then every answer is made of defaults, faster than a right one."""
    other = shutil.copytree(home, tmp_path / "other")
    with LocalRedis(other / "generated" / "redis", persistent=True) as server, Redis(port=server.port) as redis:
        for key in list(redis.scan_iter(count=1_000)):
            redis.rename(key, b"other" + key)

    run = bench(other, "--rows", "one_client")

    assert run.returncode == 1
    [(name, reason)] = json.loads(run.stdout.splitlines()[-1])["failed"].items()
    assert name == "one_client"
    assert "status 'unknown_entity', not one of ok" in reason


def test_a_store_that_was_emptied_is_filled_again(home: Path, tmp_path: Path) -> None:
    emptied = shutil.copytree(home, tmp_path / "emptied")
    shutil.rmtree(emptied / "generated" / "redis")

    assert set(measured(bench(emptied, "--rows", "one_client"))) == {"one_client_cpu", "one_client_p50"}
