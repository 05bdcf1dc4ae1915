"""SHAP's explainers over the same ONNX Runtime session as our fast graph, for the same question.

The same feature groups are the players, and the same weighted background rows stand in for whoever is absent. What SHAP
asks for at once is scored in one run of the session, with the mixing of rows vectorised; of SHAP's own ways to do this
(one is to give it the background as data with groups) none was faster. Each explainer is given as many evaluations as
it takes to be no further from exact values than the fast graph is, and no more.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from loadtests.answers import WrongAnswer
from loadtests.bench.explainers import EXACT, FAST, Floats, Tensors, cpu_ms, first, session
from loadtests.bench.explanations import attributions, background, held_out, in_groups, relative_error, released
from loadtests.bench.home import PreparationError
from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute

MARK = 10.0
COMPARED = 32
"""Customers whose explanations say how exact an explainer is with a setting."""
TIMED = 4
"""Of them, in each round."""
SAME = 1e-3
"""Of the largest attribution: so close are SHAP with every coalition and the exact graph, which is in float32."""
SAMPLES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384, 512, 768, 1024, 1536, 2048)
PERMUTATIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass
class Game:
    """What SHAP calls: the mean score of the background rows that take some groups from one customer.

    numeric [M, N], categorical [M, K], weights [M]: the background.
    """

    score: InferenceSession
    background: Tensors
    weights: Floats
    group_of: Mapping[str, npt.NDArray[np.int64]]
    customer: Tensors

    def __call__(self, taken: npt.NDArray[Any]) -> Floats:
        """taken [C, G]: 1 where a group is the customer's -> [C, T]."""
        members = np.asarray(taken) > 0.5
        mixed = {
            name: np.where(members[:, None, self.group_of[name]], self.customer[name], rows)  # [C, M, columns]
            for name, rows in self.background.items()
        }
        [scores] = self.score.run(["scores"], {name: rows.reshape(-1, rows.shape[2]) for name, rows in mixed.items()})
        return np.asarray(self.weights @ scores.reshape(len(members), len(self.weights), -1).astype(np.float64))


@dataclass(frozen=True)
class Peer:
    """settings: how much it evaluates, from little to much, in `unit`. explain: attributions [T, G] with a setting."""

    name: str
    settings: tuple[int, ...]
    unit: str
    explain: Callable[[int], Floats]


def explain_peers(plan: Plan) -> Iterator[Row]:
    """CPU time of one thread for one customer, SHAP's over the fast graph's, at equal or better error."""
    release, rows = released(plan.home), first(held_out(plan.home), COMPARED)
    fast = release.explainer(FAST)
    exact = attributions(session(release.explainer(EXACT).file), rows, 4)
    ours = float(max(relative_error(in_groups(fast, release, rows), exact)))
    graph = session(fast.file)
    game = Game(session(release.score_file), *background(plan.home), release.group_of, customer_of(rows, 0))
    found = peers(game, len(release.groups))
    check(explained(found[0], game, first(rows, 1), found[0].settings[-1]), exact[:1])
    for peer in found:
        setting, error = enough(peer, game, rows, exact, ours)
        one = first(rows, 1)
        pairs = list(
            plan.interleaved(
                partial(shap_ms, peer, game, rows, setting),
                partial(cpu_ms, partial(graph.run, None, one), plan.seconds / 8),
            )
        )
        yield Row(
            f"explain_peers_{peer.name}",
            f"CPU for one customer, shap.{peer.name}, {setting} {peer.unit}, against our fast graph",
            ratios(pairs),
            "times",
            mark=MARK,
            at_least=True,
            details={
                "shap_ms": [ms for ms, _ in pairs],
                "fast_ms": [ms for _, ms in pairs],
                "error": error,
                "fast_error": ours,
            },
            absolute=absolute([ms for ms, _ in pairs], [ms for _, ms in pairs], "ms")
            + f"; worst error {error:.3f} against {ours:.3f}",
        )


def check(all_coalitions: Floats, exact: Floats) -> None:
    """Raises WrongAnswer where SHAP was asked for something else than our graphs are."""
    off = np.abs(all_coalitions - exact).max(axis=(0, 2)) / np.abs(exact).max(axis=(0, 2))
    if not (off <= SAME).all():  # never true of NaN
        raise WrongAnswer(
            f"SHAP with every coalition is {off.max():.2g} of the largest attribution off the exact graph"
        )


def customer_of(rows: Tensors, row: int) -> Tensors:
    return {name: values[row] for name, values in rows.items()}


def shap_ms(peer: Peer, game: Game, rows: Tensors, setting: int) -> float:
    """Median of some customers."""
    took = []
    for row in range(min(TIMED, len(rows["numeric"]))):
        game.customer = customer_of(rows, row)
        took.append(cpu_ms(partial(peer.explain, setting), 0.0))
    return float(np.median(took))


def peers(game: Game, groups: int) -> list[Peer]:
    """Raises PreparationError without SHAP."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that SHAP draws with
            import shap  # noqa: PLC0415  (takes seconds, and is of the extra `dev`)
    except ImportError as exc:
        raise PreparationError(f"SHAP is not installed: {exc}") from exc
    # The players themselves are what SHAP masks: 1 for the customer's group, 0 for the background's.
    absent, present = np.zeros((1, groups)), np.ones((1, groups))
    kernel = shap.KernelExplainer(game, absent)
    permutation = shap.PermutationExplainer(game, shap.maskers.Independent(absent))

    def by_kernel(samples: int) -> Floats:
        with warnings.catch_warnings():
            # With too few coalitions for one solution it takes the shortest.
            warnings.filterwarnings("ignore", message="Linear regression equation is singular")
            found = kernel.shap_values(present, nsamples=samples, l1_reg=False, silent=True)  # [1, G, T]
        return np.asarray(found[0].T)

    def by_permutation(permutations: int) -> Floats:
        found = permutation(present, max_evals=permutations * (2 * groups + 1), silent=True).values  # [1, G, T]
        return np.asarray(found[0].T)

    every = 2**groups - 2
    samples = (*(size for size in SAMPLES if size < every), every)
    return [
        Peer("KernelExplainer", samples, f"of {every} coalitions", by_kernel),
        Peer("PermutationExplainer", PERMUTATIONS, "permutations there and back", by_permutation),
    ]


def enough(peer: Peer, game: Game, rows: Tensors, exact: Floats, wanted: float) -> tuple[int, float]:
    """The least setting with an error of at most `wanted`, else the largest; and its error."""
    for setting in peer.settings:
        # SHAP draws its coalitions from NumPy's own generator.
        np.random.seed(0)
        error = float(max(relative_error(explained(peer, game, rows, setting), exact)))
        if error <= wanted:
            break
    return setting, error


def explained(peer: Peer, game: Game, rows: Tensors, setting: int) -> Floats:
    """[rows, T, G]"""
    found = []
    for row in range(len(rows["numeric"])):
        game.customer = customer_of(rows, row)
        found.append(peer.explain(setting))
    return np.stack(found)
