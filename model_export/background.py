"""Which training rows stand for all of them: the background of explanations.

Random rows are a noisy background: attributions against 32 of them and against 32 others differ by 20 to 60 % (docs/
explanations-method.md). So the rows are chosen, and weighted, such that outcomes of masked customers average to
what they average to over a whole population.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls  # type: ignore[import-untyped]

from model_export.game import Background, Bools, Doubles, Floats, Ints, outcomes
from model_export.scorer import Scorer

CONSTRAINT = 1e2
"""Weight, in the least squares, of the sum of the weights being 1; it is made exact afterwards."""


@dataclass(frozen=True, eq=False)
class Probes:
    """Customers with a coalition each, for which a background has to give the mean of the population.

    customers [Q, L] lifted; taken: bool [Q, L], the columns that the coalition takes from the customer.
    """

    customers: Floats
    taken: Bools


def draw_probes(customers: Floats, members: Bools, owners: Ints, count: int, rng: np.random.Generator) -> Probes:
    """customers [rows, L] lifted, members: bool [C, P], owners [L]."""
    who, coalition = rng.integers(len(customers), size=count), rng.integers(len(members), size=count)
    return Probes(customers[who], members[coalition][:, owners])


def choose_background(network: Scorer, population: Floats, probes: Probes, count: int) -> Background:
    """At most `count` rows of the population [M, L], with their weights.

    With d(q, m) the standardised outcome of probe q over row m less its mean over the population, the weights w
    minimise w' D w, D = the covariance of d among rows: a portfolio of least variance. Rows are added one by one, each
    time the one in whose direction that falls most, and all weights are solved for again.
    """
    spread = _covariance(network, population, probes)
    chosen = [int(spread.sum(axis=1).argmin())]
    weights = np.ones(1)
    while len(chosen) < min(count, len(population)):
        slope = spread[:, chosen] @ weights
        slope[chosen] = np.inf
        chosen.append(int(slope.argmin()))
        weights = _least_variance(spread[np.ix_(chosen, chosen)])
    kept = weights > 0
    return Background(population[chosen][kept], weights[kept])


def _covariance(network: Scorer, population: Floats, probes: Probes) -> Doubles:
    """[M, M]: of the standardised outcomes of all probes, about their means over the population."""
    rows = torch.from_numpy(population)
    every = np.empty((len(probes.customers), len(rows), 2 * len(network.kinds)), dtype=np.float32)
    pairs = zip(torch.from_numpy(probes.customers), torch.from_numpy(probes.taken), strict=True)
    for probe, (customer, taken) in enumerate(pairs):
        every[probe] = outcomes(network, torch.where(taken, customer, rows))
    means = every.mean(axis=1, keepdims=True)
    every = (every - means) / np.maximum(means.std(axis=0), np.finfo(np.float32).tiny)
    flat = every.transpose(0, 2, 1).reshape(-1, len(population)).astype(np.float64)
    return np.asarray(flat.T @ flat / len(flat))


def _least_variance(spread: Doubles) -> Doubles:
    """The w >= 0 with sum 1 and the least w' spread w."""
    size = len(spread)
    # Rows may be equal, and outcomes constant: never singular.
    ridge = 1e-7 * max(float(np.trace(spread)) / size, 1e-9)
    root = np.linalg.cholesky(spread + ridge * np.eye(size)).T
    weights, _ = nnls(np.vstack([root, np.full((1, size), CONSTRAINT)]), np.append(np.zeros(size), CONSTRAINT))
    return np.asarray(weights / weights.sum())
