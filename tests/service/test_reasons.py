"""Reasons in words: values, contributions and sentences of what we ship, of a project without any words, and sums."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from feature_client.clock import to_iso
from feature_client.contract import (
    Contract,
    Distribution,
    Errors,
    Explainer,
    Explanation,
    Importance,
)
from feature_client.offline import registry
from feature_client.offline.workspace import Workspace
from feature_client.schema import Encoded, Feature, FeatureSchema, JoinKey
from feature_client.texts import FeatureTexts, Frames, Texts
from model_export.tasks import engagement_tasks
from service.errors import InvalidRequest
from service.protocol import Reason, TaskExplanation
from service.reasons import Asked, ReasonWriter
from service.wording import LONGEST_WORD, Space
from tests.service.test_predict import explain as explain_over_http

AS_OF = 1_780_272_000.0  # 2026-06-01
TASKS = ("purchase_30d", "churn_90d", "spend_90d")
WORDS = ("web", "{value} {0} %(number)s %s", "two\nlines\u202eturned", "x" * 500, "(unseen)")
QUANTILES = tuple(float(number) for number in range(0, 105, 5))

GROUPS, FEATURES = Asked(), Asked(explainer="features", detail="features")


def contract_of(schema: FeatureSchema) -> Contract:
    """With an explainer by groups and one by features, and numbers that are spread evenly from 0 to 100."""
    error = Errors(dict.fromkeys(TASKS, 0.04), dict.fromkeys(TASKS, 0.02), dict.fromkeys(TASKS, 0.1))
    shares = {"web": 0.5, "(unseen)": 0.125}
    weights = {"orders_90d": 3.0, "orders_30d": 2.0, "mean_gap_days": 5.0, "season_cos": 9.0}
    known = {name: weight for name, weight in weights.items() if name in schema.by_name}
    matters = dict.fromkeys(TASKS, known)
    return Contract(
        model="engagement",
        schema=schema,
        tasks=tuple(replace(labelled.task, eligibility=None) for labelled in engagement_tasks("GBP")),
        explanation=Explanation(
            32,
            dict.fromkeys(TASKS, 0.1),
            dict.fromkeys(TASKS, -1.0),
            {
                "fast": Explainer("shapley-fitted-64", 64, error),
                "features": Explainer("integrated-gradients-8", 8, error, by_feature=True),
            },
            Importance(1_000, {}, matters),
        ),
        reference={
            **{feature.name: Distribution(0.1, QUANTILES) for feature in schema.numeric},
            **{feature.name: Distribution(0.1, shares=shares) for feature in schema.categorical},
        },
        training={},
        metrics={},
        digests={},
    )


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> ReasonWriter:
    """Of our own definitions."""
    schema = registry.apply(Workspace(tmp_path_factory.mktemp("schema")))
    vocabularies = {feature.name: WORDS for feature in schema.categorical}
    return ReasonWriter(contract_of(schema.with_vocabularies(vocabularies)))


def encode(schema: FeatureSchema, values: Mapping[str, Any], as_of: float = AS_OF) -> Encoded:
    """One row with these values; all others are missing."""
    none: list[Any] = [None]
    columns = {str(feature.field): none for feature in schema.features if feature.field}
    numbers = {str(feature.field): [math.nan] for feature in schema.stored_numbers}
    batch = schema.batch(columns | numbers, np.full((1, len(schema.views)), as_of))
    return schema.encode(batch, as_of, [values])


def explain(
    writer: ReasonWriter,
    values: Mapping[str, Any],
    parts: Mapping[str, float],
    *,
    task: str = "churn_90d",
    asked: Asked = GROUPS,
    as_of: float = AS_OF,
) -> TaskExplanation:
    """parts: contributions to `task` by group, or by feature where `asked` has an explainer by feature."""
    contract = writer.contract
    names = contract.task_names
    by_feature = contract.explanation.explainers[asked.explainer].by_feature
    columns = [feature.name for feature in contract.schema.features] if by_feature else list(contract.schema.groups)
    attributions = np.zeros((1, len(names), len(columns)), dtype=np.float32)
    for name, contribution in parts.items():
        attributions[0, names.index(task), columns.index(name)] = contribution
    base = np.full((1, len(names)), 0.25, dtype=np.float32)
    whole = (base + attributions.sum(axis=2)).astype(np.float32)
    outputs = {"scores": whole, "attributions": attributions, "base": base}
    if asked.space == "margin":
        # Of the score, and none of it may be shown.
        outputs = {name: np.full_like(tensor, 7.0) for name, tensor in outputs.items()}
        outputs |= {"margins": whole, "margin_attributions": attributions, "margin_base": base}
    found = writer.explanations(asked, encode(contract.schema, values, as_of), outputs, 0, to_iso(as_of))
    assert list(found) == list(names)
    explanation = found[task]
    assert explanation is not None
    return explanation


def first(writer: ReasonWriter, feature: str, value: Any, contribution: float = 0.12, **more: Any) -> Reason:
    """The reason in which this feature alone contributes."""
    asked = Asked(explainer="features", detail="features", language=more.pop("language", "en"))
    return explain(writer, {feature: value}, {feature: contribution}, asked=asked, **more).reasons[0]


def test_the_sentence_of_the_issue(shipped: ReasonWriter) -> None:
    reason = explain(shipped, {"days_since_purchase": 45.6}, {"recency": 0.12}).reasons[0]

    assert reason.sentence == "no purchase for 45 days: raises churn by 12 points"
    assert (reason.group, reason.label, reason.direction) == ("recency", "Days since last purchase", "raises")
    assert reason.contribution == pytest.approx(0.12)
    assert reason.features == {"days_since_purchase": pytest.approx(45.6), "tenure_days": None}
    assert msgspec.to_builtins(reason.value) == {
        "feature": "days_since_purchase",
        "label": "Days since last purchase",
        "value": pytest.approx(45.6),
        "unit": "days",
        "text": "45 days",
        "percentile": 45.6,
        "share": None,
    }


def test_the_same_in_german(shipped: ReasonWriter) -> None:
    asked = Asked(language="de")
    explanation = explain(shipped, {"days_since_purchase": 45.6}, {"recency": 0.12}, asked=asked)
    reason = explanation.reasons[0]

    assert explanation.language == "de"
    assert reason.sentence == "kein Kauf seit 45 Tagen: erhöht die Abwanderung um 12 Prozentpunkte"
    assert reason.label == "Tage seit dem letzten Kauf"
    assert reason.value is not None
    assert (reason.value.label, reason.value.text) == ("Tage seit dem letzten Kauf", "45 Tage")


@pytest.mark.parametrize(
    ("feature", "value", "text", "phrase", "german"),
    [
        ("orders_90d", 1, "1 order", "1 order in 90 days", "1 Bestellung in 90 Tagen"),
        ("orders_90d", 4, "4 orders", "4 orders in 90 days", "4 Bestellungen in 90 Tagen"),
        ("orders_90d", 0, "0 orders", "no order in 90 days", "keine Bestellung in 90 Tagen"),
        ("orders_90d", 1234, "1,234 orders", "1,234 orders in 90 days", "1.234 Bestellungen in 90 Tagen"),
        ("orders_90d", 3e38, "3e+38 orders", "3e+38 orders in 90 days", "3e+38 Bestellungen in 90 Tagen"),
        ("days_since_purchase", 1.9, "1 day", "no purchase for 1 day", "kein Kauf seit 1 Tag"),
        ("days_since_purchase", 0.4, "0 days", "a purchase within the last day",
         "ein Kauf innerhalb des letzten Tages"),
        ("days_since_purchase", None, "not known", "no purchase so far", "noch kein Kauf"),
        ("mean_gap_days", 24.46, "24.5 days", "24.5 days between orders on average",
         "im Mittel 24,5 Tage zwischen Bestellungen"),
        ("mean_gap_days", None, "not known", "no second order yet", "noch keine zweite Bestellung"),
        ("spend_90d", 1234.5, "£1,234.50", "£1,234.50 spent in 90 days", "1.234,50 £ Umsatz in 90 Tagen"),
        ("spend_90d", 35, "£35", "£35 spent in 90 days", "35 £ Umsatz in 90 Tagen"),
        ("spend_90d", 12345.67, "£12,346", "£12,346 spent in 90 days", "12.346 £ Umsatz in 90 Tagen"),
        ("spend_90d", 0, "£0", "nothing spent in 90 days", "kein Umsatz in 90 Tagen"),
        ("avg_price_365d", 2.953, "£2.95", "a mean price of £2.95 an item", "im Mittel 2,95 £ je Artikel"),
        ("christmas_share_365d", 0.125, "12.5%", "12.5% Christmas items", "12,5 % Weihnachtsartikel"),
        ("lines_per_order_365d", 0.004, "0.004 lines", "0.004 lines an order", "0,004 Positionen je Bestellung"),
        ("distinct_items_90d", 1, "1 item", "1 different item in 90 days", "1 verschiedener Artikel in 90 Tagen"),
        ("preferred_channel", "web", "web", "uses web most", "nutzt am meisten web"),
        ("preferred_channel", "fax", "not seen in training", "a channel not seen in training",
         "ein Kanal, der im Training nicht vorkam"),
        ("preferred_channel", None, "not known", "channel not known", "Kanal nicht bekannt"),
        ("sessions_30d", None, "not known", "sessions not recorded", "Besuche nicht erfasst"),
    ],
)  # fmt: skip
def test_values_are_said(shipped: ReasonWriter, feature: str, value: Any, text: str, phrase: str, german: str) -> None:
    english, translated = (first(shipped, feature, value, language=language) for language in ("en", "de"))

    assert english.value is not None
    assert english.value.text == text
    assert english.sentence == f"{phrase}: raises churn by 12 points"
    assert translated.sentence == f"{german}: erhöht die Abwanderung um 12 Prozentpunkte"


@pytest.mark.parametrize(
    ("task", "contribution", "says"),
    [
        ("churn_90d", 0.1249, "raises churn by 12 points"),
        ("churn_90d", -0.1251, "lowers churn by 13 points"),
        ("churn_90d", 0.0344, "raises churn by 3.4 points"),
        ("churn_90d", 0.01, "raises churn by 1 point"),
        ("churn_90d", -0.0999, "lowers churn by 10 points"),
        ("churn_90d", 0.0012, "raises churn by 0.1 points"),
        ("churn_90d", 0.0009, "raises churn by less than 0.1 points"),
        ("churn_90d", -1e-12, "lowers churn by less than 0.1 points"),
        ("churn_90d", 1.0, "raises churn by 100 points"),
        ("churn_90d", 1.25, "raises churn by 125 points"),
        ("churn_90d", 0.0, "does not change churn"),
        ("purchase_30d", 0.02, "raises the chance of a purchase by 2 points"),
        ("spend_90d", 34.6, "raises expected spend by £35"),
        ("spend_90d", -1234.5, "lowers expected spend by £1,234"),
        ("spend_90d", 9.996, "raises expected spend by £10"),
        ("spend_90d", 3.5, "raises expected spend by £3.50"),
        ("spend_90d", -0.004, "lowers expected spend by less than £0.01"),
    ],
)
def test_contributions_are_said_in_the_unit_of_the_score(
    shipped: ReasonWriter, task: str, contribution: float, says: str
) -> None:
    reasons = explain(shipped, {"orders_30d": 2}, {"frequency": contribution}, task=task).reasons
    [reason] = [reason for reason in reasons if reason.group == "frequency"]

    assert reason.sentence == f"2 orders in 30 days: {says}"
    assert reason.direction == ("none" if contribution == 0 else says.split(maxsplit=1)[0])


@pytest.mark.parametrize(
    ("task", "unit", "english", "german"),
    [
        ("churn_90d", "log_odds", "raises churn by 1.50 in log-odds", "erhöht die Abwanderung um 1,50 in Log-Odds"),
        ("spend_90d", "log_GBP", "raises expected spend by 1.50 in the logarithm of GBP",
         "erhöht den erwarteten Umsatz um 1,50 im Logarithmus von GBP"),
    ],
)  # fmt: skip
def test_margins_are_said_as_such(shipped: ReasonWriter, task: str, unit: str, english: str, german: str) -> None:
    for language, says in (("en", english), ("de", german)):
        asked = Asked(space="margin", language=language)
        explanation = explain(shipped, {"days_since_purchase": 45}, {"recency": 1.5}, task=task, asked=asked)

        assert explanation.reasons[0].sentence.partition(": ")[2] == says
        assert (explanation.unit, explanation.expected_error) == (unit, 0.02)
        assert (explanation.score, explanation.base) == (1.75, 0.25)


def test_an_explanation_says_how_it_was_made(shipped: ReasonWriter) -> None:
    explanation = explain(shipped, {}, {"recency": 0.5}, task="spend_90d")

    assert (explanation.unit, explanation.explainer, explanation.method) == ("GBP", "fast", "shapley-fitted-64")
    assert (explanation.language, explanation.expected_error, explanation.gap) == ("en", 0.04, 0.0)
    assert explain(shipped, {}, {}, asked=FEATURES).method == "integrated-gradients-8"


def test_the_season_is_said_as_the_month_of_as_of(shipped: ReasonWriter) -> None:
    for language, says in (("en", "it is June"), ("de", "es ist Juni")):
        reason = explain(shipped, {}, {"context": 0.02}, asked=Asked(language=language)).reasons[0]

        assert reason.sentence.partition(":")[0] == says
        assert reason.value is not None
        assert (reason.value.feature, reason.value.text) == ("season_cos", says.split()[-1])
        assert reason.value.percentile is None
    december = explain(shipped, {}, {"context": 0.02}, as_of=AS_OF - 86_400.0 * 152)
    assert december.reasons[0].sentence.startswith("it is December")


def test_a_season_that_the_request_gives_is_a_number(shipped: ReasonWriter) -> None:
    reason = first(shipped, "season_cos", -0.5)

    assert reason.sentence == "Season (-0.5): raises churn by 12 points"


def test_what_matters_most_speaks_for_its_group(shipped: ReasonWriter) -> None:
    def speaker(group: str, **values: float) -> str:
        value = explain(shipped, values, {group: 0.1}).reasons[0].value
        assert value is not None
        return value.feature

    assert speaker("frequency", orders_30d=1, orders_90d=2, orders_365d=3) == "orders_90d"
    # Orders have no words for being missing: the next that is there speaks.
    assert speaker("frequency", orders_365d=3) == "orders_365d"
    assert speaker("frequency") == "orders_90d"
    # That there is no second order yet is worth saying.
    assert speaker("rhythm", spend_next90_year_ago=5) == "mean_gap_days"
    # Nothing is known of what matters here: the first declared that is there.
    assert speaker("spend", spend_365d=5, spend_90d=5) == "spend_90d"


def test_a_feature_that_the_model_leaves_out_never_speaks(shipped: ReasonWriter) -> None:
    contract = shipped.contract
    explanation = contract.explanation
    matters = {"churn_90d": {"orders_90d": 0.05, "orders_365d": 0.0, "lifetime_orders": 1e-9}}
    importance = replace(explanation.importance, features=matters)
    writer = ReasonWriter(replace(contract, explanation=replace(explanation, importance=importance)))
    # The one that matters is missing, and has no words for that: still nothing is said of those that do not matter.
    for values in ({"orders_365d": 3.0}, {"orders_90d": 1.0, "orders_365d": 3.0}):
        value = explain(writer, values, {"frequency": 0.1}).reasons[0].value
        assert value is not None
        assert value.feature == "orders_90d"


def test_percentiles_are_of_numbers_and_shares_of_categories(shipped: ReasonWriter) -> None:
    def context(feature: str, value: Any) -> tuple[float | None, float | None]:
        said = first(shipped, feature, value).value
        assert said is not None
        return said.percentile, said.share

    assert context("orders_90d", 40) == (40, None)
    assert context("orders_90d", 1_000) == (100, None)
    assert context("orders_90d", None) == (None, None)
    assert context("preferred_channel", "web") == (None, 0.5)
    assert context("preferred_channel", "fax") == (None, 0.125)
    assert context("preferred_channel", None) == (None, None)


def test_details_are_sorted_and_sum_up_to_their_group(shipped: ReasonWriter) -> None:
    values = {"orders_30d": 1, "orders_90d": 4, "orders_365d": 9}
    parts = {"orders_30d": 0.03, "orders_90d": -0.01, "orders_365d": -0.045, "lifetime_orders": 0.0}
    reason = explain(shipped, values, parts, asked=FEATURES).reasons[0]

    assert reason.details
    said = [(detail.feature, detail.direction, detail.sentence) for detail in reason.details]
    assert said == [
        ("orders_365d", "lowers", "9 orders in a year: lowers churn by 4.5 points"),
        ("orders_30d", "raises", "1 order in 30 days: raises churn by 3 points"),
        ("orders_90d", "lowers", "4 orders in 90 days: lowers churn by 1 point"),
        ("lifetime_orders", "none", "Orders so far (not known): does not change churn"),
        ("orders_prev_90d", "none", "Orders in the 90 days before the last 90 (not known): does not change churn"),
    ]
    assert sum(detail.contribution for detail in reason.details) == pytest.approx(reason.contribution, abs=1e-15)
    assert reason.sentence == "9 orders in a year: lowers churn by 2.5 points"
    assert reason.details[0].text == "9 orders"
    assert reason.details[0].percentile == 9


def test_a_feature_that_pulls_the_other_way_does_not_speak_for_its_group(shipped: ReasonWriter) -> None:
    values = {"orders_30d": 1, "orders_90d": 4, "orders_365d": 9}
    parts = {"orders_30d": 0.05, "orders_90d": -0.03, "orders_365d": -0.04}
    reason = explain(shipped, values, parts, asked=FEATURES).reasons[0]

    assert reason.details
    assert reason.details[0].feature == "orders_30d"
    assert reason.sentence == "9 orders in a year: lowers churn by 2 points"


def test_groups_may_be_asked_of_an_explainer_by_feature(shipped: ReasonWriter) -> None:
    parts = {"orders_30d": 0.05, "orders_90d": -0.03}
    reason = explain(shipped, {}, parts, asked=replace(FEATURES, detail="groups")).reasons[0]

    assert reason.contribution == pytest.approx(0.02)
    assert reason.details is msgspec.UNSET


def test_top_folds_the_rest_into_one_reason(shipped: ReasonWriter) -> None:
    parts = {"recency": 0.02, "spend": -0.3, "frequency": 0.1, "context": 0.05}
    for language, says in (("en", "Everything else: raises churn by 7 points"), ("de", "Alles Übrige: erhöht die Abw")):
        reasons = explain(shipped, {}, parts, asked=Asked(top=2, language=language)).reasons

        assert [reason.group for reason in reasons] == ["spend", "frequency", "other"]
        assert reasons[2].sentence.startswith(says)
        assert (reasons[2].label, reasons[2].value, reasons[2].features) == (says.partition(":")[0], None, {})
    everything = explain(shipped, {}, parts, asked=Asked(top=8)).reasons
    assert len(everything) == 8
    assert everything == explain(shipped, {}, parts).reasons


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=37, max_size=37),
    st.sampled_from([None, 1, 3, 8, 100]),
    st.sampled_from(["groups", "features"]),
    st.sampled_from(["score", "margin"]),
    st.sampled_from(["en", "de"]),
)
def test_base_and_reasons_make_up_the_score(
    shipped: ReasonWriter, parts: list[float], top: int | None, detail: Any, space: Space, language: str
) -> None:
    names = [feature.name for feature in shipped.contract.schema.features]
    asked = Asked(explainer="features", top=top, detail=detail, space=space, language=language)
    explanation = explain(shipped, {}, dict(zip(names, parts, strict=True)), asked=asked)

    total = explanation.base + sum(reason.contribution for reason in explanation.reasons)
    assert total == pytest.approx(explanation.score, abs=1e-5)
    assert explanation.gap == pytest.approx(abs(total - explanation.score), abs=1e-12)
    sizes = [abs(reason.contribution) for reason in explanation.reasons if reason.group != "other"]
    assert sizes == sorted(sizes, reverse=True)
    for reason in explanation.reasons:
        if reason.group != "other" and detail == "features":
            assert reason.details
            details = sum(part.contribution for part in reason.details)
            assert details == pytest.approx(reason.contribution, abs=1e-12)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(-1e6, 1e6))
def test_any_number_can_be_said(shipped: ReasonWriter, value: float, contribution: float) -> None:
    for language in ("en", "de"):
        for feature in ("spend_90d", "orders_90d", "christmas_share_365d", "days_since_purchase"):
            said = first(shipped, feature, value, contribution, language=language, task="spend_90d")
            assert said.value is not None
            assert "{" not in said.sentence
            assert len(said.value.text) < 40


@pytest.mark.parametrize("word", WORDS)
def test_a_stored_word_stays_a_word(shipped: ReasonWriter, word: str) -> None:
    reason = first(shipped, "preferred_channel", word)
    sentence = reason.sentence

    assert reason.value is not None
    assert reason.value.value == word
    assert sentence.isprintable()
    assert sentence.startswith("uses ")
    assert sentence.endswith(" most: raises churn by 12 points")
    said = sentence.removeprefix("uses ").removesuffix(" most: raises churn by 12 points")
    assert said == reason.value.text
    assert len(said) <= LONGEST_WORD + 1
    assert said.rstrip("…") in word.replace("\n", " ").replace("\u202e", " ")


def test_a_label_stays_a_label() -> None:
    hostile = "{value} {0.__class__} %(number)s %s\n{label}"
    features = (Feature("x", "numeric", "g", hostile, hostile, "v", "x", "float64", default=0.0),)
    writer = ReasonWriter(contract_of(FeatureSchema("p", (JoinKey("id"),), features, {}, {"g": hostile})))
    reason = explain(writer, {"x": 2}, {"g": 0.5}).reasons[0]

    plain = "{value} {0.__class__} %(number)s %s {label}"
    assert reason.sentence.startswith(f"{plain} (2 {{value}} {{0.__class__}} %(number)s %s")
    assert reason.label == hostile


def test_a_project_without_tags_has_plain_sentences() -> None:
    features = (
        Feature("trips", "numeric", "other", "trips", "", "v", "trips", "int64", default=0.0),
        Feature("km", "numeric", "other", "km", "km", "v", "km", "float64", nullable=True),
        Feature("city", "category", "other", "city", "", "v", "city", "string", nullable=True, vocabulary=("Bonn",)),
        Feature("hired_at", "elapsed", "other", "hired_at", "days", "v", "hired_at", "timestamp", nullable=True),
        Feature("season_sin", "calendar", "other", "Season"),
    )
    contract = contract_of(FeatureSchema("theirs", (JoinKey("id"),), features, {}, {"other": "Other"}))
    writer = ReasonWriter(replace(contract, reference={}, tasks=contract.tasks[:2]))
    says = {
        ("trips", 3): "trips (3)",
        ("km", 1.0): "km (1 km)",
        ("km", None): "km (not known)",
        ("city", "Bonn"): "city (Bonn)",
        ("city", "Köln"): "city (not seen in training)",
        ("hired_at", 45.9): "hired_at (45 days)",
    }
    for (feature, value), phrase in says.items():
        reason = first(writer, feature, value)

        assert reason.sentence == f"{phrase}: raises Does not buy for 90 days by 12 points"
        assert reason.value is not None
        assert (reason.value.percentile, reason.value.share) == (None, None)
    season = explain(writer, {}, {"season_sin": 0.1}, asked=FEATURES).reasons[0]
    assert season.sentence == "Season (June): raises Does not buy for 90 days by 10 points"


def test_a_language_says_what_it_has_and_else_the_english_names() -> None:
    features = (
        Feature("trips", "numeric", "use", "Trips", "trips", "v", "trips", "int64", default=0.0),
        Feature("km", "numeric", "use", "Distance", "km", "v", "km", "float64", default=0.0),
    )
    french = Texts(Frames(raises="{what} augmente {task} de {amount}"), {"trips": FeatureTexts(say="{value} faits")})
    english = Texts(
        Frames(), {"km": FeatureTexts(say="{value} driven")}, {}, {"churn_90d": "churn"}, {"trips": "trip|trips"}
    )
    schema = FeatureSchema("p", (JoinKey("id"),), features, {}, {"use": "Use"}, texts={"en": english, "fr": french})
    writer = ReasonWriter(contract_of(schema))

    trips, km = (first(writer, name, 1, language="fr") for name in ("trips", "km"))
    assert trips.sentence == "1 trip faits augmente churn de 12 points"
    assert km.sentence == "Distance (1 km) augmente churn de 12 points"
    assert trips.label == "Use"


def test_amounts_in_a_currency_without_a_sign_have_its_code(shipped: ReasonWriter) -> None:
    contract = shipped.contract
    tasks = tuple(replace(task, unit="CHF") if task.kind == "amount" else task for task in contract.tasks)
    writer = ReasonWriter(replace(contract, tasks=tasks))

    for language, says in (("en", "CHF 1,234.50 spent in 90 days"), ("de", "1.234,50 CHF Umsatz in 90 Tagen")):
        reason = first(writer, "spend_90d", 1234.5, 20.0, task="spend_90d", language=language)
        assert reason.sentence.startswith(says)
        assert reason.value is not None
        assert reason.value.unit == "CHF"


def test_without_a_task_in_money_amounts_are_plain_numbers(shipped: ReasonWriter) -> None:
    writer = ReasonWriter(replace(shipped.contract, tasks=shipped.contract.tasks[:2]))
    reason = first(writer, "spend_90d", 1234.5)

    assert reason.sentence.startswith("1,234 currency spent in 90 days")


def test_only_tasks_asked_for_and_defined_are_explained(shipped: ReasonWriter) -> None:
    schema = shipped.contract.schema
    zeros = np.zeros((1, 3), dtype=np.float32)
    outputs = {"scores": zeros, "base": zeros, "attributions": np.zeros((1, 3, len(schema.groups)), dtype=np.float32)}
    encoded = encode(schema, {})

    found = shipped.explanations(
        Asked(tasks=["spend_90d", "churn_90d"]), encoded, outputs, 0, to_iso(AS_OF), ["churn_90d"]
    )
    assert list(found) == ["churn_90d", "spend_90d"]
    assert found["churn_90d"] is None
    assert found["spend_90d"] is not None


def test_a_language_that_nobody_wrote_is_the_callers_error(shipped: ReasonWriter) -> None:
    with pytest.raises(InvalidRequest, match=r"language: this release speaks en, de$"):
        explain(shipped, {}, {}, asked=Asked(language="fr"))


def test_words_are_those_of_the_contract_that_was_published(shipped: ReasonWriter) -> None:
    again = ReasonWriter(Contract.from_json(shipped.contract.to_json()))

    for language in ("en", "de"):
        asked = replace(FEATURES, language=language)
        values = {"orders_90d": 1, "preferred_channel": "web"}
        assert explain(again, values, {"orders_90d": 0.2}, asked=asked) == explain(
            shipped, values, {"orders_90d": 0.2}, asked=asked
        )


def test_a_request_chooses_the_language(url: str, customers: list[str]) -> None:
    def churn(**more: object) -> dict[str, Any]:
        answer = explain_over_http(url, "c1", tasks=["churn_90d"], **more)
        return answer["predictions"][0]["explanations"]["churn_90d"]  # type: ignore[no-any-return]

    english, german = churn(), churn(language="de")

    assert (english["language"], german["language"]) == ("en", "de")
    [said], [translated] = (
        [reason["sentence"] for reason in one["reasons"] if reason["group"] == "recency"] for one in (english, german)
    )
    assert said.startswith(("no purchase for 3 days: raises churn by ", "no purchase for 3 days: lowers churn by "))
    assert translated.startswith(("kein Kauf seit 3 Tagen: erhöht die Abw", "kein Kauf seit 3 Tagen: senkt die Abw"))
    numbers = [[reason["contribution"] for reason in one["reasons"]] for one in (english, german)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)


@pytest.mark.parametrize("language", ["fr", "EN", "", "de-AT"])
def test_a_request_in_a_language_that_nobody_wrote_is_told_which_there_are(
    url: str, customers: list[str], language: str
) -> None:
    body = {"entities": [{"customer_id": "c1"}], "language": language}
    response = requests.post(f"{url}/v1/explain", json=body, timeout=10)

    assert response.status_code == 422
    assert response.json()["detail"] == "language: this release speaks en, de"
