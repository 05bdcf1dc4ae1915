"""The offline half on one machine: how time and memory of its steps grow with the number of customers.

Each step is the command that people run, in a process of its own, one data set after the other. Training takes a
sample of fixed size from each (feature_client/offline/learners.py); everything else is of every customer.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from loadtests.bench.home import RAPPORT, PreparationError, local_redis
from loadtests.bench.plan import Plan
from loadtests.bench.report import Row

LINEAR = 1.2
FLAT = 1.2


@dataclass(frozen=True)
class Step:
    """command: what follows `rapport`. means: None for what is done on the way and is not a row. sampled: it takes a
    sample of fixed size, so its time is compared as it is, not by customer."""

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
    """seconds: on the clock. processor_s: of all cores together, which does not count what else ran on the machine.
    mib: the most that was resident at once; of the command, not of Redis."""

    seconds: float
    processor_s: float
    mib: float


def offline(plan: Plan, steps: Sequence[Step] = STEPS) -> Iterator[Row]:
    """A row for the time and one for the peak of memory of every step, with the most customers against the fewest."""
    sizes = sorted(plan.sizes)
    yield from compared_rows(
        sizes, [_measured(plan.home.scratch / f"offline-{size}", size, steps) for size in sizes], steps
    )


def compared_rows(sizes: Sequence[int], costs: Sequence[Mapping[str, Cost]], steps: Sequence[Step]) -> Iterator[Row]:
    """sizes: ascending. costs: step -> its cost, for each of them."""
    compared = f"{sizes[-1]:,} against {sizes[0]:,} customers"
    for step in steps:
        if step.means is None:
            continue
        few, many = costs[0][step.name], costs[-1][step.name]
        growth = 1.0 if step.sampled else sizes[-1] / sizes[0]
        details = {"step": step.means, "customers": sizes, "costs": [asdict(cost[step.name]) for cost in costs]}
        yield Row(
            f"offline_{step.name}_time",
            f"time of {step.means}{'' if step.sampled else ', a customer'}, {compared}",
            (many.seconds / few.seconds / growth,),
            "times",
            mark=LINEAR,
            details=details,
            absolute=f"{many.seconds:,.0f} against {few.seconds:,.0f} s in all",
        )
        yield Row(
            f"offline_{step.name}_memory",
            f"peak memory of {step.means}, {compared}",
            (many.mib / few.mib,),
            "times",
            mark=FLAT,
            details=details,
            absolute=f"{many.mib:,.0f} against {few.mib:,.0f} MiB",
        )


def _measured(workspace: Path, customers: int, steps: Sequence[Step]) -> dict[str, Cost]:
    """Step -> its cost; the files are gone afterwards. Raises PreparationError."""
    costs = {}
    try:
        with local_redis(workspace / "redis") as redis, tqdm(steps, unit="step") as bar:
            for step in bar:
                bar.set_description(f"{customers:,} customers: {step.name}")
                words = [word.format(customers=customers, redis=redis) for word in step.command]
                cost = costs[step.name] = _cost_of([*RAPPORT, *words, "--workspace", str(workspace)])
                # Millions of customers take an hour: what was measured is said at once, whatever the next step does.
                bar.write(
                    f"{customers:,} customers, {step.name}: {cost.seconds:,.0f} s, {cost.processor_s:,.0f} s of the "
                    f"processor, {cost.mib:,.0f} MiB",
                    file=sys.stderr,
                )
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
    return Cost(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
