"""`rapport up --data` on Online Retail II, which ended in 2011 and is answered as of then."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import requests

from tests.e2e.conftest import Visitor, visiting

KNOWN = "17850"


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory, retail_file: Path) -> Iterator[Visitor]:
    with visiting(tmp_path_factory.mktemp("retail"), "--data", str(retail_file)) as one:
        yield one


def test_a_real_customer_is_answered_as_of_2011(visitor: Visitor, retail_file: Path) -> None:
    body = {"entities": [{"customer_id": KNOWN}, {"customer_id": "0"}]}
    answer = requests.post(f"{visitor.url}/v1/explain", json=body, timeout=30).json()

    assert answer["as_of"] == "2011-09-01T00:00:00Z"
    known, unknown = answer["predictions"]
    assert (known["status"], unknown["status"]) == ("ok", "unknown_entity")
    reasons = known["explanations"]["spend_90d"]["reasons"]
    inputs = {name: value for reason in reasons for name, value in reason["features"].items()}
    [(days,)] = duckdb.sql(
        f"""SELECT epoch(TIMESTAMP '2011-09-01') / 86400 - epoch(max(ts)) / 86400 FROM '{retail_file}'
            WHERE customer_id = {KNOWN} AND quantity > 0 AND price > 0 AND NOT starts_with(invoice, 'C')"""
    ).fetchall()
    assert inputs["days_since_purchase"] == pytest.approx(days, abs=1e-3)
    assert inputs["country"] == "United Kingdom"
    assert inputs["sessions_30d"] is None  # not recorded there: null, not zero
    assert known["explanations"]["spend_90d"]["unit"] == "GBP"


def test_the_model_card_holds_what_was_measured_on_later_months(visitor: Visitor) -> None:
    model = requests.get(f"{visitor.url}/v1/models/engagement", timeout=5).json()

    assert model["contract"]["training"]["test_cutoffs"].startswith("2011-05-19")
    assert 0.7 < model["contract"]["metrics"]["purchase_30d"]["auc"] < 0.85
    assert "purchase_30d" in model["card"]
