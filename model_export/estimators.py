"""Fits estimates of Shapley values: which few masked rows to run, and how to weigh what the network says of them.

Both are fitted to the exact attributions of training rows. The parts of an estimate still sum to exactly score minus
base: so do the parts that it is fitted to, and least squares keeps every sum that its columns can express.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model_export.attribution import Estimate
from model_export.game import Bools, Doubles, Floats, Game, Ints, base_outcomes, outcomes
from model_export.scorer import Scorer

PENALTIES = tuple(10.0**power for power in range(-8, 0))
"""Of the ridge regression, relative to standardised columns; validation rows choose one for each outcome."""

AMPLIFIED = 40.0
"""How many times what is split up the sizes of all that an estimate adds may sum to. More penalty makes that less: what
runtimes round differently is multiplied by it, and equal means within 1e-5 (DESIGN.md 3)."""

VALIDATION_SHARE = 0.2
"""Of the target's rows, the last ones; once they have chosen, they take part in the fit."""

AMOUNTS = 4.0
"""How much more the scores of amounts count in the choice of rows: their tails make them the hardest to estimate."""

SAME = 1e-6
"""A column of which no larger share of its variance is new, given those before, is taken for one of them."""


@dataclass(frozen=True, eq=False)
class MaskedRows:
    """R rows that each take some columns from a customer and the others from a reference; bool and float32, [R, L]."""

    taken: Bools
    references: Floats

    def __len__(self) -> int:
        return len(self.taken)

    def __getitem__(self, rows: Ints) -> "MaskedRows":
        return MaskedRows(self.taken[rows], self.references[rows])

    def first(self, rows: int) -> "MaskedRows":
        return MaskedRows(self.taken[:rows], self.references[:rows])

    def outcomes(self, network: Scorer, customers: Floats) -> Floats:
        """customers [n, L] -> [n, R, 2 T]."""
        taken, references = torch.from_numpy(self.taken), torch.from_numpy(self.references)
        found = np.empty((len(customers), len(self), 2 * len(network.kinds)), dtype=np.float32)
        for row, customer in enumerate(torch.from_numpy(customers)):
            found[row] = outcomes(network, torch.where(taken, customer, references))
        return found


@dataclass(frozen=True, eq=False)
class Target:
    """What estimates are fitted to: attributions [n, 2 T, P] of customers [n, L] with the outcomes own [n, 2 T].

    base [2 T]: base + attributions.sum(-1) = own.
    """

    customers: Floats
    own: Doubles
    attributions: Doubles
    base: Doubles

    @classmethod
    def of(cls, game: Game, customers: Floats, label: str) -> "Target":
        """Computes the exact attributions of customers [n, L]. label: of the progress bar."""
        own = outcomes(game.network, torch.from_numpy(customers)).astype(np.float64)
        base = base_outcomes(game.network, game.background)
        return cls(customers, own, game.attributions(customers, label), base)

    def first(self, rows: int) -> "Target":
        return Target(self.customers[:rows], self.own[:rows], self.attributions[:rows], self.base)

    @property
    def sizes(self) -> Doubles:
        """Mean |attribution| of each outcome, [2 T]; 1 where nothing is attributed."""
        means = np.abs(self.attributions).mean(axis=(0, 2))
        return np.asarray(np.where(means > 0, means, 1.0))

    @property
    def whole(self) -> Doubles:
        """The size of what is split up, [n, 2 T]."""
        whole = np.abs(self.own) + np.abs(self.base) + np.abs(self.attributions).sum(axis=2)
        return np.asarray(np.maximum(whole, np.finfo(np.float64).tiny))

    @property
    def trust(self) -> Doubles:
        """How much each row counts for each outcome, [n, 2 T]: the less, the larger what is split up.

        Squared errors of amounts would otherwise be those of a few enormous customers.
        """
        return np.asarray(self.whole.mean(axis=0) / self.whole)


def draw_masked_rows(game: Game, count: int, rng: np.random.Generator) -> MaskedRows:
    """`count` candidates: a fifth of them take what is missing from the mean row of the background, the others from
    any row of it."""
    members, background = game.coalitions.members[1:-1], game.background
    coalition, row = rng.integers(len(members), size=count), rng.integers(len(background.rows), size=count)
    plain = rng.permutation(len(members))[: count // 5]
    coalition[: len(plain)], row[: len(plain)] = plain, len(background.rows)
    references = np.vstack([background.rows, background.mean])
    return MaskedRows(members[coalition][:, game.owners], references[row])


def select(network: Scorer, candidates: MaskedRows, target: Target, count: int) -> MaskedRows:
    """The `count` candidates whose outcomes explain the target best, the best first.

    Forward selection by blocks of 2 T columns (orthogonal matching pursuit, Pati et al. 1993), on the Gram matrix: each
    step adds the row whose outcomes, one at a time, remove most of what is left of the standardised attributions.
    """
    values = candidates.outcomes(network, target.customers)
    rows, _, width = values.shape
    free, _ = np.linalg.qr(np.column_stack([np.ones(rows), target.own]))
    columns = _standardised(values.reshape(rows, -1).astype(np.float64))
    columns -= free @ (free.T @ columns)
    emphasis = np.array([AMOUNTS if kind == "amount" else 1.0 for kind in network.kinds] + [1.0] * len(network.kinds))
    aims = (target.attributions * (emphasis / target.sizes)[None, :, None]).reshape(rows, -1)
    aims -= free @ (free.T @ aims)

    gram, left = columns.T @ columns, columns.T @ aims
    norms = gram.diagonal().copy()
    basis = np.zeros((len(gram), min(count, len(candidates)) * width))
    used = 0
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        gains = ((left**2).sum(axis=1) / (norms + SAME * rows)).reshape(-1, width).sum(axis=1)
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
        for column in range(chosen[-1] * width, (chosen[-1] + 1) * width):
            if norms[column] > SAME * rows:
                direction = (gram[:, column] - basis[:, :used] @ basis[column, :used]) / np.sqrt(norms[column])
                left -= np.outer(direction, left[column] / np.sqrt(norms[column]))
                norms = np.maximum(norms - direction**2, 0.0)
                basis[:, used] = direction
                used += 1
    return candidates[np.array(chosen, dtype=np.int64)]


def fit(network: Scorer, rows: MaskedRows, target: Target) -> Estimate:
    """The weights of these masked rows, by ridge regression; the customer's own outcomes are not penalised."""
    values = rows.outcomes(network, target.customers).astype(np.float64)
    count, _, width = values.shape
    parts = target.attributions.shape[2]
    weights, own = np.zeros((len(rows), width, width, parts)), np.zeros((width, width, parts))
    constant = np.zeros((width, parts))
    for outcome in range(width):
        usable = _usable(network.kinds, outcome)
        free = np.column_stack([np.ones(count), target.own[:, usable]])
        slopes, free_slopes = _ridge(
            values[:, :, usable].reshape(count, -1), free, target.attributions[:, outcome], target.whole[:, outcome]
        )
        weights[:, usable, outcome] = slopes.reshape(len(rows), len(usable), parts)
        constant[outcome], own[usable, outcome] = free_slopes[0], free_slopes[1:]
    # What least squares promises up to rounding is made exact: the parts sum to own - base, whatever the masked rows.
    weights -= weights.mean(axis=-1, keepdims=True)
    own += (np.eye(width) - own.sum(axis=-1))[..., None] / parts
    constant -= (target.base + constant.sum(axis=-1))[:, None] / parts
    return Estimate(
        rows.taken,
        rows.references,
        weights.reshape(len(rows) * width, width * parts),
        own.reshape(width, width * parts),
        constant.reshape(width * parts),
        target.base,
    )


def _usable(kinds: Sequence[str], outcome: int) -> list[int]:
    """Outcomes that may help to explain this one: all but the scores of other amounts, which know no bounds."""
    tasks = len(kinds)
    return [o for o in range(2 * tasks) if o == outcome or o >= tasks or kinds[o] != "amount"]


def _ridge(columns: Doubles, free: Doubles, aims: Doubles, whole: Doubles) -> tuple[Doubles, Doubles]:
    """Slopes of columns [n, c] and of free [n, f] that give aims [n, P], parts of wholes [n].

    With the penalty that is best on the last rows, of those under which the estimate does not amplify too much.
    """
    trust, fitted = whole.mean() / whole, len(columns) - int(len(columns) * VALIDATION_SHARE)
    errors = []
    for slopes, free_slopes in _solve(columns[:fitted], free[:fitted], aims[:fitted], trust[:fitted], PENALTIES):
        missed = columns[fitted:] @ slopes + free[fitted:] @ free_slopes - aims[fitted:]
        errors.append(float(np.abs(missed).mean()))
    found = _solve(columns, free, aims, trust, PENALTIES)
    for choice in np.argsort(errors):
        slopes, free_slopes = found[choice]
        added = np.abs(columns) @ np.abs(slopes) + np.abs(free) @ np.abs(free_slopes)
        if (added.max(axis=1) <= AMPLIFIED * whole).all():
            return slopes, free_slopes
    return found[-1]


def _solve(
    columns: Doubles, free: Doubles, aims: Doubles, trust: Doubles, penalties: Sequence[float]
) -> list[tuple[Doubles, Doubles]]:
    """One solution a penalty, from one decomposition."""
    root = np.sqrt(trust)[:, None]
    columns, free, aims = columns * root, free * root, aims * root
    spanned, triangle = np.linalg.qr(free)
    rest = columns - spanned @ (spanned.T @ columns)
    scale = np.maximum(np.sqrt((rest**2).mean(axis=0)), np.sqrt(SAME * (columns**2).mean(axis=0)))
    rest /= np.maximum(scale, np.finfo(np.float64).tiny)
    values, vectors = np.linalg.eigh(rest.T @ rest / len(rest))
    inner = vectors.T @ (rest.T @ aims) / len(rest)
    solutions = []
    for penalty in penalties:
        slopes = vectors @ (inner / (np.maximum(values, 0.0) + penalty)[:, None]) / scale[:, None]
        solutions.append((slopes, np.linalg.lstsq(triangle, spanned.T @ (aims - columns @ slopes), rcond=None)[0]))
    return solutions


def _standardised(columns: Doubles) -> Doubles:
    centred = columns - columns.mean(axis=0)
    return np.asarray(centred / np.maximum(centred.std(axis=0), np.finfo(np.float64).tiny))
