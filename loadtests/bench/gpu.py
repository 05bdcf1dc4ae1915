"""What a GPU makes of a release: rows a second by batch size and precision, and explain against predict.

    python -m loadtests.bench.gpu --models .rapport/generated/models --docs docs

Needs a release, onnxruntime-gpu, onnx and torch with CUDA; no gateway and no store. The graphs are run by ONNX
Runtime's CUDA provider, as in Triton, and node by node on torch (onnx_torch.py). Every way has to give the answers of
ONNX Runtime on the CPU before it is timed. Without a GPU only the CPU is measured. The last line of stdout is one JSON
object with everything.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from loadtests.answers import WrongAnswer
from loadtests.bench.explainers import INPUTS, Explainer, Released, Tensors, champion, first, read_rows, session
from loadtests.bench.gpu_page import page
from loadtests.bench.gpu_ways import NoGpu, Outputs, Ready, Way, outputs_of, ways
from loadtests.bench.machine import commit, described
from loadtests.bench.plan import in_turn

SCORED = (1, 8, 64, 512, 4_096, 16_384, 65_536)
EXPLAINED = (1, 8, 32, 256, 1_024)
MOST_ROWS = {"cpu": 300_000, "cuda": 3_000_000}
"""Of the network in one run of an explanation graph: beyond, it takes seconds, or tens of gigabytes."""
LEAST_CALLS = 3
ALLOWED, ALLOWED_ROUNDED = 1e-4, 0.1
"""How far an output may be from the CPU's, relative to the largest of its task: in float32; and with fewer bits."""

REFUSALS = (ort.capi.onnxruntime_pybind11_state.Fail, torch.cuda.OutOfMemoryError)
"""Not a defect of ours: a graph that cannot be recorded, or that does not fit."""

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True, help="a model repository with one model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one measurement")
    parser.add_argument("--commit", default=commit(), help="where the sources are no checkout")
    parser.add_argument("--docs", type=Path, help="the folder of the page to (re)write")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    release = Released(champion(options.models))
    every = ways(cores, cuda=torch.cuda.is_available())
    rows = shuffled(read_rows(release.directory / "golden.npz"), max(SCORED))
    try:
        result = {
            **circumstances(),
            "commit": options.commit,
            "rounds": options.rounds,
            "release": release.directory.name,
            "scores": scores(release, every, rows, options.rounds, options.seconds),
            "explanations": explanations(release, every, rows, options.rounds, options.seconds),
        }
    except (WrongAnswer, NoGpu) as exc:
        sys.exit(f"gpu: {exc}")
    if options.docs is not None:
        (options.docs / "performance-gpu.md").write_text(page(result), encoding="utf-8")
    print(json.dumps(result))  # noqa: T201


def circumstances() -> Figures:
    return {
        "machine": described(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "CUDA": torch.version.cuda,
            "onnxruntime": ort.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "numpy": np.__version__,
        },
    }


def shuffled(rows: Tensors, count: int) -> Tensors:
    """As many rows as wanted, each column drawn from those of a few: no two alike, and none constant."""
    rng = np.random.default_rng(0)
    drawn = {}
    for name in INPUTS:
        values = rows[name]
        drawn[name] = values[rng.integers(0, len(values), (count, values.shape[1])), np.arange(values.shape[1])]
    return drawn


def scores(release: Released, every: Sequence[Way], rows: Tensors, rounds: int, seconds: float) -> Figures:
    """Way -> batch size -> ms of a run, one a round, and the worst error."""
    found: Figures = {way.name: {} for way in every}
    for size in SCORED:
        batch = first(rows, size)
        for name, figures in measured({"": release.score_file}, every, batch, rounds, seconds).items():
            found[name][size] = figures[""]
    return found


def explanations(release: Released, every: Sequence[Way], rows: Tensors, rounds: int, seconds: float) -> Figures:
    """Explainer -> way -> batch size -> `explain` and `score`, with the figures of each graph."""
    found: Figures = {}
    for explainer in release.explainers.values():
        by_way: Figures = {}
        files = {"explain": explainer.file, "score": release.score_file}
        for size in EXPLAINED:
            fitting = [way for way in every if way.explains and fits(way, explainer, size)]
            for name, figures in measured(files, fitting, first(rows, size), rounds, seconds).items():
                by_way.setdefault(name, {})[size] = figures
        found[explainer.name] = {"method": explainer.method, "rows": explainer.rows, "ways": by_way}
    return found


def fits(way: Way, explainer: Explainer, size: int) -> bool:
    return size * explainer.rows <= MOST_ROWS[way.device]


def measured(
    files: Mapping[str, Path], every: Sequence[Way], rows: Tensors, rounds: int, seconds: float
) -> dict[str, dict[str, Figures]]:
    """Way -> name of the file -> ms of a run, one a round, and how far its answers are from the CPU's.

    All of them take turns. What cannot be run in a way says why, in place of figures. Raises WrongAnswer.
    """
    right = {name: outputs_of(session(file), rows) for name, file in files.items()}
    found: dict[str, dict[str, Figures]] = {}
    with ExitStack() as stack:
        ready: list[tuple[Figures, Ready]] = []
        for way, (name, file) in itertools.product(every, files.items()):
            figures = found.setdefault(way.name, {}).setdefault(name, {"ms": []})
            try:
                one = stack.enter_context(way.prepare(file, rows))
                one.run()
            except REFUSALS as exc:
                figures["refused"] = str(exc)[:300]
                continue
            figures["error"] = worst_error(one.read(), right[name])
            if not figures["error"] <= (ALLOWED_ROUNDED if way.rounded else ALLOWED):  # never true of NaN
                raise WrongAnswer(f"{file.parent.parent.name}: {way.name} is {figures['error']:.2g} off")
            ready.append((figures, one))
        for results in in_turn(rounds, [partial(milliseconds, one.run, seconds) for _, one in ready]):
            for (figures, _), ms in zip(ready, results, strict=True):
                figures["ms"].append(ms)
    return found


def worst_error(outputs: Outputs, right: Outputs) -> float:
    """Largest |difference| of any output, relative to the largest of its task, of its kind."""
    errors = []
    for name, expected in right.items():
        given = outputs[name]
        if given.shape != expected.shape:
            raise WrongAnswer(f"{name} is {given.shape} in place of {expected.shape}")
        off = np.abs(given.astype(np.float64) - expected)
        over = tuple(axis for axis in range(expected.ndim) if axis != 1)
        errors.append(np.max(off.max(axis=over) / np.abs(expected).max(axis=over)))
    return float(np.max(errors))


def milliseconds(run: Callable[[], object], seconds: float) -> float:
    """Median of as many runs as fit, each until its results are there."""
    run()
    took: list[float] = []
    ends = time.perf_counter() + seconds
    while len(took) < LEAST_CALLS or time.perf_counter() < ends:
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
    return statistics.median(took) * 1e3


if __name__ == "__main__":
    main()
