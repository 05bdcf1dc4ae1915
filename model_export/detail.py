"""The graph that explains by single features: what each does to the outcome at a few masked rows, weighed.

At a masked row (some groups from the customer, all others from a reference) a feature's *effect* on a task's margin is
the derivative of the margin by the columns of the trunk, times how far these move when this feature alone goes from
the reference's value to the customer's. One run forwards and one backwards for each task give the effects of all
features there; exact gains would take a run for each feature. An attribution is a sum of effects, as they are and
times the slope of the score, with weights fitted to Owen values (`owen`). With equal weights, and rows along a straight
line, they would be integrated gradients. docs/decisions/0013-features-are-explained-by-slopes.md says what else was
tried.

Trees have no slopes. Of such models an effect is the difference itself: the outcome of the masked row with the
customer's value of this feature, less that with the reference's, which takes a run for each feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from model_export.attribution import ExplainedNetwork
from model_export.estimators import AMOUNTS, MaskedRows, Target
from model_export.game import Bools, Doubles, Floats, Ints
from model_export.network import Network
from model_export.owen import FeatureGame
from model_export.scorer import Scorer

CHUNK = 2_048
"""Masked rows of one run of the trunk and its slopes: what it needs for them stays in a core's cache."""

CHANNELS = 2
"""Of each effect: as it is, and times the slope of the score by the margin."""

PENALTIES = (1e-3, 1e-2, 1e-1)
"""Of the ridge regression, relative to standardised effects; validation rows choose one for each outcome. Smaller ones
miss about the same (3 % less at most), and their larger weights amplify rounding beyond what counts as equal."""

VALIDATION_SHARE = 0.2
"""Of the target's rows, the last ones; once they have chosen, they take part in the fit."""

SAME = 1e-3
"""A column of which no larger share of its mean square is new, given those before, is taken for one of them."""


@dataclass(frozen=True, eq=False)
class DetailEstimate:
    """Attributions of F features as a linear function of their effects at R masked rows.

    taken, references: as in `Estimate`. owners [L]: the feature of each lifted column. weights [2 T, CHANNELS * R, F]:
    of the effects on the outcome's task. constant [2 T, F]. shares [2 T, F], sum 1: who gets what of own - base the
    weighted effects miss. base [2 T].
    """

    taken: Bools
    references: Floats
    owners: Ints
    weights: Doubles
    constant: Doubles
    shares: Doubles
    base: Doubles


class Effects(nn.Module):
    """Lifted customers [B, L] -> effects of features at R masked rows, channel by channel: [B, T, CHANNELS * R, F]."""

    taken: Tensor  # bool [R, L]
    references: Tensor  # [R, L]
    ownership: Tensor  # [L, F]: 1 where the feature owns the column

    def __init__(self, network: Network, rows: MaskedRows, owners: Ints) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("taken", torch.from_numpy(rows.taken))
        self.register_buffer("references", torch.from_numpy(rows.references))
        self.register_buffer("ownership", torch.from_numpy(np.eye(owners.max() + 1, dtype=np.float32)[owners]))

    def forward(self, lifted: Tensor) -> Tensor:
        customer = lifted[:, None, :]
        mixed = torch.where(self.taken, customer, self.references)  # [B, R, L]
        steps = self.network.inputs.steps(mixed, customer, self.references).flatten(0, 1)  # [B * R, L]
        scores, _, slopes = self.network.slopes(mixed.flatten(0, 1))
        on_margins = (self.network.inputs.fed(slopes) * steps[:, None, :]) @ self.ownership  # [B * R, T, F]
        on_scores = on_margins * self.network.score_slopes(scores)[:, :, None]
        both = torch.stack([on_margins, on_scores], dim=2)  # [B * R, T, CHANNELS, F]
        return both.reshape(-1, mixed.shape[1], *both.shape[1:]).permute(0, 2, 3, 1, 4).flatten(2, 3)

    def explain(self, lifted: Tensor) -> tuple[Tensor, Tensor]:
        """The customers' own outcomes [B, 2 T], and their effects."""
        return torch.cat(self.network.outcomes(lifted), dim=1), self(lifted)

    @property
    def runs(self) -> int:
        """Rows of the network for one customer."""
        return len(self.taken)

    @property
    def cost(self) -> int:
        """The same, with the way back, which costs about a row for each task, and what becomes of slopes one more."""
        return self.runs * (2 + len(self.network.kinds))


class Differences(nn.Module):
    """The same of a model without slopes: each masked row once more for every feature, with the other's value of it."""

    taken: Tensor  # bool [R, L]
    references: Tensor  # [R, L]
    turned: Tensor  # bool [R, F, L]: taken, but for the columns of one feature
    signs: Tensor  # [R, F]: 1 where that feature was the customer's, else -1

    def __init__(self, scorer: Scorer, rows: MaskedRows, owners: Ints) -> None:
        super().__init__()
        self.scorer = scorer
        owned = owners == np.arange(owners.max() + 1)[:, None]  # [F, L]
        own = (rows.taken[:, None] & owned).any(axis=2)
        self.register_buffer("taken", torch.from_numpy(rows.taken))
        self.register_buffer("references", torch.from_numpy(rows.references))
        self.register_buffer("turned", torch.from_numpy(rows.taken[:, None] ^ owned))
        self.register_buffer("signs", torch.from_numpy(np.where(own, 1, -1).astype(np.float32)))

    def forward(self, lifted: Tensor) -> Tensor:
        return self.explain(lifted)[1]

    def explain(self, lifted: Tensor) -> tuple[Tensor, Tensor]:
        plain = torch.where(self.taken, lifted[:, None], self.references)  # [B, R, L]
        turned = torch.where(self.turned, lifted[:, None, None], self.references[:, None])  # [B, R, F, L]
        mixed = torch.cat([plain[:, :, None], turned], dim=2)  # [B, R, 1 + F, L]
        # In one run: the trees would otherwise be in the graph twice.
        rows = torch.cat([lifted[:, None], mixed.flatten(1, 2)], dim=1)
        both = torch.stack(self.scorer.outcomes(rows.flatten(0, 1)), dim=1)  # [rows, CHANNELS, T]
        every = both.reshape(-1, rows.shape[1], *both.shape[1:])
        own, masked = every[:, 0].flatten(1), every[:, 1:].flip(2).reshape(-1, *mixed.shape[1:3], *both.shape[1:])
        effects = (masked[:, :, :1] - masked[:, :, 1:]) * self.signs[:, :, None, None]  # [B, R, F, CHANNELS, T]
        return own, effects.permute(0, 4, 3, 1, 2).flatten(2, 3)

    @property
    def runs(self) -> int:
        return self.turned.shape[0] * (1 + self.turned.shape[1])

    @property
    def cost(self) -> int:
        return self.runs


def has_slopes(scorer: Scorer) -> TypeGuard[Network]:
    return isinstance(scorer, Network)


def effects_of(scorer: Scorer, rows: MaskedRows, owners: Ints) -> Effects | Differences:
    return Effects(scorer, rows, owners) if has_slopes(scorer) else Differences(scorer, rows, owners)


class EstimatedOwen(ExplainedNetwork):
    """The estimate as a graph. Its players are the features, in the order of the schema."""

    weights: Tensor
    constant: Tensor
    shares: Tensor

    def __init__(self, network: Scorer, estimate: DetailEstimate) -> None:
        super().__init__(network, estimate.base)
        self.effects = effects_of(network, MaskedRows(estimate.taken, estimate.references), estimate.owners)
        for name in ("weights", "constant", "shares"):
            self.register_buffer(name, torch.from_numpy(getattr(estimate, name).astype(np.float32)))
        self.rows = 1 + self.effects.cost

    def explain(self, lifted: Tensor) -> tuple[Tensor, Tensor]:
        own, effects = self.effects.explain(lifted)
        parts = (torch.cat([effects, effects], dim=1) * self.weights).sum(dim=2) + self.constant  # [B, 2 T, F]
        missed = own - self.nobody - parts.sum(dim=2)
        return own, parts + missed[:, :, None] * self.shares


def draw_places(game: FeatureGame, count: int, rng: np.random.Generator) -> MaskedRows:
    """`count` candidates that take whole groups from the customer, any number of them equally often. What is missing
    comes from the mean row of the background for half of them, else from any row of it, by its weight."""
    groups = int(game.groups.max()) + 1
    sizes = rng.integers(0, groups + 1, size=count)
    sizes[:2] = 0, groups  # the ends of every order are always there
    members = rng.random((count, groups)).argsort(axis=1).argsort(axis=1) < sizes[:, None]
    row = rng.choice(len(game.background.rows), size=count, p=game.background.weights)
    row[: count // 2] = len(game.background.rows)
    references = np.vstack([game.background.rows, game.background.mean])
    return MaskedRows(members[:, game.groups][:, game.owners], references[row])


def select(game: FeatureGame, candidates: MaskedRows, target: Target, count: int) -> MaskedRows:
    """The `count` candidates whose effects explain the target best, the best first.

    Forward selection as in `estimators.select`, of both channels of a row at once, for one regression a feature and
    task: each step adds the row that removes most of what is left of them all.
    """
    effects = _effects(game, candidates, target.customers)
    n, tasks = effects.shape[:2]
    grams, lefts = [], []
    for task, kind in enumerate(game.network.kinds):
        both = [task, tasks + task]
        emphasis = np.array([AMOUNTS if kind == "amount" else 1.0, 1.0]) / target.sizes[both]
        root = np.sqrt(target.trust[:, task])[:, None]
        columns = effects[:, task].transpose(2, 0, 1).astype(np.float64) * root  # [F, n, CHANNELS * R]
        size = np.sqrt((columns**2).mean(axis=1, keepdims=True))
        columns /= np.where(size > 0, size, 1.0)
        aims = (target.attributions[:, both] * emphasis[:, None]).transpose(2, 0, 1) * root  # [F, n, 2]
        grams.append(columns.transpose(0, 2, 1) @ columns)
        lefts.append(columns.transpose(0, 2, 1) @ aims)
    order = _pursue(np.concatenate(grams), np.concatenate(lefts), n, min(count, len(candidates)))
    return candidates[np.array(order, dtype=np.int64)]


def fit(game: FeatureGame, rows: MaskedRows, target: Target) -> DetailEstimate:
    """The weights of the effects at these masked rows, by ridge regression for each feature and outcome."""
    effects = _effects(game, rows, target.customers)
    _, tasks, columns, features = effects.shape
    weights = np.zeros((2 * tasks, columns, features))
    constant, shares = np.zeros((2, 2 * tasks, features))
    for outcome in range(2 * tasks):
        x = effects[:, outcome % tasks].transpose(2, 0, 1).astype(np.float64)  # [F, n, CHANNELS * R]
        y, trust = target.attributions[:, outcome].T, target.trust[:, outcome]
        weights[outcome], constant[outcome], missed = _ridge(x, y, trust)
        shares[outcome] = missed / missed.sum() if missed.sum() > 0 else 1 / features
    return DetailEstimate(rows.taken, rows.references, game.owners, weights, constant, shares, target.base)


def _effects(game: FeatureGame, rows: MaskedRows, customers: Floats) -> Floats:
    """customers [n, L] -> [n, T, CHANNELS * R, F]."""
    effects = effects_of(game.network, rows, game.owners)
    with torch.no_grad():
        chunks = torch.split(torch.from_numpy(customers), max(CHUNK // effects.runs, 1))
        return np.asarray(torch.cat([effects(chunk) for chunk in chunks]).numpy())


def _pursue(gram: Doubles, left: Doubles, rows: int, count: int) -> list[int]:
    """Orthogonal matching pursuit on S Gram matrices at once: gram [S, C, C] of standardised columns, left [S, C, 2],
    their products with what is to be explained; C = CHANNELS * candidates."""
    candidates = gram.shape[1] // CHANNELS
    norms = np.einsum("scc->sc", gram).copy()
    basis = np.zeros((*gram.shape[:2], count * CHANNELS))
    chosen: list[int] = []
    while len(chosen) < count:
        gains = ((left**2).sum(axis=2) / (norms + SAME * rows)).reshape(-1, CHANNELS, candidates).sum(axis=(0, 1))
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
        for channel in range(CHANNELS):
            column, used = channel * candidates + chosen[-1], (len(chosen) - 1) * CHANNELS + channel
            new = norms[:, column] > SAME * rows
            size = np.sqrt(np.where(new, norms[:, column], 1.0))[:, None]
            along = (basis[:, :, :used] @ basis[:, column, :used, None])[:, :, 0]
            direction = np.where(new[:, None], (gram[:, :, column] - along) / size, 0.0)
            left = left - direction[:, :, None] * (left[:, column] / size)[:, None, :]
            norms = np.maximum(norms - direction**2, 0.0)
            basis[:, :, used] = direction
    return chosen


def _ridge(x: Doubles, y: Doubles, trust: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """x [F, n, C], y [F, n], rows weighted by trust [n] -> slopes [C, F], intercepts [F], and the mean squares that
    were missed on validation rows [F]."""
    fitted = x.shape[1] - max(int(x.shape[1] * VALIDATION_SHARE), 1)
    found = []
    for penalty, slopes, intercepts in _solve(x[:, :fitted], y[:, :fitted], trust[:fitted], PENALTIES):
        missed = np.einsum("fnc,cf->fn", x[:, fitted:], slopes) + intercepts[:, None] - y[:, fitted:]
        squares = (missed**2 * trust[fitted:]).mean(axis=1)
        found.append((float(squares.sum()), penalty, squares))
    _, best, squares = min(found, key=lambda one: one[0])
    [(_, slopes, intercepts)] = _solve(x, y, trust, [best])
    return slopes, intercepts, squares


def _solve(x: Doubles, y: Doubles, trust: Doubles, penalties: Sequence[float]) -> list[tuple[float, Doubles, Doubles]]:
    """One penalty, slopes [C, F], intercepts [F] a penalty, from one decomposition. Intercepts are not penalised."""
    share = trust / trust.sum()
    means, levels = np.einsum("fnc,n->fc", x, share), y @ share
    root = np.sqrt(share)
    centred, aims = (x - means[:, None]) * root[:, None], (y - levels[:, None]) * root
    scale = np.sqrt((centred**2).sum(axis=1))
    scale[scale == 0] = 1.0  # of an effect that is always the same, nothing is learned
    centred /= scale[:, None]
    values, vectors = np.linalg.eigh(centred.transpose(0, 2, 1) @ centred)
    inner = (vectors.transpose(0, 2, 1) @ (centred.transpose(0, 2, 1) @ aims[:, :, None]))[:, :, 0]
    solutions = []
    for penalty in penalties:
        slopes = (vectors @ (inner / (np.maximum(values, 0.0) + penalty))[:, :, None])[:, :, 0] / scale
        solutions.append((penalty, slopes.T, levels - (slopes * means).sum(axis=1)))
    return solutions
