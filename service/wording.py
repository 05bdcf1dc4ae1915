"""Values and contributions in plain words: what a release says about its customers in one language.

Whatever depends on no customer is put together when a release is loaded: templates have been parsed,
categories have their phrases. What remains for a request is to write numbers into them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from feature_client.contract import Contract, Task
from feature_client.schema import Feature
from feature_client.texts import ENGLISH, FeatureTexts, NumberFormat, Template, places, writer

Space = Literal["score", "margin"]
"""score: contributions in the score's own unit. margin: in log-odds, and in the logarithm of amounts."""

CURRENCY, SHARE = "currency", "share"
"""Units of features that are written in a way of their own."""

LONGEST_WORD = 80
"""Characters of a category in a sentence: stored strings may be of any length."""

NO_TEXTS = FeatureTexts()

SCIENTIFIC = 1e15
"""Numbers from here on are written with an exponent."""

Said = tuple[str, str]
"""A value with its unit, "45 days", and the phrase with which a sentence names it, "no purchase for 45 days"."""


class Sentences(NamedTuple):
    """How contributions to one task are said in one space: (what, amount) -> sentence; none: (what)."""

    raises: Callable[[str, str], str]
    lowers: Callable[[str, str], str]
    none: Callable[[str], str]
    amount: Callable[[float], str]

    def write(self, what: str, contribution: float) -> str:
        if contribution > 0:
            return self.raises(what, self.amount(contribution))
        if contribution < 0:
            return self.lowers(what, self.amount(-contribution))
        return self.none(what)


class Wording:
    """One language of one release.

    Of features, by name: labels; what says a number (`numbers`), a category by its index (`categories`), the season by
    the month from 0 (`months`), and a missing value (`missing`). group_labels: by group. sentences: by space and task.
    """

    def __init__(self, contract: Contract, language: str) -> None:
        schema = contract.schema
        self.language = language
        self._texts, self._english = schema.texts[language], schema.texts[ENGLISH]
        self._frames = self._texts.frames
        self._format = NumberFormat(self._frames.number)
        self._currency = currency_of(contract)
        self.other = self._frames.other
        self.labels = {feature.name: self._said(feature).label or feature.label for feature in schema.features}
        self.group_labels = {group: self._texts.groups.get(group, label) for group, label in schema.groups.items()}
        self.missing = {feature.name: self._missing(feature) for feature in schema.features}
        self.numbers = {feature.name: self._numbers(feature) for feature in schema.numeric}
        self.categories = {feature.name: self._categories(feature) for feature in schema.categorical}
        self.months = {feature.name: self._months(feature) for feature in schema.numeric if feature.kind == "calendar"}
        self.sentences: Mapping[Space, Mapping[str, Sentences]] = {
            "score": {task.name: self._sentences(task, self._in_score(task)) for task in contract.tasks},
            "margin": {task.name: self._sentences(task, self._in_margin(task)) for task in contract.tasks},
        }

    def _said(self, feature: Feature) -> FeatureTexts:
        return self._texts.features.get(feature.name, NO_TEXTS)

    def _phrase(self, feature: Feature, text: str, value: Template) -> Template:
        """text: what the field says; empty: what all features do. value: what stands in {value}."""
        known = {"label": Template.literal(plain(self.labels[feature.name])), "value": value}
        return Template.parse(text or self._frames.say, known | places("number"))

    def _fixed(self, feature: Feature, text: str, value: str) -> Said:
        """What is said of a value that is a word."""
        word = plain(value)
        return word, writer(self._phrase(feature, text, Template.literal(word)).other, "number")(word)

    def _missing(self, feature: Feature) -> Said:
        return self._fixed(feature, self._said(feature).say_missing, self._frames.missing)

    def _categories(self, feature: Feature) -> Sequence[Said]:
        """By the index of the category: missing, unseen, and the vocabulary."""
        texts = self._said(feature)
        unseen = self._fixed(feature, texts.say_unseen, self._frames.unseen)
        return [
            self.missing[feature.name],
            unseen,
            *(self._fixed(feature, texts.say, word) for word in feature.vocabulary),
        ]

    def _months(self, feature: Feature) -> Sequence[Said]:
        return [self._fixed(feature, self._said(feature).say, month) for month in self._frames.months.split("|")]

    def _numbers(self, feature: Feature) -> Callable[[float], Said]:
        texts, (value, number) = self._said(feature), self._value(feature)
        # What the calendar says is about months; a request's own number in its place is only a number.
        phrase = self._phrase(feature, "" if feature.kind == "calendar" else texts.say, value)
        zero = self._phrase(feature, texts.say_zero, value) if texts.say_zero else phrase
        one_text, one_phrase = writer(value.one, "number"), writer(phrase.one, "number")
        text, other_phrase, zero_phrase = (writer(of.other, "number") for of in (value, phrase, zero))

        def said(of: float) -> Said:
            written = number(of)
            if written == "1":
                return one_text(written), one_phrase(written)
            return text(written), zero_phrase(written) if written == "0" else other_phrase(written)

        return said

    def _value(self, feature: Feature) -> tuple[Template, Callable[[float], str]]:
        """How a value is written with its unit, and the number in it."""
        if feature.unit == SHARE:
            return Template.parse(self._frames.share, places("number")), lambda of: self._number(of * 100.0)
        if self._currency and feature.unit in (CURRENCY, self._currency):
            return self._money(self._currency), self._money_number
        number = self._days if feature.kind == "elapsed" else self._number
        if not feature.unit:
            return Template.parse("{number}", places("number")), number
        unit = self._texts.units.get(feature.unit) or self._english.units.get(feature.unit) or feature.unit
        one, _, other = unit.partition("|")
        known = {**places("number"), "unit": Template((one,), (other or one,))}
        return Template.parse("{number} {unit}", known), number

    def _number(self, of: float) -> str:
        """About three digits; whole numbers as they are."""
        if 0 <= of < 1_000 and of == (whole := int(of)):  # most of them
            return str(whole)
        size = abs(of)
        if size >= SCIENTIFIC or size < 0.01:
            return self._format.localise(f"{of:.2g}")
        if size >= 100 or of == int(of):
            return self._format.localise(f"{of:,.0f}")
        return self._format.localise((f"{of:.1f}" if size >= 10 else f"{of:.2f}").rstrip("0").rstrip("."))

    def _days(self, of: float) -> str:
        """Whole days that have passed: one and a half days after an order, the last was one day ago."""
        return self._number(math.floor(of))

    def _money(self, currency: str) -> Template:
        texts = self._texts.currencies.get(currency) or self._english.currencies.get(currency)
        if texts is None:
            return Template.parse(self._frames.currency, {**places("number"), "currency": Template.literal(currency)})
        return Template.parse(texts, places("number"))

    def _money_number(self, of: float) -> str:
        if abs(of) >= 10_000 or of == int(of):
            return self._number(of)
        return self._format.localise(f"{of:,.2f}")

    def _sentences(self, task: Task, amount: Callable[[float], str]) -> Sentences:
        noun = self._texts.tasks.get(task.name) or self._english.tasks.get(task.name) or task.label
        known = places("what", "amount") | {"task": Template.literal(plain(noun))}
        frames = (self._frames.raises, self._frames.lowers, self._frames.none)
        raises, lowers, none = (Template.parse(frame, known).other for frame in frames)
        return Sentences(
            writer(raises, "what", "amount"), writer(lowers, "what", "amount"), writer(none, "what"), amount
        )

    def _in_score(self, task: Task) -> Callable[[float], str]:
        return self._points() if task.kind == "probability" else self._amount(self._money(task.unit))

    def _in_margin(self, task: Task) -> Callable[[float], str]:
        known = places("number") | {"currency": Template.literal(task.unit)}
        frame = self._frames.log_odds if task.kind == "probability" else self._frames.log_currency
        return self._amount(Template.parse(frame, known))

    def _points(self) -> Callable[[float], str]:
        """What writes the size of a difference of probabilities, in tenths of a point below ten points."""
        points = Template.parse(self._frames.points, places("number"))
        one, other = writer(points.one, "number"), writer(points.other, "number")

        def say(number: str) -> str:
            return (one if number == "1" else other)(number)

        # There are so few that they are written beforehand.
        tenths = [say(self._number(number / 10)) for number in range(101)]
        whole = [say(str(number)) for number in range(101)]
        too_small = self._less_than(tenths[1])

        def amount(size: float) -> str:
            if size < 0.001:
                return too_small
            if size < 0.0995:
                return tenths[round(1_000 * size)]
            # An estimate of an attribution may be larger than any probability.
            points = round(100 * size)
            return whole[points] if points <= 100 else say(str(points))

        return amount

    def _amount(self, template: Template) -> Callable[[float], str]:
        """What writes the size of a contribution: with two decimals below 10, whole above."""
        write, localise = writer(template.other, "number"), self._format.localise
        too_small = self._less_than(write(localise("0.01")))

        def amount(size: float) -> str:
            if size < 0.01:
                return too_small
            return write(localise(f"{size:,.0f}" if size >= 9.995 else f"{size:.2f}"))

        return amount

    def _less_than(self, amount: str) -> str:
        text = Template.parse(self._frames.less_than, {"amount": Template.literal(amount)})
        return writer(text.other)()


def currency_of(contract: Contract) -> str | None:
    """The unit of the contract's amounts, and of features in `currency`."""
    return next((task.unit for task in contract.tasks if task.kind == "amount"), None)


def plain(text: str) -> str:
    """On one line and of bounded length, without characters that nobody sees: a stored string may hold anything."""
    seen = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return seen if len(seen) <= LONGEST_WORD else f"{seen[:LONGEST_WORD].rstrip()}…"
