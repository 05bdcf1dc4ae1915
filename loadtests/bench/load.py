"""Closed-loop load by wrk: every client asks again once it is answered, each time for a random body of a file."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.servers import pinned

SCRIPT = Path(__file__).with_name("wrk.lua")
GRACE_S = 30.0
"""wrk reads its bodies before it starts, and waits for the last answers."""


class LoadError(Exception):
    """Load that could not be made at all."""


@dataclass(frozen=True)
class Load:
    """errors: answers that were not 2xx or 3xx, and connections that failed or had no answer within 10 s.

    slow: share of the answers that took over 400 ms, where it is counted.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    slow: float = math.nan

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


def closed_loop(
    url: str,
    bodies: Path,
    clients: int,
    seconds: float,
    *,
    path: str,
    key: str | None,
    core: int | None,
    niceness: int = 0,
) -> Load:
    """POSTs to `url` + `path` with `clients` keep-alive connections; one JSON body a line in `bodies`.

    seconds: rounded up, because wrk knows whole ones only. key: sent as a bearer token. core: what wrk is pinned to.
    niceness: of wrk, where it shares its core with what measures. Raises LoadError.
    """
    command = [
        *pinned(["nice", "-n", str(niceness), find_wrk()], core),
        *("--threads", "1", "--connections", str(clients), "--duration", f"{math.ceil(seconds)}s", "--timeout", "10s"),
        *("--script", str(SCRIPT), url),
    ]
    # Not on the command line, which everyone on the machine may read.
    environment = os.environ | {"BENCH_BODIES": str(bodies), "BENCH_PATH": path, "BENCH_KEY": key or ""}
    try:
        wrk = subprocess.run(  # noqa: S603  (our own command)
            command, env=environment, capture_output=True, text=True, timeout=seconds + GRACE_S, check=True
        )
        return Load(**json.loads(wrk.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, ValueError, IndexError, TypeError) as exc:
        said = getattr(exc, "stderr", None) or getattr(exc, "stdout", None) or exc
        raise LoadError(f"wrk measured nothing: {said}") from exc


def find_wrk() -> str:
    """wrk on PATH, else beside this Python. Raises LoadError."""
    beside = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    if (found := shutil.which("wrk", path=beside)) is None:
        raise LoadError("wrk is missing: `make bench` unpacks Debian's; elsewhere install it, so that it is on PATH")
    return found
