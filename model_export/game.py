"""The game whose gains Shapley values divide among groups of features.

v(S) is the weighted mean outcome, over the rows of a background, of a row that takes the groups S from the customer
and all others from the background row. An *outcome* is one of the 2 T columns that the network gives a row: the scores
of its T tasks, then their margins.
"""

from dataclasses import dataclass
from math import factorial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from feature_client.errors import RapportError
from feature_client.schema import FeatureSchema
from model_export.scorer import Scorer

CHUNK = 8_192
"""Rows of one run of the trunk: what it needs for them stays in a core's cache, which made it three times faster."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class AttributionError(RapportError):
    """Scores that cannot be explained, or not well enough; the message says why."""


@dataclass(frozen=True, eq=False)
class Background:
    """What stands in for features that a coalition leaves out: rows [K, L] lifted; weights [K], at least 0, sum 1."""

    rows: Floats
    weights: Doubles

    @property
    def mean(self) -> Floats:
        """The weighted mean row, [1, L]."""
        return np.asarray(self.weights @ self.rows.astype(np.float64), dtype=np.float32)[None]


@dataclass(frozen=True, eq=False)
class Coalitions:
    """Attributions are weights @ v, for v over these coalitions.

    members: bool [C, P], which of P players are in; the first coalition is nobody, the last everybody. weights [P, C].
    """

    members: Bools
    weights: Doubles

    def __len__(self) -> int:
        return len(self.members)


def every_coalition(players: int) -> Coalitions:
    """All 2^players of them, with Shapley's own weights: bit p of the row number says whether player p is in."""
    members = (np.arange(2**players)[:, None] >> np.arange(players)) % 2 == 1
    sizes = members.sum(axis=1).tolist()
    joined = [factorial(max(k - 1, 0)) * factorial(players - k) / factorial(players) for k in sizes]
    missed = [factorial(k) * factorial(max(players - k - 1, 0)) / factorial(players) for k in sizes]
    return Coalitions(members, np.where(members.T, joined, np.negative(missed)))


def sampled_coalitions(players: int, count: int, rng: np.random.Generator) -> Coalitions:
    """At most `count` of them, with the weights of KernelSHAP's least squares, which are linear in v as well.

    Each coalition is drawn together with its complement: among pairs, effects of uneven order cancel (Covert and Lee
    2021, "Improving KernelSHAP", arXiv 2012.01536). Raises AttributionError where `count` is too small for a solution.
    """
    sizes = np.arange(1, players)
    mass = 1.0 / (sizes * (players - sizes))  # Shapley's kernel times the number of coalitions of that size
    drawn = np.zeros((max(count - 2, 0) // 2, players), dtype=bool)
    for row, size in enumerate(rng.choice(sizes, size=len(drawn), p=mass / mass.sum())):
        drawn[row, rng.choice(players, size=size, replace=False)] = True
    inner, times = np.unique(np.concatenate([drawn, ~drawn]), axis=0, return_counts=True)
    weighted = inner * times[:, None]
    if np.linalg.matrix_rank(weighted) < players:
        raise AttributionError(f"{count} coalitions are too few for {players} groups")
    # The phi that minimise sum over S of times_S * (v(S) - v(nobody) - sum of phi in S)^2 under
    # sum of phi = v(everybody) - v(nobody): the free solution, and what of the constraint it misses, spread over all.
    inverse = np.linalg.inv(weighted.T @ inner)
    free = inverse @ weighted.T
    spread = inverse.sum(axis=1) / inverse.sum()
    solved = free - np.outer(spread, free.sum(axis=0))
    weights = np.column_stack([-solved.sum(axis=1) - spread, solved, spread])
    members = np.vstack([np.zeros((1, players), bool), inner, np.ones((1, players), bool)])
    return Coalitions(members, weights)


def coalitions_for(players: int, at_most: int, rng: np.random.Generator) -> Coalitions:
    """All of them where there are at most `at_most`, else a sample of so many."""
    return every_coalition(players) if 2**players <= at_most else sampled_coalitions(players, at_most, rng)


def lift(network: Scorer, numeric: Floats, categorical: Ints) -> Floats:
    """Raw rows -> [rows, L]."""
    with torch.no_grad():
        return np.asarray(network.inputs.lift(torch.from_numpy(numeric), torch.from_numpy(categorical)).numpy())


def outcomes(network: Scorer, lifted: Tensor) -> Floats:
    """[rows, L] -> [rows, 2 T]."""
    with torch.no_grad():
        parts = [torch.cat(network.outcomes(part), dim=1) for part in torch.split(lifted, CHUNK)]
    return np.asarray(torch.cat(parts).numpy())


def base_outcomes(network: Scorer, background: Background) -> Doubles:
    """v(nobody): [2 T]."""
    return np.asarray(background.weights @ outcomes(network, torch.from_numpy(background.rows)))


@dataclass(frozen=True, eq=False)
class Game:
    """Whose gains are divided: players own lifted columns (owners [L], numbers from 0 on)."""

    network: Scorer
    owners: Ints
    background: Background
    coalitions: Coalitions

    @classmethod
    def of_groups(
        cls, network: Scorer, schema: FeatureSchema, background: Background, coalitions: Coalitions
    ) -> "Game":
        """The players are the groups, in the order of `schema.groups`."""
        return cls(network, group_owners(network, schema), background, coalitions)

    def attributions(self, customers: Floats, label: str) -> Doubles:
        """customers [n, L] -> [n, 2 T, P]. label: of the progress bar."""
        taken = torch.from_numpy(self.coalitions.members[1:-1][:, None, self.owners])
        references, weights = torch.from_numpy(self.background.rows), self.background.weights
        nobody, everybody = (
            base_outcomes(self.network, self.background),
            outcomes(self.network, torch.from_numpy(customers)),
        )
        # In one array: small ones between the large temporary ones would keep the allocator from using those again.
        found = np.empty((*everybody.shape, self.coalitions.members.shape[1]))
        steps = tqdm(everybody, desc=label, unit="row")
        for row, (customer, own) in enumerate(zip(torch.from_numpy(customers), steps, strict=True)):
            mixed = torch.where(taken, customer, references).flatten(0, 1)
            every = outcomes(self.network, mixed).reshape(len(taken), len(references), -1)
            between = np.einsum("ckt,k->ct", every, weights)
            found[row] = (self.coalitions.weights @ np.vstack([nobody, between, own])).T
        return found


def group_owners(network: Scorer, schema: FeatureSchema) -> Ints:
    """Who owns each lifted column, as a position in `schema.groups`: [L]."""
    groups = list(schema.groups)
    return np.array([groups.index(schema.by_name[name].group) for name in network.inputs.owners], dtype=np.int64)
