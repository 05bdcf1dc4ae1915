"""Where the time of one request goes, by the gateway's own account: the stages of its Server-Timing header."""

import http.client
import random
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from loadtests.bench.plan import Plan
from loadtests.bench.report import Row
from loadtests.bench.targets import PREDICT, TIMEOUT_S, Target, bodies_of, body, gateway

ASKED = 500
"""Requests of one customer each, one after the other."""

STAGE = re.compile(r"(\w+);dur=([0-9.]+)")


def stages(plan: Plan) -> Iterator[Row]:
    """Medians in microseconds: alone, and beside 64 other clients."""
    with gateway(plan.home, plan.cores) as ours:
        bodies = bodies_of(plan.home, plan.home.customers)
        alone = [medians(ours, plan.home.customers) for _ in range(plan.rounds)]
        beside = []
        for _ in range(plan.rounds):
            with ThreadPoolExecutor(1) as pool:
                load = pool.submit(ours.drive, bodies, 64, plan.seconds)
                beside.append(medians(ours, plan.home.customers))
                load.result()
    for name, rounds in (("one client", alone), ("beside 64 clients", beside)):
        for stage in rounds[0]:
            yield Row(
                f"stage_{stage}_{'alone' if rounds is alone else 'beside'}",
                f"stage {stage} of a request, {name}",
                tuple(one[stage] for one in rounds),
                "us",
            )


def medians(target: Target, customers: Sequence[str]) -> Mapping[str, float]:
    """Stage -> microseconds."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    connection = http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=TIMEOUT_S)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {target.key}"}
    for customer in random.Random(2).choices(customers, k=ASKED):
        connection.request("POST", PREDICT, body([customer], {}), headers)
        response = connection.getresponse()
        response.read()
        for stage, milliseconds in STAGE.findall(response.headers["Server-Timing"]):
            found[stage].append(float(milliseconds) * 1_000)
    connection.close()
    return {stage: statistics.median(values) for stage, values in found.items()}
