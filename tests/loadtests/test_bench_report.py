import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.bench.report import Row, absolute, circumstances, line, pages

ROOT = Path(__file__).parents[2]


def row(value: float, *, at_least: bool = False, mark: float | None = 2.0) -> Row:
    return Row(
        "throughput_64", "predict throughput", (1.0, value, 9.0), "times", mark, at_least,
        absolute=absolute([12_345.6], [0.12345], "requests/s"),
    )  # fmt: skip


def result(*rows: Row, **other: Any) -> dict[str, Any]:
    facts = {"machine": "a machine", "commit": "abc1234", "date": "2026-01-01", "versions": {"python": "3.11"}}
    results = [{"group": "throughput", **row.as_json()} for row in rows]
    return {**facts, "seconds": 3.0, "rounds": 3, "results": results, "rows": ["throughput"], "failed": {}, **other}


def test_each_page_holds_its_own_rows() -> None:
    facts = result(row(2.0), rows=["throughput", "offline"])
    facts["results"].append({"group": "offline", **row(3.0).as_json(), "what": "time of building features"})
    written = pages(facts)
    assert set(written) == {"performance.md", "performance-offline.md"}
    assert "building features" in written["performance-offline.md"]
    assert "building features" not in written["performance.md"]
    assert set(pages({**facts, "rows": ["offline"]})) == {"performance-offline.md"}


@pytest.mark.parametrize(
    ("figure", "at_least", "mark", "met"),
    [
        (2.0, True, 2.0, True),
        (1.99, True, 2.0, False),
        (2.0, False, 2.0, True),
        (2.01, False, 2.0, False),
        (5.0, False, None, None),
    ],
)
def test_a_mark_is_met_by_the_median(figure: float, at_least: bool, mark: float | None, met: bool | None) -> None:  # noqa: FBT001
    assert row(figure, at_least=at_least, mark=mark).met is met


@pytest.mark.parametrize("at_least", [True, False])
def test_what_is_no_number_meets_nothing(at_least: bool) -> None:  # noqa: FBT001
    assert Row("name", "what", (float("nan"),), "times", 2.0, at_least).met is False


def test_the_table_says_the_figure_its_spread_and_the_verdict() -> None:
    told = line(row(1.5, at_least=True))

    assert " ".join(told.split()) == (
        "predict throughput 1.50 times 1.00 .. 9.00 at least 2 NOT MET 12,346 against 0.123 requests/s"
    )
    assert "at most 2     met" in line(row(1.5))
    assert "MET" not in line(row(1.5, mark=None)).upper()


def test_the_page_has_the_commit_the_command_and_what_is_missed() -> None:
    page = pages(result(row(1.5, at_least=True), row(1.5, mark=None), failed={"tail": "wrk is\n\n  missing"}))[
        "performance.md"
    ]

    assert "a machine" in page
    assert "abc1234" in page
    assert (
        "| predict throughput | 1.50 times | 1.00 to 9.00 | at least 2 | **not met** "
        "| 12,346 against 0.123 requests/s | `make bench ROWS=throughput` |"
    ) in page
    assert "**met**" not in page
    assert "Not measured: tail (wrk is missing)." in page


def test_circumstances_name_this_commit_and_versions(redis_url: str) -> None:
    facts = circumstances(redis_url)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert facts["commit"].startswith(git.stdout.strip())
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert set(facts["versions"]) >= {"redis", "uvicorn", "onnxruntime"}
    json.dumps(facts)


def test_unknown_rows_are_refused() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "loadtests.bench", "--rows", "throughput,speed"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert run.returncode == 2
    assert "no such rows: speed" in run.stderr
