"""Exact interventional Shapley values over feature groups, as one forward graph.

With v(S) the mean score over background rows b of a row that takes the groups S from the customer x and all others
from b, group g gets sum over S of |S|! (G - |S| - 1)! / G! (v(S + g) - v(S)) (Shapley 1953; "interventional" after
Janzing et al. 2020, arXiv 1910.13413). That is linear in v, so all attributions are one matrix product W @ v and no
autograd is exported. The cost is 2^groups x background rows of the trunk for each customer.
"""

from math import factorial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from feature_client.errors import RapportError
from feature_client.schema import FeatureSchema
from model_export.network import Network

MAX_GROUPS = 8
BACKGROUND_ROWS = 16


class AttributionError(RapportError):
    """A schema that cannot be explained exactly; the message says why."""


def coalitions(groups: int) -> npt.NDArray[np.bool_]:
    """All subsets, bool [2^G, G]: bit g of the row number says whether group g is in. First none, last all."""
    return np.asarray((np.arange(2**groups)[:, None] >> np.arange(groups)) % 2 == 1)


def shapley_weights(groups: int) -> npt.NDArray[np.float64]:
    """W [G, 2^G] with attributions = W @ v for v in the order of `coalitions`."""
    members = coalitions(groups)
    sizes = members.sum(axis=1)
    weights = np.empty((groups, len(members)))
    for group in range(groups):
        for row, size in enumerate(sizes):
            if members[row, group]:
                weights[group, row] = factorial(size - 1) * factorial(groups - size) / factorial(groups)
            else:
                weights[group, row] = -factorial(size) * factorial(groups - size - 1) / factorial(groups)
    return weights


class ExplainedNetwork(nn.Module):
    """numeric [B, N], categorical [B, K] -> scores [B, T], attributions [B, T, G], base [B, T]; of margins, too.

    scores are the plain forward of the rows, so they are the score graph's own; base + attributions.sum(-1) equals
    them up to rounding. Groups are in the order of `schema.groups`.
    """

    taken: Tensor  # bool [C, 1, lifted columns]: taken from the customer, else from the background
    weights: Tensor  # [C, G]
    background: Tensor  # [M, lifted columns]

    def __init__(
        self,
        network: Network,
        schema: FeatureSchema,
        numeric: npt.NDArray[np.float32],
        categorical: npt.NDArray[np.int64],
    ) -> None:
        """numeric [M, N], categorical [M, K]: the background rows, as raw inputs."""
        super().__init__()
        groups = list(schema.groups)
        if len(groups) > MAX_GROUPS:
            raise AttributionError(f"{len(groups)} groups; exact explanations take at most {MAX_GROUPS}")
        self.network = network
        group_of = [groups.index(schema.by_name[name].group) for name in network.inputs.owners]
        with torch.no_grad():
            lifted = network.inputs.lift(torch.from_numpy(numeric), torch.from_numpy(categorical))
        self.register_buffer("taken", torch.from_numpy(coalitions(len(groups))[:, None, group_of]))
        self.register_buffer("weights", torch.from_numpy(shapley_weights(len(groups)).T.astype(np.float32)))
        self.register_buffer("background", lifted)

    def forward(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, ...]:
        lifted = self.network.inputs.lift(numeric, categorical)  # [B, L]
        mixed = torch.where(self.taken, lifted[:, None, None, :], self.background)  # [B, C, M, L]
        # The batch comes first and is the only size left open: C, M and T are constants of the release.
        count, rows = self.taken.shape[0], self.background.shape[0]
        found: list[Tensor] = []
        for own, every in zip(self.network.outcomes(lifted), self.network.outcomes(mixed.flatten(0, 2)), strict=True):
            values = every.reshape(-1, count, rows, every.shape[1]).mean(dim=2)  # [B, C, T]
            found += [own, values.transpose(1, 2) @ self.weights, values[:, 0, :]]
        return tuple(found)


def choose_background(rows: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Positions of `count` of the training rows, without repetition."""
    chosen = np.random.default_rng(seed).choice(rows, size=min(count, rows), replace=False)
    return np.sort(chosen).astype(np.int64)
