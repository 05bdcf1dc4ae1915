"""Whom a route sends where."""

import json
import os
import subprocess
import sys

import pytest

from feature_client.routes import Canary, Route, share

IDS = [str(10_000 + number) for number in range(100_000)]

GOLDEN = {
    "17850": 67.81957494094968,
    "salted": 29.642708925530314,
    "two keys": 81.44301706925035,
    "no id": 15.652931155636907,
}


def taken(percent: float, salt: str = "") -> set[str]:
    """Customers whom a canary of so many percent answers."""
    route = Route(champion=1, canary=Canary(2, percent), salt=salt)
    return {customer for customer in IDS if route.arm({"customer_id": customer}) == 2}


@pytest.mark.parametrize("percent", [1, 10, 50])
def test_a_canary_answers_its_percentage_of_the_customers(percent: float) -> None:
    # Four standard deviations of a fair draw; at most 0.63 points.
    allowed = 4 * (percent * (100 - percent) / len(IDS)) ** 0.5

    assert abs(100 * len(taken(percent)) / len(IDS) - percent) < allowed < 1


def test_a_growing_canary_keeps_its_customers() -> None:
    answered: set[str] = set()
    for percent in (0, 0.1, 1, 10, 50, 99.9, 100):
        grown = taken(percent)
        assert answered <= grown
        answered = grown
    assert taken(0) == set()
    assert taken(100) == set(IDS)


def test_another_salt_deals_the_customers_anew() -> None:
    before, after = taken(10), taken(10, salt="2026-12")

    # A tenth of a tenth are in both by chance.
    assert 800 < len(before & after) < 1_200


def test_without_a_canary_the_champion_answers_everyone() -> None:
    assert {Route(champion=3).arm({"customer_id": customer}) for customer in IDS[:1_000]} == {3}


def test_entities_that_differ_do_not_read_the_same() -> None:
    entities = [
        {"a": "1", "b": "2"},
        {"a": "12", "b": ""},
        {"a": "1", "b2": ""},
        {"a": "2", "b": "1"},
        {"a": "1:1b1:2"},
        {"a": "1"},
        {"a": "\ud800"},
        {},
    ]

    assert len({share(entity, salt) for entity in entities for salt in ("", "a", "1:a")}) == 3 * len(entities)
    assert share({"a": "1", "b": "2"}, "") == share({"b": "2", "a": "1"}, "")


def test_a_customer_stays_in_one_arm_for_good() -> None:
    """These very numbers: a change of the hash would move customers between versions in the middle of a canary."""
    assert {
        "17850": share({"customer_id": "17850"}, ""),
        "salted": share({"customer_id": "17850"}, "2026-12"),
        "two keys": share({"customer_id": "17850", "country": "Österreich"}, ""),
        "no id": share({"customer_id": ""}, ""),
    } == GOLDEN


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_every_process_agrees(seed: str) -> None:
    program = (
        "import json, sys; from feature_client.routes import share; "
        "print(json.dumps([share({'customer_id': c, 'shop': 'x'}, 's') for c in json.load(sys.stdin)]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(IDS[:1_000]),
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(run.stdout) == [share({"customer_id": c, "shop": "x"}, "s") for c in IDS[:1_000]]
