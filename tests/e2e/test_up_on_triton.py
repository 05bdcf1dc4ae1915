"""`rapport up --backend triton`, on what the visitor has already built: the same answers, from a real Triton."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from feature_client.contract import discrepancy
from feature_client.routes import read_routes
from service.local_triton import LocalTriton
from tests.e2e.conftest import CUSTOMERS, Visitor, visiting
from tests.triton_calls import batches, batches_when, connected

MODEL = "engagement.1"
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def on_triton(visitor: Visitor, triton: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    home = tmp_path_factory.mktemp("triton") / "home"
    # All but which processes run: a home of its own, beside the visitor's.
    shutil.copytree(visitor.home, home, ignore=shutil.ignore_patterns("up.json"))
    with visiting(home, "--customers", str(CUSTOMERS), "--backend", "triton") as one:
        yield one


def tritons(visitor: Visitor) -> list[psutil.Process]:
    """The one that runs; none between two."""
    return [process for process in visitor.family() if process.name() == "tritonserver"]


def address(visitor: Visitor) -> str:
    """Where the gateway was told that Triton is."""
    [told] = {
        told
        for process in visitor.family()
        if process.ppid() == visitor.family()[0].pid and (told := process.environ().get("RAPPORT_TRITON"))
    }
    return told


def explained(visitor: Visitor, customers: list[str]) -> dict[str, Any]:
    body = {"entities": [{"customer_id": customer} for customer in customers], "explain": 3}
    response = requests.post(
        f"{visitor.url}/v1/predict", json=body, headers={"X-Deadline-Ms": "30000"}, timeout=TIMEOUT_S
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_triton_gives_the_answers_that_the_gateway_gives_itself(
    visitor: Visitor, on_triton: Visitor, customers: list[str]
) -> None:
    assert "still valid: nothing to rebuild" in on_triton.said
    graph = f"engagement.{read_routes(on_triton.workspace.models)['engagement'].champion}.explain"
    with connected(address(on_triton)) as client:
        before, _ = batches(client, graph)
        ours, theirs = (explained(one, customers[:20])["predictions"] for one in (visitor, on_triton))
        batches_when(client, graph, rows=before + 20)

    for one, other in zip(ours, theirs, strict=True):
        assert one["entity"] == other["entity"]
        tasks = [task for task, score in one["scores"].items() if score is not None]
        assert tasks
        assert tasks == [task for task, score in other["scores"].items() if score is not None]
        scores = [np.array([answer["scores"][task] for task in tasks]) for answer in (one, other)]
        assert (discrepancy(*scores) <= 1).all()
        assert other["explanations"]


def test_a_killed_triton_comes_back_and_nobody_types_anything(on_triton: Visitor, customers: list[str]) -> None:
    [killed] = tritons(on_triton)
    killed.kill()
    body = {"entities": [{"customer_id": customers[0]}]}
    deadline = time.monotonic() + TIMEOUT_S
    codes = {0}
    while 200 not in codes or tritons(on_triton) in ([], [killed]):
        assert time.monotonic() < deadline, codes
        codes.add(requests.post(f"{on_triton.url}/v1/predict", json=body, timeout=TIMEOUT_S).status_code)

    assert codes <= {0, 200, 503, 504}
    assert on_triton.process is not None
    assert on_triton.process.poll() is None


def test_down_ends_triton_as_well(on_triton: Visitor) -> None:
    """The last of this file."""
    family = on_triton.family()
    assert {"tritonserver", "redis-server"} <= {process.name() for process in family}
    [workspace] = on_triton.home.glob("*/triton")

    subprocess.run([sys.executable, "-m", "service.cli", "down", "--home", str(on_triton.home)], check=True)

    assert [process for process in family if process.is_running() and process.status() != "zombie"] == []
    assert not Path(workspace / "tritonserver.pid").exists()
