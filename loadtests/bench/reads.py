"""The CPU that reading features takes, against Feast's SDK in the same process, and by the number of features."""

import json
import subprocess
import sys
from collections.abc import Iterator

from loadtests.answers import WrongAnswer
from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.servers import pinned


def reads(plan: Plan) -> Iterator[Row]:
    """Both clients on the server's core; feature_client/offline/read_cost.py says what is read."""
    command = [sys.executable, "-m", "feature_client.offline.read_cost"]
    command += ["--workspace", str(plan.home.workspace), "--redis", plan.home.redis]
    command += ["--seconds", str(plan.seconds), "--rounds", str(plan.rounds)]
    run = subprocess.run(  # noqa: S603  (our own command)
        pinned(command, plan.cores.server), capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise WrongAnswer(run.stderr.strip().rpartition("\n")[2])
    costs = json.loads(run.stdout.splitlines()[-1])
    cases = (
        ("single", "one entity at 64 concurrent, each a read of its own", 25.0),
        ("coalesced", "one entity at 64 concurrent, in one read as the gateway does it", 25.0),
        ("batch", "a batch of 100", 18.0),
    )
    for case, what, mark in cases:
        cost = costs[case]
        yield Row(
            f"read_{case}",
            f"CPU of a feature read, Feast's SDK over ours, {what}",
            ratios(list(zip(cost["feast_us"], cost["ours_us"], strict=True))),
            "times",
            mark=mark,
            at_least=True,
            details={"features": costs["features"], "compared": costs["compared"], **cost},
            absolute=absolute(cost["feast_us"], cost["ours_us"], f"us, {costs['features']} values an entity"),
        )
    for size, values in costs["encode"].items():
        yield Row(f"encode_{size}", f"CPU of turning what was read into tensors, {size} at once", values, "us")
    for width, cost in costs["by_features"].items():
        yield Row(
            f"read_{width}_features",
            f"CPU of our read of {width} numbers of one entity at 64 concurrent",
            (cost["single_us"],),
            "us",
            details={"batch_of_100_us": cost["batch_us"]},
            absolute=f"a batch of 100: {cost['batch_us']:,.0f} us",
        )
