"""What releases cost where they run: CPU time of each of their graphs, side by side, as a table."""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_client.release import RELEASE_NAME, Release, read_release
from model_export.verify import Session

ROWS = (1, 64)
EXPLAINED = (1, 8)
ROUNDS = 9
"""Each graph's turn comes so often; what is told is the median. Other work on the machine then meets them all."""

SECONDS = 0.2
"""Of one turn, at least; and at least one run."""


def table(releases: Sequence[Release]) -> Iterator[str]:
    """Lines of Markdown: a row a graph and batch, a column a release; milliseconds on one thread."""
    yield "| graph | customers | " + " | ".join(release.name for release in releases) + " |"
    yield "| --- " * (2 + len(releases)) + "|"
    explainers = dict.fromkeys(name for release in releases for name in release.manifest.explainers)
    for explainer in (None, *explainers):
        graphs = [_session(release, explainer) for release in releases]
        for rows in ROWS if explainer is None else EXPLAINED:
            found = costs([(graph, _inputs(release, rows)) for graph, release in zip(graphs, releases, strict=True)])
            shown = " | ".join("-" if cost is None else f"{cost * 1e3:.3g} ms" for cost in found)
            yield f"| {explainer or 'scores'} | {rows} | {shown} |"


def costs(runs: Sequence[tuple[Session | None, Mapping[str, npt.NDArray[Any]]]]) -> list[float | None]:
    """CPU seconds of one run of each, the median of interleaved turns; None where there is no graph."""
    turns = [[_turn(graph, inputs) for graph, inputs in runs if graph is not None] for _ in range(ROUNDS)]
    medians = iter([median(turn) for turn in zip(*turns, strict=True)])
    return [None if graph is None else next(medians) for graph, _ in runs]


def _turn(graph: Session, inputs: Mapping[str, npt.NDArray[Any]]) -> float:
    start, ended, times = time.process_time(), time.monotonic() + SECONDS, 0
    while not times or time.monotonic() < ended:
        graph.run(**inputs)
        times += 1
    return (time.process_time() - start) / times


def _session(release: Release, explainer: str | None) -> Session | None:
    if explainer is not None and explainer not in release.manifest.explainers:
        return None
    [graph] = [graph for graph in release.graphs() if graph.explainer == explainer]
    return Session(graph.file, tuple(graph.outputs(1)))


def _inputs(release: Release, rows: int) -> Mapping[str, npt.NDArray[Any]]:
    """The release's golden rows, again and again: real customers, and one of whom nothing is known."""
    tensors = release.graphs()[0].golden.tensors
    return {name: np.resize(tensor, (rows, *tensor.shape[1:])) for name, tensor in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model_export.graph_costs", description=__doc__)
    parser.add_argument("models", type=Path, help="a model repository")
    parser.add_argument("releases", nargs="+", type=RELEASE_NAME.fullmatch, help="such as engagement.1")
    asked = parser.parse_args()
    for line in table([read_release(asked.models, match[1], int(match[2])) for match in asked.releases]):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
