"""Owen values of single features: how a group's Shapley value divides among the features of the group.

They are the Shapley values of the game in which whole groups join one after the other, in any order, and within its
group each feature joins one after the other, in any order (Owen 1977, "Values of Games with a Priori Unions"). So the
features of a group sum to exactly the group's Shapley value, whatever the groups are.

Exact values take every coalition of the other groups with every coalition within the group: 1.5 million rows of the
network for a customer of the built-in model. Here orders are drawn instead, which has no bias: errors average out
over the customers that something is fitted to.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from feature_client.schema import FeatureSchema
from model_export.game import Background, Doubles, Floats, Ints, outcomes
from model_export.scorer import Scorer


@dataclass(frozen=True, eq=False)
class FeatureGame:
    """Players are features. owners [L]: the feature of each lifted column; groups [F]: the group of each feature, as
    positions in `schema.features` and in `schema.groups`."""

    network: Scorer
    owners: Ints
    groups: Ints
    background: Background

    @classmethod
    def of(cls, network: Scorer, schema: FeatureSchema, background: Background) -> "FeatureGame":
        names, groups = [feature.name for feature in schema.features], list(schema.groups)
        owners = np.array([names.index(name) for name in network.inputs.owners], dtype=np.int64)
        return cls(network, owners, np.array([groups.index(f.group) for f in schema.features]), background)

    @cached_property
    def importance(self) -> Doubles:
        """Shares [K], sum 1, of the orders: large where a background row's weight times its scores is, for there the
        gains differ most."""
        rows = outcomes(self.network, torch.from_numpy(self.background.rows)).astype(np.float64)
        scores = rows[:, : rows.shape[1] // 2]
        sizes = self.background.weights * np.sqrt(((scores / (self.background.weights @ scores)) ** 2).mean(axis=1))
        return np.asarray(sizes / sizes.sum())


def sample_owen(game: FeatureGame, customers: Floats, orders: int, rng: np.random.Generator, label: str) -> Doubles:
    """Estimates from about `orders` orders a customer: [n, L] -> [n, 2 T, F]. base + their sum is the outcome exactly.

    label: of the progress bar. A customer has orders of its own, so errors are independent.
    """
    found = np.empty((len(customers), 2 * len(game.network.kinds), len(game.groups)))
    for row, customer in enumerate(tqdm(customers, desc=label, unit="row")):
        found[row] = _one(game, customer, orders, rng)
    return found


def draw_orders(groups: Ints, pairs: int, rng: np.random.Generator) -> Ints:
    """[2 * pairs, F]: the place, from 0 on, at which each feature joins. All features of a group join in a row.

    Each order comes with its reverse: what depends on who else is there to the first order cancels (antithetic).
    """
    turns = rng.random((pairs, int(groups.max()) + 1)).argsort(axis=1)[:, groups]
    places = (turns + rng.random(turns.shape)).argsort(axis=1).argsort(axis=1)
    return np.concatenate([places, len(groups) - 1 - places])


def _one(game: FeatureGame, customer: Floats, orders: int, rng: np.random.Generator) -> Doubles:
    """[L] -> [2 T, F]. Every row of the background has its pairs of orders, which together have its weight."""
    weights = game.background.weights
    pairs = np.maximum(np.rint(game.importance * orders / 2).astype(np.int64), 1)
    of_pair = np.repeat(np.arange(len(pairs)), pairs)
    row = np.concatenate([of_pair, of_pair])  # as draw_orders: all orders, then their reverses
    places = draw_orders(game.groups, len(of_pair), rng)  # [orders, F]
    joined = places[:, None, :] < np.arange(places.shape[1] + 1)[:, None]  # [orders, 1 + F, F]
    taken = torch.from_numpy(joined[:, :, game.owners])
    references = torch.from_numpy(game.background.rows[row][:, None])
    every = outcomes(game.network, torch.where(taken, torch.from_numpy(customer), references).flatten(0, 1))
    gains = np.diff(every.reshape(*joined.shape[:2], -1).astype(np.float64), axis=1)  # [orders, F, 2 T]
    own = np.take_along_axis(gains, places[:, :, None], axis=1)
    return np.asarray(np.einsum("ofq,o->qf", own, (weights / pairs / 2)[row]))
