"""Makes a trained network explainable: its background, its estimates, and what those are worth on held-out rows.

This takes minutes, nearly all of it for exact attributions of the rows that estimates are fitted to; so the result is
kept, under a digest of all that it follows from.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from feature_client.contract import (
    RTOL,
    Errors,
    Explainer,
    Explanation,
    Importance,
    attribution_scale,
    discrepancy,
    eligible_rows,
)
from feature_client.schema import FeatureSchema
from model_export.attribution import EXACT_GROUPS, Estimate, EstimatedShapley, ExactShapley, ExplainedNetwork
from model_export.background import choose_background, draw_probes
from model_export.detail import DetailEstimate, EstimatedOwen, draw_places, has_slopes
from model_export.detail import fit as fit_detail
from model_export.detail import select as select_places
from model_export.estimators import Target, draw_masked_rows, fit, select
from model_export.game import (
    AttributionError,
    Background,
    Bools,
    Doubles,
    Floats,
    Game,
    Ints,
    base_outcomes,
    coalitions_for,
    group_owners,
    lift,
    sampled_coalitions,
)
from model_export.owen import FeatureGame, sample_owen
from model_export.rows import Dataset, Rows
from model_export.scorer import Scorer

MAX_GROUPS = 12
"""DESIGN.md 7. With more, a thousand coalitions are no reference to fit anything to."""

MIN_GROUPS = 2
"""One alone contributes all that there is."""

SHIFTED_SHARE = 0.1
"""Of the rows fitted to: their columns are shuffled. It halves the error on customers like nobody."""

SHIFTED_FACTOR = 3.0
"""How many times the bound of held-out rows the errors on shuffled rows may be."""

FEW = 32
"""Rows for figures that take every coalition again."""

FEATURES = Importance.FEATURES_BY
"""The explainer of single features."""

BATCH = 16
"""Rows that a graph explains at once here."""


@dataclass(frozen=True)
class Settings:
    """How much work goes into explanations. The bounds are of relative errors on held-out rows; more is refused."""

    background_rows: int = 32
    population: int = 1_024
    """Training rows that the background stands for, and that it is chosen among."""

    probes: int = 1_024
    coalitions: int = 1_024
    """Of exact attributions, at most: where there are more, they are sampled."""

    rows: int = 2_400
    """Fitted to: training and validation rows in equal parts, so that one season is not all that estimates know."""

    selecting_rows: int = 1_200
    candidates: int = 768
    fast_rows: int = 80
    precise_rows: int = 256
    held_out: int = 300
    fast_bound: float = 0.08
    precise_bound: float = 0.05

    features_fitted: int = 2_000
    """Rows that attributions of single features are fitted to, of `rows`, and how many orders are drawn for each."""

    features_orders: int = 128
    features_selecting: int = 800
    features_candidates: int = 128
    features_rows: int = 48
    """Masked rows at which the slopes of the trunk are taken."""

    differences_candidates: int = 48
    differences_rows: int = 12
    """In place of both, for models without slopes: each of these rows runs once more for every feature."""

    features_held_out: int = 128
    features_held_out_orders: int = 512
    features_bound: float = 0.40


FULL = Settings()


@dataclass(frozen=True, eq=False)
class Sample:
    """Raw rows: numeric [rows, N], categorical [rows, K]."""

    numeric: Floats
    categorical: Ints

    def __len__(self) -> int:
        return len(self.numeric)

    def __getitem__(self, rows: slice | Ints) -> "Sample":
        return Sample(self.numeric[rows], self.categorical[rows])

    def joined(self, other: "Sample") -> "Sample":
        return Sample(
            np.concatenate([self.numeric, other.numeric]), np.concatenate([self.categorical, other.categorical])
        )

    def shuffled(self, rng: np.random.Generator) -> "Sample":
        """Each column on its own: every value is somebody's, and no row is anybody."""
        return Sample(rng.permuted(self.numeric, axis=0), rng.permuted(self.categorical, axis=0))

    def lifted(self, network: Scorer) -> Floats:
        return lift(network, self.numeric, self.categorical)


@dataclass(frozen=True, eq=False)
class Explained:
    """What the explanation graphs of a network are made of. estimates: by explainer; `exact` needs none.

    typical: the rows of the background, raw, for whoever explains the score graph itself. detail: of `features`.
    """

    background: Background
    typical: Sample
    estimates: Mapping[str, Estimate]
    detail: DetailEstimate

    def graph(self, network: Scorer, schema: FeatureSchema, explainer: str) -> ExplainedNetwork:
        if explainer == "exact":
            return ExactShapley(network, group_owners(network, schema), self.background).eval()
        if explainer == FEATURES:
            return EstimatedOwen(network, self.detail).eval()
        return EstimatedShapley(network, self.estimates[explainer]).eval()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For a file; `from_arrays` reads them back."""
        parts: dict[str, Background | Sample | Estimate | DetailEstimate]
        parts = {"background": self.background, "typical": self.typical, FEATURES: self.detail, **self.estimates}
        return {
            f"{part}.{field.name}": getattr(value, field.name)
            for part, value in parts.items()
            for field in fields(value)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Explained":
        """Raises KeyError where one is missing."""

        def part(name: str, kind: type[Any]) -> Any:
            return kind(**{field.name: arrays[f"{name}.{field.name}"] for field in fields(kind)})

        names = dict.fromkeys(name.partition(".")[0] for name in arrays if "." in name)
        estimates = {name: part(name, Estimate) for name in names if name not in ("background", "typical", FEATURES)}
        return cls(part("background", Background), part("typical", Sample), estimates, part(FEATURES, DetailEstimate))


def explain(
    network: Scorer, dataset: Dataset, sample: Sample, settings: Settings, *, seed: int, cache: Path | None = None
) -> tuple[Explained, Explanation]:
    """sample: test rows; the first `held_out` of them measure errors, all of them say what matters on the whole.

    cache: a directory. Raises AttributionError where an error is above its bound.
    """
    groups = len(dataset.schema.groups)
    if groups > MAX_GROUPS:
        raise AttributionError(f"{groups} groups; explanations take at most {MAX_GROUPS}")
    if groups < MIN_GROUPS:
        raise AttributionError(f"{groups} group; a score is explained by what at least {MIN_GROUPS} contribute")
    if cache is None:
        return _make(network, dataset, sample, settings, np.random.default_rng(seed))
    kept = cache / f"{_digest(network, dataset, sample, settings, seed)}.npz"
    found = _read(kept)
    if found is None:
        found = _make(network, dataset, sample, settings, np.random.default_rng(seed))
        _write(found, kept)
    return found


def attributions_of(graph: ExplainedNetwork, sample: Sample) -> Floats:
    """[rows, 2 T, P]."""
    found = []
    with torch.no_grad():
        for start in range(0, len(sample), BATCH):
            part = sample[start : start + BATCH]
            outputs = graph(torch.from_numpy(part.numeric), torch.from_numpy(part.categorical))
            found.append(torch.cat([outputs[1], outputs[4]], dim=1).numpy())
    return np.concatenate(found)


def relative_errors(
    found: Floats | Doubles, exact: Doubles, base: Doubles | float = 0.0, counts: Bools | None = None
) -> Doubles:
    """Of attributions [rows, 2 T, P]: mean |difference| over mean |exact|, [2 T].

    base [2 T]: what the attributions start from. Of an outcome that hardly ever differs from it, attributions are
    below what float32 resolves; they count as large as that. counts [rows, 2 T]: for whom an outcome is defined; None:
    for all, as where it is for nobody.
    """
    weights = np.ones(exact.shape[:2]) if counts is None else np.where(counts.any(axis=0), counts, 1.0)

    def mean(sizes: Doubles) -> Doubles:
        return np.asarray((sizes.mean(axis=2) * weights).sum(axis=0) / weights.sum(axis=0))

    sizes = mean(np.abs(exact))
    resolved = RTOL * (np.abs(base) + sizes * exact.shape[2])
    sizes = np.maximum(np.maximum(sizes, resolved), np.finfo(np.float64).tiny)
    return np.asarray(mean(np.abs(found - exact)) / sizes)


def defined(dataset: Dataset, rows: Sample) -> Bools:
    """For whom scores and margins are: [rows, 2 T]."""
    return np.tile(eligible_rows(dataset.schema, dataset.tasks, rows.numeric), 2)


def hold(name: str, error: Errors, bound: float) -> None:
    """Raises AttributionError where an explainer's error is above its bound."""
    for what, errors, most in (
        ("held-out rows", error.scores, bound),
        ("the margins of held-out rows", error.margins, bound),
        ("shuffled rows", error.shifted, SHIFTED_FACTOR * bound),
    ):
        for task, value in errors.items():
            if not value <= most:  # also true of NaN
                raise AttributionError(
                    f"{name} explanations of {task} are {value:.1%} off on {what}; at most {most:.0%} are released"
                )


def importance(explained: Explained, network: Scorer, dataset: Dataset, sample: Sample) -> Importance:
    """Mean |contribution| of each group, and of each feature, over those of the sample for whom a score is defined."""
    schema = dataset.schema
    eligible = eligible_rows(schema, dataset.tasks, sample.numeric)

    def means(explainer: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
        sizes = np.abs(attributions_of(explained.graph(network, schema, explainer), sample))
        found: dict[str, dict[str, float]] = {task.name: {} for task in dataset.tasks}
        for position, task in enumerate(dataset.tasks):
            if eligible[:, position].any():
                mean = sizes[eligible[:, position], position].mean(axis=0, dtype=np.float64)
                found[task.name] = dict(zip(names, mean.tolist(), strict=True))
        return found

    groups = means(Importance.GROUPS_BY, list(schema.groups))
    return Importance(len(sample), groups, means(Importance.FEATURES_BY, list(schema.by_name)))


def _make(
    network: Scorer, dataset: Dataset, sample: Sample, settings: Settings, rng: np.random.Generator
) -> tuple[Explained, Explanation]:
    schema, tasks = dataset.schema, [task.name for task in dataset.tasks]
    owners = group_owners(network, schema)
    coalitions = coalitions_for(len(schema.groups), settings.coalitions, rng)
    customers = _rows_to_fit(dataset, settings.rows, rng).lifted(network)
    drawn = _draw(dataset.train, settings.population, rng)
    population = drawn.lifted(network)
    probes = draw_probes(customers, coalitions.members, owners, settings.probes, rng)
    background = choose_background(network, population, probes, settings.background_rows)
    game = Game(network, owners, background, coalitions)

    target = Target.of(game, customers, "exact values")
    candidates = draw_masked_rows(game, settings.candidates, rng)
    rows = select(network, candidates, target.first(settings.selecting_rows), settings.precise_rows)
    fast = fit(network, rows.first(settings.fast_rows), target)
    typical = drawn[np.array([(population == row).all(axis=1).argmax() for row in background.rows])]
    features = FeatureGame.of(network, schema, background)
    detail = _fit_detail(features, target.first(settings.features_fitted), settings, rng)
    explained = Explained(background, typical, {"fast": fast, "precise": fit(network, rows, target)}, detail)

    explainers = _judge(explained, game, dataset, sample[: settings.held_out], rng)
    explainers[FEATURES] = _judge_detail(explained, features, dataset, sample, settings, rng)
    bounds = {"fast": settings.fast_bound, "precise": settings.precise_bound, FEATURES: settings.features_bound}
    for name, bound in bounds.items():
        hold(name, explainers[name].error, bound)
        explainers[name] = replace(explainers[name], bound=bound)
    explanation = Explanation(
        background_rows=len(background.rows),
        base=dict(zip(tasks, target.base.tolist(), strict=False)),
        margin_base=dict(zip(tasks, target.base[len(tasks) :].tolist(), strict=True)),
        explainers=explainers,
        importance=importance(explained, network, dataset, sample),
    )
    return explained, explanation


def _judge(
    explained: Explained,
    game: Game,
    dataset: Dataset,
    rows: Sample,
    rng: np.random.Generator,
) -> dict[str, Explainer]:
    """What each graph is worth on rows that took no part in the fit, of those for whom a task is defined."""
    schema, tasks = dataset.schema, [task.name for task in dataset.tasks]
    shifted, few = rows.shuffled(rng), slice(FEW)
    exact = game.attributions(rows.lifted(game.network), "held-out rows")
    exact_shifted = game.attributions(shifted.lifted(game.network), "shuffled rows")
    complete = len(game.coalitions) == 2 ** len(schema.groups)
    # What is measured against sampled attributions misses their own error; together they bound the whole.
    reference = np.zeros(exact.shape[1]) if complete else _sampling_error(game, rows[few].lifted(game.network), rng)

    base = base_outcomes(game.network, game.background)

    def judged(name: str, method: str) -> Explainer:
        graph = explained.graph(game.network, schema, name)
        usual = relative_errors(attributions_of(graph, rows), exact, base, defined(dataset, rows)) + reference
        found = attributions_of(graph, shifted)
        strange = relative_errors(found, exact_shifted, base, defined(dataset, shifted)) + reference
        scores, margins = (dict(zip(tasks, part.tolist(), strict=True)) for part in np.split(usual, 2))
        in_strange = dict(zip(tasks, strange.tolist(), strict=False))
        return Explainer(method, graph.rows, Errors(scores, margins, in_strange))

    fitted = "shapley-fitted" if complete else f"shapley-sampled-{len(game.coalitions)}-fitted"
    explainers = {
        name: judged(name, f"{fitted}-{len(estimate.taken)}") for name, estimate in explained.estimates.items()
    }
    if complete and len(schema.groups) <= EXACT_GROUPS:
        graph, none = explained.graph(game.network, schema, "exact"), dict.fromkeys(tasks, 0.0)
        for what, sample, values in (("held-out", rows, exact), ("shuffled", shifted, exact_shifted)):
            _hold_exact(attributions_of(graph, sample[few]), values[few], base, what)
        explainers["exact"] = Explainer("shapley-exact", graph.rows, Errors(none, none, none), bound=0.0)
    return explainers


def _hold_exact(found: Floats, exact: Doubles, base: Doubles, what: str) -> None:
    """Raises AttributionError where float32 rounds off more than what still counts as equal."""
    worst = float(discrepancy(found, exact, attribution_scale(exact, base[None])).max())
    if not worst <= 1.0:  # also true of NaN
        raise AttributionError(f"exact explanations of {what} rows are off by {worst:.3g} times what is allowed")


def _fit_detail(game: FeatureGame, target: Target, settings: Settings, rng: np.random.Generator) -> DetailEstimate:
    """target: of the groups' attributions, in place of which those of features are drawn."""
    drawn = sample_owen(game, target.customers, settings.features_orders, rng, "values of features")
    target = replace(target, attributions=drawn)
    drawn_places, kept = settings.differences_candidates, settings.differences_rows
    if has_slopes(game.network):
        drawn_places, kept = settings.features_candidates, settings.features_rows
    candidates = draw_places(game, drawn_places, rng)
    places = select_places(game, candidates, target.first(settings.features_selecting), kept)
    return fit_detail(game, places, target)


def _judge_detail(
    explained: Explained,
    game: FeatureGame,
    dataset: Dataset,
    sample: Sample,
    settings: Settings,
    rng: np.random.Generator,
) -> Explainer:
    """Against drawn values, whose own error is thereby part of what is stated."""
    rows, tasks = sample[: settings.features_held_out], [task.name for task in dataset.tasks]
    graph, base = explained.graph(game.network, dataset.schema, FEATURES), base_outcomes(game.network, game.background)

    def errors(rows: Sample, label: str) -> Doubles:
        customers, orders = rows.lifted(game.network), settings.features_held_out_orders
        drawn = sample_owen(game, customers, orders, rng, label)
        return relative_errors(attributions_of(graph, rows), drawn, base, defined(dataset, rows))

    usual = errors(rows, "features of held-out rows")
    strange = errors(rows.shuffled(rng), "features of shuffled rows")
    scores, margins = (dict(zip(tasks, part.tolist(), strict=True)) for part in np.split(usual, 2))
    stated = Errors(scores, margins, dict(zip(tasks, strange.tolist(), strict=False)))
    of = "slopes" if has_slopes(game.network) else "differences"
    return Explainer(f"owen-{of}-{len(explained.detail.taken)}", graph.rows, stated, by_feature=True)


def _sampling_error(game: Game, customers: Floats, rng: np.random.Generator) -> Doubles:
    """Relative error of attributions over sampled coalitions, from how two independent samples differ: [2 T]."""
    players, count = game.coalitions.members.shape[1], len(game.coalitions)
    first, second = (
        replace(game, coalitions=sampled_coalitions(players, count, rng)).attributions(customers, "sampling error")
        for _ in range(2)
    )
    base = base_outcomes(game.network, game.background)
    return np.asarray(relative_errors(first, second, base) / np.sqrt(2.0))


def _rows_to_fit(dataset: Dataset, count: int, rng: np.random.Generator) -> Sample:
    """In random order: training and validation rows, and a share of such with their columns shuffled."""
    train, validation = (_draw(rows, count // 2, rng) for rows in (dataset.train, dataset.validation))
    usual = train.joined(validation)[rng.permutation(len(train) + len(validation))]
    strange = int(len(usual) * SHIFTED_SHARE)
    mixed = usual.shuffled(rng)[:strange].joined(usual[strange:])
    return mixed[rng.permutation(len(mixed))]


def _draw(rows: Rows, count: int, rng: np.random.Generator) -> Sample:
    chosen = rng.permutation(len(rows))[:count]
    return Sample(rows.numeric[chosen], rows.categorical[chosen])


def _digest(network: Scorer, dataset: Dataset, sample: Sample, settings: Settings, seed: int) -> str:
    """SHA-256 over all that an explanation follows from, this code included."""
    digest = hashlib.sha256(repr((settings, seed, dataset.schema, dataset.tasks)).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    for rows in (dataset.train, dataset.validation, sample):
        for array in (rows.numeric, rows.categorical):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[Explained, Explanation] | None:
    """What `_write` left there; nothing where it is not there, or not whole: it is a cache."""
    try:
        # Through memory: NumPy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
        return Explained.from_arrays(arrays), msgspec.json.decode(arrays["explanation"].tobytes(), type=Explanation)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, msgspec.MsgspecError):
        return None


def _write(made: tuple[Explained, Explanation], path: Path) -> None:
    explained, explanation = made
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = np.frombuffer(msgspec.json.encode(explanation), dtype=np.uint8)
    np.savez(path, explanation=stated, **explained.arrays())  # type: ignore[arg-type]
