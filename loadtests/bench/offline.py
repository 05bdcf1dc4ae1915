"""The offline half on one machine: how time and memory of its steps grow with the number of customers.

Each step is the command that people run, in a process of its own, one size after the other. Training takes a sample of
fixed size from either (feature_client/offline/learners.py); everything else is of every customer.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from loadtests.bench.home import RAPPORT, PreparationError, local_redis
from loadtests.bench.plan import Plan
from loadtests.bench.report import Row

SHARE = 10
"""The smaller size has a tenth of the customers."""

LINEAR = 1.2
FLAT = 1.2


@dataclass(frozen=True)
class Step:
    """command: what follows `rapport`. means: None for what is done on the way and is not a row. sampled: it takes a
    sample of fixed size, and so the same time of any number of customers."""

    name: str
    command: tuple[str, ...]
    means: str | None = None
    sampled: bool = False


STEPS = (
    Step("events", ("events", "generate", "--customers", "{customers}"), "making and checking events"),
    Step("apply", ("features", "apply")),
    Step("features", ("features", "build"), "building features"),
    Step("load", ("features", "load", "--redis", "{redis}"), "loading the online store"),
    Step("train", ("train",), "training, evaluation and explanations", sampled=True),
)


@dataclass(frozen=True)
class Cost:
    """mib: the most that was resident at once; of the command, not of Redis."""

    seconds: float
    mib: float


def offline(plan: Plan, steps: Sequence[Step] = STEPS) -> Iterator[Row]:
    """A row for the time and one for the peak of memory of every step, with `customers` against a tenth of them."""
    sizes = (plan.customers // SHARE, plan.customers)
    few, many = (_measured(plan.home.scratch / f"offline-{size}", size, steps) for size in sizes)
    compared = f"{sizes[1]:,} against {sizes[0]:,} customers"
    for step in steps:
        if step.means is None:
            continue
        small, large = few[step.name], many[step.name]
        growth = 1.0 if step.sampled else sizes[1] / sizes[0]
        details = {"customers": sizes, "costs": [asdict(small), asdict(large)]}
        yield Row(
            f"offline_{step.name}_time",
            f"time of {step.means}{'' if step.sampled else ', a customer'}, {compared}",
            (large.seconds / small.seconds / growth,),
            "times",
            mark=LINEAR,
            details=details,
            absolute=f"{large.seconds:,.0f} against {small.seconds:,.0f} s in all",
        )
        yield Row(
            f"offline_{step.name}_memory",
            f"peak memory of {step.means}, {compared}",
            (large.mib / small.mib,),
            "times",
            mark=FLAT,
            details=details,
            absolute=f"{large.mib:,.0f} against {small.mib:,.0f} MiB",
        )


def _measured(workspace: Path, customers: int, steps: Sequence[Step]) -> dict[str, Cost]:
    """Step -> its cost; the files are gone afterwards. Raises PreparationError."""
    costs = {}
    try:
        with local_redis(workspace / "redis") as redis, tqdm(steps, unit="step") as bar:
            for step in bar:
                bar.set_description(f"{customers:,} customers: {step.name}")
                words = [word.format(customers=customers, redis=redis) for word in step.command]
                costs[step.name] = _cost_of([*RAPPORT, *words, "--workspace", str(workspace)])
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return costs


def _cost_of(command: list[str]) -> Cost:
    """Raises PreparationError."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)  # noqa: S603  (our own command)
    # Not process.wait(): this one says what the process used.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise PreparationError(f"`{' '.join(command[2:5])}` ended with code {process.returncode}")
    return Cost(time.monotonic() - started, usage.ru_maxrss / 1024)
