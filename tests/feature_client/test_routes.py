"""Whom a route sends where, and how routes.toml is changed."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from feature_client import routes
from feature_client.routes import Accepted, Canary, Route, RoutesError, change_route, locked, read_routes, share

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


# Changing routes.toml.

WRITTEN = """\
# Who answers whom. Ask before you touch [engagement].
[engagement] # the main one
champion = 3  # since Tuesday
canary = { version = 4, percent = 10 } # careful
unknown = "score"
from_the_future = { a = [1, 2] }
# shadow = [9]

[second]
champion = 1 # not ours
new = true
"""


def test_a_change_leaves_comments_and_whatever_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "routes.toml").write_text(WRITTEN)

    before, after = change_route(tmp_path, "engagement", lambda route: route.promoted(5) if route else Route(1))

    assert before == Route(3, canary=Canary(4, 10))
    assert after == Route(5, previous=3, canary=Canary(4, 10))
    lines = (tmp_path / "routes.toml").read_text().splitlines()
    assert [line for line in lines if line not in WRITTEN.splitlines()] == [
        "champion = 5  # since Tuesday",
        "previous = 3",
    ]
    assert [line for line in WRITTEN.splitlines() if line not in lines] == ["champion = 3  # since Tuesday"]


def test_a_change_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "routes.toml").write_text(WRITTEN)
    before = (tmp_path / "routes.toml").stat()

    change_route(tmp_path, "engagement", lambda route: route or Route(1))

    assert (tmp_path / "routes.toml").stat() == before


LAYOUTS = (
    "",
    "[m]\nchampion = 3\nprevious = 2\ncanary = {version = 4, percent = 10}\nshadow = [5]\nsalt = 'x'\n",
    "m.champion = 3\nm.canary.version = 4\nm.canary.percent = 10\nother.champion = 1\n",
    "[m.canary]\nversion = 4\npercent = 10.0\n[other]\nchampion = 1\n[m]\nchampion = 3\n",
    "m = { champion = 3, shadow = [5, 6] }\n[other]\nchampion = 1\n",
    "[other]\nchampion = 1\n\n\n[m]\nchampion = 3\nshadow = [\n  5, # five\n  6,\n]",
    "[m]\nchampion = 3\n[[m.accepted]]\nversion = 2\nbecause = 'x'\nat = '2026-01-01'\n[other]\nchampion = 1\n",
    '["m"]\r\n"champion" = 0x3\r\nsalt = """\r\na\nb"""\r\n',
)
ROUTES = (
    Route(1),
    Route(3, previous=2, canary=Canary(4, 12.5)),
    Route(3, canary=Canary(7, 100), shadow=(5, 6), standby=(1,), unknown="reject", salt='"""\\\n\u2028'),
    Route(9, shadow=(5,), salt="x"),
    Route(
        4, accepted=(Accepted(2, "a 'b' \"c\" \\ ]}", "2026-01-01T00:00:00Z"), Accepted(4, "x", "2026-02-01T00:00:00Z"))
    ),
)


@pytest.mark.parametrize("route", ROUTES, ids=range(len(ROUTES)))
@pytest.mark.parametrize("layout", LAYOUTS, ids=range(len(LAYOUTS)))
def test_whatever_the_layout_readers_get_the_route_that_was_meant(tmp_path: Path, layout: str, route: Route) -> None:
    path = tmp_path / "routes.toml"
    path.write_bytes(layout.encode())
    others = {name: other for name, other in read_routes(tmp_path).items() if name != "m"}

    change_route(tmp_path, "m", lambda _: route)

    assert read_routes(tmp_path) == {**others, "m": route}
    change_route(tmp_path, "m", lambda _: Route(1))
    assert read_routes(tmp_path) == {**others, "m": Route(1)}


def pipe(path: Path) -> None:
    """Whoever opens one waits for its other end."""
    os.mkfifo(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 + 2**20)


@pytest.mark.parametrize(("make", "reason"), [(pipe, "not a file"), (Path.mkdir, "directory"), (huge, "larger than")])
def test_routes_that_are_no_file_of_routes_keep_nobody_waiting(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "routes.toml")

    with pytest.raises(RoutesError, match=f"cannot be read: .*{reason}"):
        read_routes(tmp_path)
    with pytest.raises(RoutesError, match=f"left alone: .*{reason}"):
        change_route(tmp_path, "engagement", lambda _: Route(1))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[engagement", "cannot be read"),
        (b"champion = 3", "outside of any model's table"),
        (b"[engagement]\nchampion = 'x'", "champion"),
        (b"[engagement]\nprevious = 2", "champion"),
        (b"[engagement]\nchampion = 3\nshadow = [3]", "a version that answers cannot be a shadow"),
        (b"\xff", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_left_alone(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "routes.toml").write_bytes(content)

    with pytest.raises(RoutesError, match=reason):
        change_route(tmp_path, "engagement", lambda _: Route(1))

    assert (tmp_path / "routes.toml").read_bytes() == content


@pytest.mark.parametrize("route", [Route(0), Route(1, canary=Canary(2, 101)), Route(1, canary=Canary(2, float("nan")))])
def test_a_route_that_no_reader_takes_is_not_written(tmp_path: Path, route: Route) -> None:
    with pytest.raises(RoutesError):
        change_route(tmp_path, "m", lambda _: route)

    assert not (tmp_path / "routes.toml").exists()


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "routes.toml").write_text(WRITTEN)

    with pytest.raises(RoutesError, match="engagement: the canary is the champion"):
        change_route(tmp_path, "engagement", lambda _: Route(4, canary=Canary(4, 1)))
    with pytest.raises(RoutesError, match="a model is named by"):
        change_route(tmp_path, "Engagement!", lambda _: Route(4))

    assert (tmp_path / "routes.toml").read_text() == WRITTEN
    with pytest.raises(RoutesError, match=r"cannot write to the model repository .*routes\.toml"):
        change_route(tmp_path / "routes.toml", "engagement", lambda _: Route(4))


def test_of_many_writers_none_is_lost(tmp_path: Path) -> None:
    (tmp_path / "routes.toml").write_text("[m]\nchampion = 1\n")

    def add(version: int) -> None:
        change_route(
            tmp_path,
            "m",
            lambda route: msgspec.structs.replace(route or Route(1), standby=(*(route or Route(1)).standby, version)),
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(2, 50)))

    assert sorted(read_routes(tmp_path)["m"].standby) == list(range(2, 50))


def test_a_writer_that_does_not_finish_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "LOCK_WAIT_S", 0.1)
    holds, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path):
            holds.set()
            may_go.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert holds.wait(10)
        with pytest.raises(RoutesError, match="another command is changing"):
            change_route(tmp_path, "m", lambda _: Route(1))
    finally:
        may_go.set()
        holder.join()
    change_route(tmp_path, "m", lambda _: Route(1))


def test_a_killed_writer_locks_nobody_out(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from feature_client.routes import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode < 0

    change_route(tmp_path, "m", lambda _: Route(1))
