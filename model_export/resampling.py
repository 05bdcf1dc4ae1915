"""How sure a figure is: its spread over data sets of customers drawn with replacement.

Customers are drawn and not rows: the rows of one customer at several cutoffs are no independent evidence. Every model
is measured on the same draws, so a difference has the (much narrower) interval of a difference (Efron and Tibshirani
1993, "An Introduction to the Bootstrap", ch. 8). Rows are repeated here, for figures by code that takes no weights;
bootstrap.py gives weights to those that do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_client.schema import FloatArray
from model_export.bootstrap import ends


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    @classmethod
    def of(cls, values: FloatArray) -> "Interval":
        """The ends of what was drawn (see bootstrap.ends)."""
        return cls(*ends(values))

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


def draws(customers: npt.NDArray[np.object_], count: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """`count` times the rows of as many customers as there are, drawn with replacement. customers [rows]."""
    rng = np.random.default_rng(seed)
    _, owner = np.unique(customers.astype(str), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner)
    starts = np.cumsum(sizes) - sizes
    for _ in range(count):
        drawn = rng.integers(len(sizes), size=len(sizes))
        lengths = sizes[drawn]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield order[np.repeat(starts[drawn], lengths) + within]
