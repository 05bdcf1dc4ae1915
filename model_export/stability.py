"""How much explanations move where nothing about a customer has changed: another background, another training.

    python -m model_export.stability WORKSPACE

prints two Markdown tables; those of the built-in data sets are in docs/explanations-method.md.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from feature_client.offline.workspace import Workspace
from model_export.background import choose_background, draw_probes
from model_export.explanation import FULL, Settings
from model_export.game import Background, Doubles, Floats, Game, coalitions_for, group_owners, lift
from model_export.network import Network
from model_export.pipeline import code_digest, one_thread
from model_export.rows import Dataset
from model_export.train import EPOCHS, train

SIZES = (8, 16, 32, 64)
"""Rows of a background."""

DRAWS = 3
"""Pairs of random backgrounds, for each size."""

CUSTOMERS = 64
"""Test rows whose explanations are compared."""


@dataclass(frozen=True)
class Moved:
    """Between explanations of the same customers, per task.

    difference: mean |a - b| over the mean of |a| and |b|. same_first: share of customers whose largest contribution is
    of the same group in both. ranks: Spearman's correlation of the groups' mean |contribution|.
    """

    difference: Doubles
    same_first: Doubles
    ranks: Doubles

    @classmethod
    def between(cls, a: Doubles, b: Doubles) -> "Moved":
        """a, b [rows, T, G]."""
        sizes = (np.abs(a) + np.abs(b)).mean(axis=(0, 2)) / 2
        same = np.abs(a).argmax(axis=2) == np.abs(b).argmax(axis=2)
        ranks_a, ranks_b = (np.abs(values).mean(axis=0).argsort(axis=1).argsort(axis=1) for values in (a, b))
        alike = [np.corrcoef(one, other)[0, 1] for one, other in zip(ranks_a, ranks_b, strict=True)]
        return cls(np.abs(a - b).mean(axis=(0, 2)) / sizes, same.mean(axis=0), np.array(alike))

    @classmethod
    def mean(cls, several: Sequence["Moved"]) -> "Moved":
        parts = zip(*((one.difference, one.same_first, one.ranks) for one in several), strict=True)
        return cls(*(np.mean(part, axis=0) for part in parts))


def between_backgrounds(
    network: Network, dataset: Dataset, settings: Settings, sizes: Sequence[int], seed: int
) -> Iterator[tuple[str, Moved]]:
    """Explanations against backgrounds from two disjoint halves of a population: random rows, and chosen ones."""
    rng = np.random.default_rng(seed)
    owners = group_owners(network, dataset.schema)
    coalitions = coalitions_for(len(dataset.schema.groups), settings.coalitions, rng)
    population = min(settings.population, len(dataset.train) // 3)
    drawn = rng.permutation(len(dataset.train))
    half, other_half, others = (
        lift(network, dataset.train.numeric[rows], dataset.train.categorical[rows])
        for rows in (drawn[:population], drawn[population : 2 * population], drawn[2 * population :][: settings.rows])
    )
    customers = _customers(network, dataset)
    probes = draw_probes(others, coalitions.members, owners, settings.probes, rng)

    def against(background: Background) -> Doubles:
        game = Game(network, owners, background, coalitions)
        return game.attributions(customers, f"{len(background.rows)} rows")[:, : len(dataset.tasks)]

    for size in sizes:
        pairs = [[against(_random(rows, size, rng)) for rows in (half, other_half)] for _ in range(DRAWS)]
        yield f"{size}, random", Moved.mean([Moved.between(*pair) for pair in pairs])
        chosen = [against(choose_background(network, rows, probes, size)) for rows in (half, other_half)]
        yield f"{size}, chosen", Moved.between(*chosen)


def between_trainings(
    dataset: Dataset, settings: Settings, *, seeds: Sequence[int], epochs: int = EPOCHS
) -> tuple[Moved, Doubles]:
    """Explanations of networks trained with each two of the seeds; and [T], how far apart what they split up is, the
    scores less their base: mean |difference| over mean size."""
    found = [_explained(train(dataset, seed=seed, epochs=epochs), dataset, settings) for seed in seeds]
    pairs = [(found[a], found[b]) for a, b in combinations(range(len(seeds)), 2)]
    wholes = [(a.sum(axis=2, keepdims=True), b.sum(axis=2, keepdims=True)) for a, b in pairs]
    apart = [np.abs(a - b).mean(axis=(0, 2)) / ((np.abs(a) + np.abs(b)).mean(axis=(0, 2)) / 2) for a, b in wholes]
    return Moved.mean([Moved.between(*pair) for pair in pairs]), np.mean(apart, axis=0)


def _explained(network: Network, dataset: Dataset, settings: Settings) -> Doubles:
    """[rows, T, G], of scores, against a background that is chosen for this network from the same rows for all."""
    rng = np.random.default_rng(0)
    owners = group_owners(network, dataset.schema)
    coalitions = coalitions_for(len(dataset.schema.groups), settings.coalitions, rng)
    rows = rng.permutation(len(dataset.train))
    population, others = (
        lift(network, dataset.train.numeric[part], dataset.train.categorical[part])
        for part in (rows[: settings.population], rows[settings.population :][: settings.rows])
    )
    probes = draw_probes(others, coalitions.members, owners, settings.probes, rng)
    game = Game(network, owners, choose_background(network, population, probes, settings.background_rows), coalitions)
    return game.attributions(_customers(network, dataset), "exact values")[:, : len(dataset.tasks)]


def _customers(network: Network, dataset: Dataset) -> Floats:
    """[CUSTOMERS, L], the same for every network."""
    chosen = np.random.default_rng(1).permutation(len(dataset.test))[:CUSTOMERS]
    return lift(network, dataset.test.numeric[chosen], dataset.test.categorical[chosen])


def _random(rows: Floats, count: int, rng: np.random.Generator) -> Background:
    count = min(count, len(rows))
    return Background(rows[rng.permutation(len(rows))[:count]], np.full(count, 1.0 / count))


def tables(dataset: Dataset, settings: Settings, *, seeds: Sequence[int], epochs: int = EPOCHS) -> Iterator[str]:
    """Lines of Markdown, as they become known."""
    tasks = [task.name for task in dataset.tasks]
    network = train(dataset, seed=seeds[0], epochs=epochs)
    yield from _head("background", tasks)
    for what, moved in between_backgrounds(network, dataset, settings, SIZES, seeds[0]):
        yield _line(what, moved)
    yield ""
    yield from _head("training", tasks)
    moved, apart = between_trainings(dataset, settings, seeds=seeds, epochs=epochs)
    yield _line("contributions", moved)
    yield f"| scores less base | {_percent(apart)} | | |"


def _head(what: str, tasks: Sequence[str]) -> Iterator[str]:
    yield f"| {what} | difference: {', '.join(tasks)} | same largest reason | rank correlation |"
    yield "| --- | --- | --- | --- |"


def _line(what: str, moved: Moved) -> str:
    ranks = ", ".join(f"{value:.2f}" for value in moved.ranks)
    return f"| {what} | {_percent(moved.difference)} | {_percent(moved.same_first)} | {ranks} |"


def _percent(values: Doubles) -> str:
    return ", ".join(f"{value:.1%}" if value < 0.1 else f"{value:.0%}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model_export.stability", description=__doc__)
    parser.add_argument("workspace", type=Path, help="with events and features, as `rapport train` needs it")
    parser.add_argument("--seeds", type=int, default=3, help="trainings that are compared, at least 2")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    asked = parser.parse_args()
    # Here, not above: Feast takes seconds to import.
    from model_export.dataset import build  # noqa: PLC0415

    dataset = build(Workspace(asked.workspace), code_digest())
    with one_thread():
        for line in tables(dataset, FULL, seeds=range(max(asked.seeds, 2)), epochs=asked.epochs):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
