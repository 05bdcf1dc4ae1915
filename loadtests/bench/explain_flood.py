"""What those who ask for scores feel of a flood of those who ask for reasons."""

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loadtests.answers import WrongAnswer
from loadtests.bench.explanations import check, released
from loadtests.bench.lanes import LONGER, RATE
from loadtests.bench.load import Load, closed_loop
from loadtests.bench.open_loop import OpenLoad
from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.tail import CLIENTS, SHARE
from loadtests.bench.targets import EXPLAIN, Target, bodies_of, gateway, get
from loadtests.bench.triton_server import on, running

FLOODING = 16
"""Clients that ask again once they are answered, or refused."""
ENTITIES = 32
"""As many as a request may ask to be explained."""
FLOOD_NICENESS = 19
"""Of the clients that flood: they share a core with the one whose waiting is measured, and reading their answers must
not be what it waits for."""
MARK = 1.5
EXPLAINED, REFUSED, LATE, GONE = "200", "503", "504", "499"
"""Statuses that the flood may get. The last: whoever still waits when it ends is gone before the answer."""
ANSWERED = re.compile(r"^rapport_requests_total\{(?P<labels>[^}]*)\} (?P<count>[0-9.e+]+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Flooded:
    """What predict got beside a flood, and what the flood got.

    refused, late: shares of its requests that were answered with 503, and with 504.
    """

    predict: OpenLoad
    explained_per_s: float
    refused: float
    late: float
    p50_ms: float


def explain_flood(plan: Plan) -> Iterator[Row]:
    """p99 of requests for scores at a fixed rate beside a flood of requests for reasons, over p99 without; open loop.

    At half of what one worker reaches, and at a rate so low that whoever waits does so for the flood alone.
    """
    with gateway(plan.home, plan.cores) as ours:
        yield from flooded(plan, ours, "explain_flood", "")


def triton_explain_flood(plan: Plan) -> Iterator[Row]:
    """The same on Triton, which has both cores."""
    with running(plan.home) as server, gateway(on(server, plan.home), plan.cores, name="rapport on Triton") as ours:
        yield from flooded(plan, ours, "triton_explain_flood", " on Triton")


def flooded(plan: Plan, target: Target, name: str, where: str) -> Iterator[Row]:
    single = bodies_of(plan.home, plan.home.customers)
    flood = bodies_of(plan.home, plan.home.customers, ENTITIES)
    check(target, plan.home.customers, next(iter(released(plan.home).explainers.values())))
    capacity = target.drive(single, CLIENTS, plan.seconds).load.requests_per_s
    seconds = LONGER * plan.seconds
    for suffix, rate, what in (("", SHARE * capacity, "half of capacity"), ("_light", RATE, f"{RATE:g}/s")):
        pairs = list(
            plan.interleaved(
                partial(beside, target, single, flood, rate, seconds), partial(target.drive_open, single, rate, seconds)
            )
        )
        yield row(
            f"{name}{suffix}", f"p99 of predict{where} at {what}, beside an explain flood, against without", pairs
        )


def row(name: str, what: str, pairs: Sequence[tuple[Flooded, OpenLoad]]) -> Row:
    floods = [flood for flood, _ in pairs]
    with_ms, without_ms = [flood.predict.p99_ms for flood in floods], [alone.p99_ms for _, alone in pairs]
    explained = statistics.median(flood.explained_per_s for flood in floods)
    predicted = statistics.median(flood.predict.achieved for flood in floods)
    sent_late = statistics.median(flood.predict.late_p99_ms for flood in floods)
    refused, late = (100 * max(shares) for shares in zip(*((one.refused, one.late) for one in floods), strict=True))
    return Row(
        name,
        what,
        ratios(list(zip(with_ms, without_ms, strict=True))),
        "times",
        mark=MARK,
        details={"rounds": [[asdict(flood), asdict(alone)] for flood, alone in pairs]},
        absolute=f"{absolute(with_ms, without_ms, 'ms')}; {explained:,.0f} explained beside {predicted:,.0f} scored/s, "
        f"{refused:.0f} % of the flood refused, {late:.0f} % late; "
        f"of the first, up to {sent_late:.3g} ms (p99) because the client was late",
    )


def beside(target: Target, single: Path, flood: Path, rate: float, seconds: float) -> Flooded:
    """Raises WrongAnswer for a request for scores that is refused, and for what the flood may not get."""
    before = answered(target)
    with ThreadPoolExecutor(1) as pool:
        # Ends after the others do, so that all of them are beside it.
        flooding = pool.submit(flood_with, target, flood, seconds + 1)
        load = target.drive_open(single, rate, seconds)
        got = flooding.result()
    codes = answered(target)
    codes.subtract(before)
    asked = codes.total()
    explained, refused, late, _ = (codes.pop(code, 0) for code in (EXPLAINED, REFUSED, LATE, GONE))
    if (others := +codes) or not asked:
        raise WrongAnswer(f"{target.name}: the flood was answered with {dict(others) or 'nothing'}")
    return Flooded(load, ENTITIES * explained / got.seconds, refused / asked, late / asked, got.p50_ms)


def flood_with(target: Target, flood: Path, seconds: float) -> Load:
    return closed_loop(
        target.url,
        flood,
        FLOODING,
        seconds,
        path=EXPLAIN,
        key=target.key,
        core=target.core,
        niceness=FLOOD_NICENESS,
    )


def answered(target: Target) -> "Counter[str]":
    """Status -> requests for reasons so far, by the gateway's own count. Raises WrongAnswer."""
    said = get(target, "/metrics").decode()
    found: Counter[str] = Counter()
    for match in ANSWERED.finditer(said):
        labels: dict[str, Any] = dict(LABEL.findall(match["labels"]))
        if labels["route"] == EXPLAIN:
            found[labels["code"]] += round(float(match["count"]))
    return found
