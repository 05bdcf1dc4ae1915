"""Explanation graphs: the network, run once over masked rows, and a matrix that turns its outcomes into attributions.

The Shapley value of group g is the sum over coalitions S without g of |S|! (G - |S| - 1)! / G! (v(S + g) - v(S))
(Shapley 1953; v as in `game`: "interventional", after Janzing et al. 2020, arXiv 1910.13413). That is linear in v, and
so is every estimate here: mask, trunk, one matrix product, and all tasks, scores and margins are split up together.
No autograd is exported.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model_export.game import AttributionError, Background, Bools, Doubles, Floats, Ints, base_outcomes, every_coalition
from model_export.scorer import Scorer

EXACT_GROUPS = 8
"""With more groups, 2^groups coalitions against every background row are too many for a graph that answers people."""


class ExplainedNetwork(nn.Module):
    """numeric [B, N], categorical [B, K] -> the six outputs of an explanation graph, in the order of the contract.

    scores [B, T], attributions [B, T, P], base [B, T], and the same of the margins; P players. base plus the sum of the
    attributions is the score, up to rounding. The customer's own row runs with the rows that explain it.
    """

    nobody: Tensor  # [2 T]: the base; not by that name, which is an output's
    rows: int
    """How many rows of the network one customer costs."""

    def __init__(self, network: Scorer, base: Doubles) -> None:
        """base [2 T]: the outcomes that attributions start from."""
        super().__init__()
        self.network = network
        self.register_buffer("nobody", _float32(base))

    def explain(self, lifted: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L] -> the customers' own outcomes [B, 2 T] and their attributions [B, 2 T, P]."""
        rows = torch.cat([lifted[:, None, :], self.mix(lifted)], dim=1)  # [B, 1 + R, L]
        every = torch.cat(self.network.outcomes(rows.flatten(0, 1)), dim=1)
        # The batch comes first and is the only size left open: all others are constants of the release.
        outcomes = every.reshape(-1, rows.shape[1], every.shape[1])  # [B, 1 + R, 2 T]
        own = outcomes[:, 0]
        return own, self.split(own, outcomes[:, 1:])

    def mix(self, lifted: Tensor) -> Tensor:
        """[B, L] -> the rows that explain each customer [B, R, L]."""
        raise NotImplementedError

    def split(self, own: Tensor, outcomes: Tensor) -> Tensor:
        """Outcomes of the customers [B, 2 T] and of `mix` [B, R, 2 T] -> attributions [B, 2 T, P]."""
        raise NotImplementedError

    def forward(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, ...]:
        own, attributions = self.explain(self.network.inputs.lift(numeric, categorical))
        base = self.nobody.expand_as(own)
        tasks = own.shape[1] // 2
        parts = (own, attributions, base)
        return (*(part[:, :tasks] for part in parts), *(part[:, tasks:] for part in parts))


class ExactShapley(ExplainedNetwork):
    """Every coalition against every row of the background: the definition itself."""

    taken: Tensor  # bool [C, 1, L]: from the customer, else from the background
    background: Tensor  # [K, L]
    shares: Tensor  # [K, 1]
    weights: Tensor  # [2 + C, P]: of nobody, of the coalitions between, of everybody

    def __init__(self, network: Scorer, owners: Ints, background: Background) -> None:
        """owners [L]: the player, from 0 on, that each lifted column belongs to. Raises AttributionError."""
        super().__init__(network, base_outcomes(network, background))
        players = int(owners.max()) + 1
        if players > EXACT_GROUPS:
            raise AttributionError(f"{players} groups; exact explanations take at most {EXACT_GROUPS}")
        coalitions = every_coalition(players)
        self.register_buffer("taken", torch.from_numpy(coalitions.members[1:-1, None, owners]))
        self.register_buffer("background", torch.from_numpy(background.rows))
        self.register_buffer("shares", _float32(background.weights[:, None]))
        self.register_buffer("weights", _float32(coalitions.weights.T))
        self.rows = 1 + self.taken.shape[0] * len(background.rows)

    def mix(self, lifted: Tensor) -> Tensor:
        return torch.where(self.taken, lifted[:, None, None, :], self.background).flatten(1, 2)

    def split(self, own: Tensor, outcomes: Tensor) -> Tensor:
        against = outcomes.reshape(-1, self.taken.shape[0], self.background.shape[0], own.shape[1])
        between = (against * self.shares).sum(dim=2)
        values = torch.cat([self.nobody.expand_as(own)[:, None], between, own[:, None]], dim=1)  # [B, 2 + C, 2 T]
        return values.transpose(1, 2) @ self.weights


@dataclass(frozen=True, eq=False)
class Estimate:
    """Attributions as a linear function of the customer's outcomes and of those of R masked rows.

    taken: bool [R, L], which columns of a masked row are the customer's; references [R, L]: where the others are from.
    weights [R * 2 T, 2 T * P]: of the outcomes of the masked rows. own [2 T, 2 T * P]: of the customer's. constant
    [2 T * P]. base [2 T].
    """

    taken: Bools
    references: Floats
    weights: Doubles
    own: Doubles
    constant: Doubles
    base: Doubles


class EstimatedShapley(ExplainedNetwork):
    """A few masked rows, and weights fitted so that they say what every coalition and background row would."""

    taken: Tensor
    references: Tensor
    weights: Tensor
    own: Tensor
    constant: Tensor

    def __init__(self, network: Scorer, estimate: Estimate) -> None:
        super().__init__(network, estimate.base)
        self.register_buffer("taken", torch.from_numpy(estimate.taken))
        self.register_buffer("references", torch.from_numpy(estimate.references))
        for name in ("weights", "own", "constant"):
            self.register_buffer(name, _float32(getattr(estimate, name)))
        self.rows = 1 + len(estimate.taken)

    def mix(self, lifted: Tensor) -> Tensor:
        return torch.where(self.taken, lifted[:, None, :], self.references)

    def split(self, own: Tensor, outcomes: Tensor) -> Tensor:
        parts = outcomes.flatten(1) @ self.weights + own @ self.own + self.constant
        return parts.reshape(own.shape[0], own.shape[1], -1)


def _float32(values: Doubles) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
