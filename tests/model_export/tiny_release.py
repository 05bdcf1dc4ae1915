"""A small release, really trained, exported, verified and published, without Feast or Redis: for every test that
needs a model repository."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from feature_client.contract import CONTRACT_KEY, Contract, Task
from feature_client.release import Release
from feature_client.schema import DAY_S, Feature, FeatureBatch, FeatureSchema, JoinKey
from feature_client.texts import FeatureTexts, Frames, Texts
from feature_client.verdicts import PREFIX
from model_export.explanation import Settings
from model_export.gates import admit, judge
from model_export.pipeline import Run, publish_run, train_run
from model_export.publish import Artifacts, publish
from model_export.republish import artifacts_of
from model_export.rows import Dataset, Rows, fit_vocabularies, make_rows
from model_export.tasks import engagement_tasks

AS_OF = datetime(2026, 6, 1, tzinfo=UTC)
"""The instant at which the tiny data set is served: the last of its test cutoffs is 90 days before."""

LIGHT = Settings(
    background_rows=8,
    population=128,
    probes=64,
    rows=300,
    selecting_rows=200,
    candidates=200,
    fast_rows=32,
    precise_rows=96,
    held_out=50,
    fast_bound=0.5,
    precise_bound=0.5,
    features_fitted=120,
    features_orders=32,
    features_selecting=100,
    features_candidates=24,
    features_rows=8,
    features_held_out=24,
    features_held_out_orders=64,
    features_bound=0.9,
    differences_candidates=8,
    differences_rows=4,
)
"""Explanations in a second or two; too light to be good."""

COUNTRIES = ("United Kingdom", "France", "Germany", "Eire", None)
CATEGORIES = ("lights", "kitchen", "garden", "toys", None)
CHANNELS = ("web", "app", "shop", None)

ACTIONABLE = ("orders_90d", "spend_90d", "mean_gap_days", "sessions_30d", "preferred_channel")
"""Features of which somebody can bring about another value."""

GROUPS = {
    "recency": "How recently they bought",
    "frequency": "How often they buy",
    "spend": "How much they spend",
    "rhythm": "The rhythm of their orders",
    "products": "What they buy",
    "returns": "What they send back",
    "engagement": "How they engage",
    "context": "Where and when",
}

TEXTS = {
    "en": Texts(
        features={
            "days_since_purchase": FeatureTexts(say="no purchase for {value}", say_missing="no purchase so far"),
            "orders_90d": FeatureTexts(say="{value} in 90 days", say_zero="no order in 90 days"),
        },
        tasks={"churn_90d": "churn"},
        units={"days": "day|days", "orders": "order|orders"},
        currencies={"GBP": "£{number}"},
    ),
    "de": Texts(
        frames=Frames(
            number="1.234,5",
            raises="{what}: erhöht {task} um {amount}",
            lowers="{what}: senkt {task} um {amount}",
            points="{number} {Prozentpunkt|Prozentpunkte}",
        ),
        features={"days_since_purchase": FeatureTexts(say="kein Kauf seit {number} {Tag|Tagen}")},
        tasks={"churn_90d": "die Abwanderung"},
    ),
}
"""Some words in two languages; the rest falls back."""


def tiny_schema(without: Sequence[str] = ()) -> FeatureSchema:
    """12 numbers and 3 categories in 8 groups over three views, without vocabularies; less the features named."""

    def number(name: str, group: str, view: str, unit: str = "", dtype: str = "float64") -> Feature:
        label = name.replace("_", " ").capitalize()
        return Feature(name, "numeric", group, label, unit, view, name, dtype, default=0.0, max_age_s=30 * DAY_S)

    def category(name: str, group: str, view: str) -> Feature:
        return Feature(name, "category", group, name.replace("_", " ").capitalize(), "", view, name, "string")

    features = (
        number("orders_30d", "frequency", "orders", "orders"),
        number("orders_90d", "frequency", "orders", "orders"),
        number("orders_365d", "frequency", "orders", "orders"),
        number("spend_90d", "spend", "orders", "GBP"),
        number("spend_365d", "spend", "orders", "GBP"),
        number("returns_365d", "returns", "orders", "returns"),
        category("top_category", "products", "orders"),
        Feature(
            "days_since_purchase", "elapsed", "recency", "Days since last purchase", "days",
            "lifetime", "last_purchase_at", "timestamp", default=365.0,
        ),
        number("lifetime_orders", "frequency", "lifetime", "orders"),
        Feature(
            "mean_gap_days", "numeric", "rhythm", "Mean days between orders", "days",
            "lifetime", "mean_gap_days", "float64", nullable=True,
        ),
        category("country", "context", "lifetime"),
        number("sessions_30d", "engagement", "engagement", "sessions", "int64"),
        category("preferred_channel", "engagement", "engagement"),
        Feature("season_sin", "calendar", "context", "Season (sine)"),
        Feature("season_cos", "calendar", "context", "Season (cosine)"),
    )  # fmt: skip
    tagged = (replace(feature, actionable=feature.name in ACTIONABLE) for feature in features)
    kept = tuple(feature for feature in tagged if feature.name not in without)
    groups = {group: label for group, label in GROUPS.items() if any(feature.group == group for feature in kept)}
    entity_fields = dict.fromkeys(("orders", "lifetime", "engagement"), "customer_id")
    texts = {language: _texts_of(kept, texts) for language, texts in TEXTS.items()}
    return FeatureSchema("rapport", (JoinKey("customer_id"),), kept, entity_fields, groups, texts=texts)


def _texts_of(features: Sequence[Feature], texts: Texts) -> Texts:
    names = {feature.name for feature in features}
    return replace(texts, features={name: said for name, said in texts.features.items() if name in names})


@dataclass(frozen=True)
class World:
    """Stored values with the labels that follow from them: busy customers buy again, the longer silent the less."""

    batch: FeatureBatch
    as_of: npt.NDArray[np.float64]
    labels: npt.NDArray[np.float32]


def tiny_world(schema: FeatureSchema, rows: int, cutoff: datetime, rng: np.random.Generator) -> World:
    at = cutoff.timestamp()
    rate = rng.gamma(0.8, 6.0, rows)  # orders a year
    year = 1.0 + rng.poisson(rate)
    quarter = rng.binomial(year.astype(int), 0.25).astype(float)
    month = rng.binomial(quarter.astype(int), 1 / 3).astype(float)
    silent_days = np.minimum(rng.exponential(365.0 / (1.0 + rate)), 364.0)
    value = rng.lognormal(3.5, 0.7, rows)
    lifetime = year + rng.poisson(rate)
    columns = {
        "orders_30d": month,
        "orders_90d": quarter,
        "orders_365d": year,
        "spend_90d": quarter * value,
        "spend_365d": year * value,
        "returns_365d": rng.binomial(year.astype(int), 0.1).astype(float),
        "top_category": rng.choice(np.array(CATEGORIES, dtype=object), rows),
        "last_purchase_at": at - silent_days * DAY_S,
        "lifetime_orders": lifetime,
        "mean_gap_days": np.where(lifetime > 1, 365.0 / lifetime, np.nan),
        "country": rng.choice(np.array(COUNTRIES, dtype=object), rows, p=[0.7, 0.1, 0.1, 0.05, 0.05]),
        "sessions_30d": rng.poisson(1.0 + rate / 4).astype(float),
        "preferred_channel": rng.choice(np.array(CHANNELS, dtype=object), rows),
    }
    event_times = np.full((rows, len(schema.views)), at - 3600.0)
    # Some customers have no engagement row, as after a failed materialization.
    absent = rng.random(rows) < 0.05
    columns["sessions_30d"][absent] = np.nan
    columns["preferred_channel"][absent] = None
    if "engagement" in schema.views:
        event_times[absent, schema.views.index("engagement")] = np.nan

    logit = 0.9 * np.log1p(quarter) + 0.5 * np.log1p(year) - silent_days / 60.0 - 0.3
    soon = rng.random(rows) < 1 / (1 + np.exp(-logit))
    later = soon | (rng.random(rows) < 1 / (1 + np.exp(-logit - 0.8)))
    spend = np.where(later, value * (1 + rng.poisson(rate / 4)) * rng.lognormal(0, 0.3, rows), 0.0)
    labels = np.stack([soon, ~later, spend], axis=1).astype(np.float32)
    return World(schema.batch(columns, event_times), np.full(rows, at), labels)


def tiny_dataset(rows: int = 6_000, seed: int = 0, without: Sequence[str] = ()) -> Dataset:
    schema, tasks = tiny_schema(without), tuple(labelled.task for labelled in engagement_tasks("GBP"))
    rng = np.random.default_rng(seed)
    cutoffs = [AS_OF - timedelta(days=days) for days in (270, 180, 90)]
    worlds = [tiny_world(schema, size, t, rng) for size, t in zip((rows, rows // 3, rows // 3), cutoffs, strict=True)]
    schema = fit_vocabularies(schema, worlds[0].batch)
    train, validation, test = (_rows(schema, tasks, world) for world in worlds)
    about = {"data": "tiny", "train_rows": str(len(train)), "train_cutoffs": f"{cutoffs[0]:%Y-%m-%d}"}
    return Dataset(schema, tasks, train, validation, test, about, digest="tiny")


def tiny_run(rows: int = 6_000, seed: int = 0, epochs: int = 6, without: Sequence[str] = ()) -> Run:
    return train_run(tiny_dataset(rows, seed, without), seed=seed, epochs=epochs, settings=LIGHT)


def tiny_trees(rows: int = 1_500) -> Run:
    """The same of boosted trees."""
    return train_run(tiny_dataset(rows), estimator="lightgbm", settings=LIGHT)


def judged(run: Run) -> Run:
    """With what its gates say of it, compared with nobody, in its contract; it may be published in any case."""
    return replace(run, contract=admit(run.contract, judge(run.contract, run.holdout, None), "it is tiny"))


def build_tiny_release(root: Path, run: Run | None = None) -> Release:
    """Publishes into the model repository `root` and makes it the champion. A run given is not trained again."""
    return publish_run(judged(run or tiny_run()), root)


def with_explainers(release: Release, root: Path, explainers: Sequence[str]) -> Release:
    """The release once more in the model repository `root`, with these of its explainers alone. No route changes."""
    explanation = release.contract.explanation
    kept = {explainer: explanation.explainers[explainer] for explainer in explainers}
    return with_contract(release, root, replace(release.contract, explanation=replace(explanation, explainers=kept)))


def with_contract(release: Release, root: Path, contract: Contract) -> Release:
    """The release once more in the model repository `root`, with another contract. No route changes."""
    given = artifacts_of(release)
    with tempfile.TemporaryDirectory() as scratch:

        def stamped(graph: Path, name: str) -> Path:
            """The contract is another one, and a graph names its own."""
            model = onnx.load(graph)
            onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.digest})
            onnx.save(model, Path(scratch) / name)
            return Path(scratch) / name

        graphs = {name: stamped(given.explain_graphs[name], name) for name in contract.explanation.explainers}
        artifacts = Artifacts(stamped(given.score_graph, "score"), graphs, given.golden, given.card)
        return publish(root, contract, artifacts)


def with_gates(release: Release, root: Path, **said: str) -> Release:
    """The release once more, with this, and no more, in its contract about its gates: `passed="7 of 10"`."""
    others = {key: value for key, value in release.contract.training.items() if not key.startswith(PREFIX)}
    training = {**others, **{PREFIX + key: value for key, value in said.items()}}
    return with_contract(release, root, replace(release.contract, training=training))


def _rows(schema: FeatureSchema, tasks: tuple[Task, ...], world: World) -> Rows:
    customers = np.array([str(10_000 + row) for row in range(len(world.labels))], dtype=object)
    soon, silent = world.labels[:, 0] == 1, world.labels[:, 1] == 1
    # Of those who come back, the labels say no more than within how many days: any in between will do.
    silence = np.where(soon, 15.0, np.where(silent, np.inf, 30.0 + np.arange(len(soon)) % 60))
    return make_rows(schema, tasks, world.batch, world.as_of, labels=world.labels, customers=customers, silence=silence)
