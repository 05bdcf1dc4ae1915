"""Tags become texts: those that we ship are whole in every language, and a misspelt one is named."""

from dataclasses import asdict, fields
from pathlib import Path

import pytest

from feature_client.feature_repo import german
from feature_client.offline.texts import FRAMES
from feature_client.schema import FeatureSchema, SchemaError
from feature_client.texts import FeatureTexts, Frames, Texts
from model_export.tasks import engagement_tasks
from tests.feature_client.offline.test_registry import compiled

FRENCH = {f"{frame}.fr": getattr(Frames(), name) for frame, name in FRAMES.items()}
"""Enough to be a language, if only by name."""


def test_every_feature_group_task_and_unit_of_ours_is_said_in_english(schema: FeatureSchema) -> None:
    english = schema.texts["en"]

    for feature in schema.features:
        said = english.features[feature.name]
        assert feature.label != feature.name
        assert said.say, feature.name
        if feature.nullable:
            assert said.say_missing, feature.name
        if feature.kind == "category":
            assert said.say_unseen, feature.name
        if feature.unit not in ("", "currency", "share"):
            assert feature.unit in english.units, feature.name
    assert set(english.tasks) == {labelled.task.name for labelled in engagement_tasks("GBP")}


def test_german_says_all_that_english_says(schema: FeatureSchema) -> None:
    """Fails where somebody adds a feature, group, task or unit, or a phrase of one, and no German for it."""
    english, translated = schema.texts["en"], schema.texts["de"]

    for feature in schema.features:
        said = asdict(translated.features[feature.name])
        assert said.pop("label"), feature.name
        wanted = {name for name, text in asdict(english.features[feature.name]).items() if text}
        assert {name for name, text in said.items() if text} == wanted, feature.name
    assert set(translated.groups) == set(schema.groups)
    assert set(translated.tasks) == set(english.tasks)
    assert set(translated.units) == set(english.units)
    assert set(translated.currencies) == set(english.currencies)
    same = {frame.name for frame in fields(Frames) if getattr(translated.frames, frame.name) == frame.default}
    assert same == {"say"}


def test_no_german_is_left_of_features_that_are_gone(schema: FeatureSchema) -> None:
    assert set(german.FIELDS) == {feature.field for feature in schema.features if feature.field}
    named = {tag.split(".")[1] for tag in german.SERVICE if tag.startswith("group.")}
    assert named == set(schema.groups)


def test_levers_are_what_marketing_sets_off(schema: FeatureSchema) -> None:
    levers = {feature.name for feature in schema.features if feature.actionable}

    assert {"sessions_30d", "campaign_opens_30d"} <= levers
    outcomes = {"recency", "frequency", "spend", "rhythm", "returns", "products"}
    assert not [name for name in levers if schema.by_name[name].group in outcomes]


def test_a_project_without_tags_has_the_plain_words_of_english(tmp_path: Path) -> None:
    assert compiled(tmp_path, 'Field(name="city", dtype=String)').texts == {"en": Texts()}


def test_a_project_of_ones_own_says_what_its_tags_say(tmp_path: Path) -> None:
    field = """
        Field(name="trips", dtype=Int64, tags={"default": "0", "group": "use", "label": "Trips", "unit": "trips",
              "say": "{value} driven", "say_zero": "no trip", "label.fr": "Trajets", "team.owner": "fleet"}),
        Field(name="at", dtype=UnixTimestamp, tags={"elapsed_as": "silence", "say.fr": "rien depuis {value}"})
    """
    tags = {
        "group.use": "Use", "group.use.fr": "Usage", "task.leaves": "leaving", "task.leaves.fr": "le départ",
        "unit.trips": "trip|trips", "unit.trips.fr": "trajet|trajets", "currency.EUR": "€{number}",
        "currency.EUR.fr": "{number} €", "sentence.raises": "{what} lifts {task} by {amount}", "owner": "fleet",
        "calendar": "season_sin", "calendar_say": "in {value}", "calendar_label.fr": "Saison", "team.owner": "fleet",
        **FRENCH, "sentence.raises.fr": "{what} augmente {task} de {amount}",
    }  # fmt: skip

    texts = compiled(tmp_path, field, repr(tags)).texts

    assert list(texts) == ["en", "fr"]
    assert texts["en"] == Texts(
        Frames(raises="{what} lifts {task} by {amount}"),
        {"trips": FeatureTexts("", "{value} driven", "no trip"), "season_sin": FeatureTexts(say="in {value}")},
        {},
        {"leaves": "leaving"},
        {"trips": "trip|trips"},
        {"EUR": "€{number}"},
    )
    assert texts["fr"] == Texts(
        Frames(raises="{what} augmente {task} de {amount}"),
        {
            "trips": FeatureTexts("Trajets"),
            "silence": FeatureTexts(say="rien depuis {value}"),
            "season_sin": FeatureTexts("Saison"),
        },
        {"use": "Usage"},
        {"leaves": "le départ"},
        {"trips": "trajet|trajets"},
        {"EUR": "{number} €"},
    )


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"say": "{velue}"}, r"drivers: x: say: '\{velue\}' has the place \{velue\}"),
        ({"say": "{value"}, "drivers: x: say: "),
        ({"say": "x", "say_zeros": "y"}, "stats:x: unknown tag say_zeros"),
        ({"label.de": "x"}, "stats:x: label.de is in no language of the service besides English; there are fr"),
        ({"label.en": "x"}, "stats:x: label.en is in no language"),
        ({"label.": "x"}, "stats:x: label. is in no language"),
        ({"lable.fr": "x"}, "stats:x: unknown tag lable.fr"),
        ({"actionable": "yes"}, "stats:x: actionable is 'yes'"),
    ],
)
def test_a_misspelt_tag_of_a_field_is_named(tmp_path: Path, tags: dict[str, str], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        compiled(tmp_path, f'Field(name="x", dtype=Int64, tags={ {"default": "0"} | tags!r})', repr(FRENCH))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"sentence.rises": "x"}, "drivers: unknown tag sentence.rises"),
        ({"sentence.rises.fr": "x"}, "drivers: unknown tag sentence.rises.fr"),
        ({"sentence.raises": "{why}"}, r"drivers: raises: '\{why\}' has the place \{why\}"),
        ({"sentence.raises.de": "x"}, "drivers: de is not said whole: no tag format.number.de, .*amount.share.de"),
        ({"sentence.raises.en": "x"}, "drivers: 'en' is no language to translate into"),
        ({"sentence.raises.Deutsch": "x"}, "drivers: 'Deutsch' is no language"),
        ({"group.use.de": "x"}, "drivers: group.use.de is in no language of the service"),
        ({"group": "x"}, "drivers: unknown tag group"),
        ({"unit.days.fr.ca": "x"}, "drivers: unknown tag unit.days.fr.ca"),
        ({"unit.days": "{day}"}, "drivers: unit days: "),
        ({"currency.EUR": "{amount}"}, "drivers: currency EUR: "),
        ({"untis.days.fr": "x"}, "drivers: unknown tag untis.days.fr"),
        ({"calendar_say.de": "x"}, "drivers: calendar_say.de is in no language"),
        ({"format.number.fr": "1"}, r"drivers: the number format '1' is not .* \(fr\)"),
        ({"format.months.fr": "janvier"}, r"drivers: months are 12 names .* \(fr\)"),
    ],
)
def test_a_misspelt_tag_of_a_service_is_named(tmp_path: Path, tags: dict[str, str], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        compiled(tmp_path, 'Field(name="x", dtype=String)', repr(FRENCH | tags))
