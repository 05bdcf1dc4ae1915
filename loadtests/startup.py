"""How long a gateway takes from its start to its first answer, and what memory it holds then.

    python -m loadtests.startup --models .rapport/generated/models

Starts `rapport serve` --repeat times on a free port, with an empty model repository (before_models) and with this one;
prints a table and, as the last line of stdout, one JSON object of medians. It needs no Redis: what is waited for is an
answer, and a release that is loaded. Resident memory is read from /proc, so this runs on Linux.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMEOUT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="a model repository")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as nothing:
        for name, models, field in (
            ("before_models", Path(nothing), None),
            ("with_models", options.models, "loaded"),
        ):
            runs = [measure(models, field) for _ in range(options.repeat)]
            results[f"{name}_s"] = round(statistics.median(seconds for seconds, _ in runs), 2)
            results[f"{name}_mib"] = round(statistics.median(mebibytes for _, mebibytes in runs), 1)
            print(f"{name:>14}  {results[f'{name}_s']:6.2f} s  {results[f'{name}_mib']:6.1f} MiB")  # noqa: T201
    print(json.dumps(results))  # noqa: T201


def measure(models: Path, release: str | None) -> tuple[float, float]:
    """Seconds from start until it answers (and says `release` of its release), and resident MiB then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = os.environ | {
        "RAPPORT_PORT": str(port),
        "RAPPORT_MODELS": str(models),
        "RAPPORT_LOG_LEVEL": "error",
        "RAPPORT_RELEASE_POLL_S": "3600",
    }
    started = time.monotonic()
    process = subprocess.Popen(  # noqa: S603  (our own command)
        [Path(sys.executable).parent / "rapport", "serve"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        while (said := ask(port)) is None or (release is not None and said.get("release") != release):
            if process.poll() is not None or time.monotonic() - started > TIMEOUT_S:
                raise SystemExit("the gateway did not come up")
            time.sleep(0.01)
        return time.monotonic() - started, resident_mebibytes(process.pid)
    finally:
        process.terminate()
        process.wait()


def ask(port: int) -> dict[str, object] | None:
    """What /readyz says, 200 or 503; None while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/readyz")
            answer: dict[str, object] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException):
            return None
        return answer


def resident_mebibytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


if __name__ == "__main__":
    main()
