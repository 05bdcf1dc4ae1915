"""What a row costs on Triton by how many come together, against ONNX Runtime in the process itself."""

import json
import subprocess
import sys
from collections.abc import Iterator

from loadtests.bench.load import LoadError
from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.servers import pinned
from loadtests.bench.triton_server import running

PART = 8
"""One of its many measurements takes this part of a load's time."""
LANES = {"scores": "predict", "explanations": "explain"}


def triton_rows(plan: Plan) -> Iterator[Row]:
    """Time of one call, in-process and on Triton; service/backends/cost.py says how. It has one core; Triton both."""
    with running(plan.home) as server:
        command = [sys.executable, "-m", "service.backends.cost", "--models", str(plan.home.models)]
        command += ["--triton", server.address, "--seconds", str(plan.seconds / PART), "--rounds", str(plan.rounds)]
        run = subprocess.run(  # noqa: S603  (our own command)
            pinned(command, plan.cores.server), capture_output=True, text=True, check=False
        )
    if run.returncode != 0:
        raise LoadError(f"the cost of rows was not measured: {run.stderr.strip()[-500:]}")
    for lane, sizes in json.loads(run.stdout.splitlines()[-1]).items():
        for size, cost in sizes.items():
            a_row = {name: [us / int(size) for us in values] for name, values in cost.items()}
            yield Row(
                f"triton_rows_{LANES[lane]}_{size}",
                f"time of a row on Triton, {LANES[lane]} graph, {int(size):,} at once, against in-process",
                ratios(list(zip(cost["triton_us"], cost["embedded_us"], strict=True))),
                "times",
                details=cost,
                absolute=absolute(a_row["triton_us"], a_row["embedded_us"], "us a row")
                + f"; CPU here {absolute(a_row['triton_cpu_us'], a_row['embedded_cpu_us'], 'us')}",
            )
