"""Templates and number formats: what they write, and what they refuse."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_client.contract import Contract, ContractError
from feature_client.schema import FeatureSchema, SchemaError
from feature_client.texts import (
    FeatureTexts,
    Frames,
    NumberFormat,
    Template,
    TextError,
    Texts,
    places,
    writer,
)
from tests.feature_client.test_contract import CONTRACT
from tests.feature_client.test_schema import SCHEMA

GERMAN = Texts(
    Frames(number="1.234,5", raises="{what}: erhöht {task} um {amount}"),
    features={"spend": FeatureTexts("Umsatz", "{value} Umsatz", say_missing="kein Umsatz bekannt")},
    groups={"money": "Geld"},
    tasks={"churn_90d": "die Abwanderung"},
    units={"days": "Tag|Tage"},
    currencies={"EUR": "{number} €"},
)


def written(text: str, number: str, **values: str) -> str:
    template = Template.parse(text, places("number", *values))
    return writer(template.one if number == "1" else template.other, "number", *values)(number, *values.values())


@pytest.mark.parametrize(
    ("text", "number", "says"),
    [
        ("{number} {order|orders}", "1", "1 order"),
        ("{number} {order|orders}", "4", "4 orders"),
        ("{number} {order|orders}", "0", "0 orders"),
        ("seit {number} {Tag|Tagen}", "1", "seit 1 Tag"),
        ("{number}{|s}", "2", "2s"),
        ("100 % {{of}} {number}", "5", "100 % {of} 5"),
        ("{number} and {number}", "5", "5 and 5"),
        ("%(number)s %s {number}", "5", "%(number)s %s 5"),
        ("nothing", "5", "nothing"),
        ("", "5", ""),
    ],
)
def test_a_template_writes(text: str, number: str, says: str) -> None:
    assert written(text, number) == says


def test_places_may_stand_in_any_order() -> None:
    assert written("{b} {a} {number} {a}", "5", a="x", b="y") == "y x 5 x"


@given(st.text(), st.text())
def test_what_is_filled_in_is_never_read_as_a_template(first: str, second: str) -> None:
    assert written("<{number}|{a}>", first, a=second) == f"<{first}|{second}>"
    assert written("{a}<{number}", first, a=second) == f"{second}<{first}"
    inner = Template.parse("[{label}]", {"label": Template.literal(first)})
    assert writer(Template.parse("{what}!", {"what": inner}).other)() == f"[{first}]!"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{nobody}", "place {nobody}; there are {number}"),
        ("{}", "place {}"),
        ("{0}", "place {0}"),
        ("{number.real}", "place {number.real}"),
        ("{number[0]}", "place {number"),
        ("{number:>10000000}", "a place has a name and nothing else"),
        ("{number!r}", "a place has a name and nothing else"),
        ("{a|b|c}", "a choice is {singular|plural}"),
        ("{number", "expected '}'"),
        ("number}", "Single '}'"),
    ],
)
def test_a_template_that_cannot_be_written_is_refused(text: str, says: str) -> None:
    with pytest.raises(TextError) as caught:
        Template.parse(text, places("number"))

    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("example", "says"),
    [("1,234.5", "-12,345.67"), ("1.234,5", "-12.345,67"), ("1 234,5", "-12 345,67"), ("1234.5", "-12345.67")],
)
def test_a_number_format_is_an_example(example: str, says: str) -> None:
    assert NumberFormat(example).localise(f"{-12345.67:,.2f}") == says


@pytest.mark.parametrize("example", ["", "1,234", "1,234,5", "12,34.5", "1-234.5", "1x234.5", "1,234.56"])
def test_what_is_no_number_format_is_refused(example: str) -> None:
    with pytest.raises(TextError, match="number format"):
        NumberFormat(example)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"frames": {"raises": "{who} raises"}}, "raises: .*{who}"),
        ({"frames": {"none": "{what} {amount}"}}, "none: .*{amount}"),
        ({"frames": {"number": "1"}}, "number format"),
        ({"frames": {"months": "January"}}, "months are 12 names"),
        ({"features": {"spend": {"say": "{velue}"}}}, "spend: say: .*{velue}"),
        ({"features": {"spend": {"say_zero": "{value}"}}}, "spend: say_zero: .*{value}"),
        ({"currencies": {"EUR": "{amount}"}}, "currency EUR: "),
        ({"units": {"days": "a|b|c"}}, "unit days: "),
        ({"units": {"days": "{day}"}}, "unit days: "),
        ({"frames": {"raises": "{what}" * 3}}, "raises: .*more than 2 times"),
        ({"frames": {"other": "x" * 201}}, "other: a text has at most 200"),
        ({"features": {"spend": {"say": "x" * 2_000_000}}}, "say: a text has at most 200 characters, not 2,000,000"),
        ({"features": {"spend": {"label": "x" * 201}}}, "spend: label: a text"),
        ({"groups": {"spend": "x" * 201}}, "group spend: a text"),
        ({"tasks": {"churn_90d": "x" * 201}}, "task churn_90d: a text"),
        ({"currencies": {"EUR": "{number}" * 3}}, "currency EUR: .*more than 2 times"),
        ({"units": {"days": "x" * 201}}, "unit days: a text"),
        ({"features": {"moon": {"say": "moon"}}}, "texts in de of unknown features: moon"),
    ],
)
def test_a_contract_with_texts_that_cannot_be_used_is_no_contract(texts: dict[str, Any], says: str) -> None:
    body = msgspec.json.decode(CONTRACT.to_json())
    body["schema"]["texts"]["de"] = texts

    with pytest.raises(ContractError, match=says):
        Contract.from_json(msgspec.json.encode(body))


def test_texts_survive_the_json_of_a_contract() -> None:
    spoken = replace(SCHEMA, texts={"en": Texts(units={"days": "day|days"}), "de": GERMAN})
    contract = replace(CONTRACT, schema=spoken)
    again = Contract.from_json(contract.to_json())

    assert again == contract
    assert again.schema.texts["de"] == GERMAN
    assert list(again.schema.texts) == ["en", "de"]
    assert again.digest == contract.digest != CONTRACT.digest
    assert again.schema.with_vocabularies({"country": ["Eire"]}).texts == spoken.texts


def test_english_is_always_there() -> None:
    with pytest.raises(SchemaError, match="en is always there"):
        FeatureSchema("shop", SCHEMA.entity, SCHEMA.features, {}, SCHEMA.groups, texts={"de": GERMAN})


def test_a_contract_does_not_speak_every_language_there_is() -> None:
    """Every category is put into words in each: a thousand languages of it would be a gateway's memory."""
    with pytest.raises(SchemaError, match="in 33 languages; there may be 32"):
        replace(SCHEMA, texts={"en": Texts()} | {f"l{number}": Texts() for number in range(32)})
