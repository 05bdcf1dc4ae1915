"""How soon a gateway answers, and what it holds before it has a model."""

from collections.abc import Iterator

from loadtests.bench.plan import Plan
from loadtests.bench.report import Row
from loadtests.startup import measure


def startup(plan: Plan) -> Iterator[Row]:
    """With an empty model repository, and with the release of this run."""
    nothing = plan.home.scratch / "no-models"
    nothing.mkdir()
    before = [measure(nothing, None) for _ in range(plan.rounds)]
    ready = [measure(plan.home.models, "loaded") for _ in range(plan.rounds)]
    yield Row("startup_s", "start to first answer, no models", [seconds for seconds, _ in before], "s", mark=2.0)
    yield Row("resident_mib", "resident memory, no models", [mib for _, mib in before], "MiB", mark=150.0)
    yield Row("loaded_s", "start to a loaded release", [seconds for seconds, _ in ready], "s")
    yield Row("loaded_mib", "resident memory with that release", [mib for _, mib in ready], "MiB")
