"""What is said to people about features, groups and tasks, in one language: compiled from the tags of the Feast
definitions (offline/texts.py), carried by the schema, put into words by the gateway (service/wording.py).

A template has places in braces, `{value}`, and choices by number, `{day|days}`: the first for exactly 1, the second
for everything else. Languages with more plural forms than these two cannot be written correctly.
"""

import re
import string
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

from feature_client.errors import RapportError

ENGLISH = "en"
"""The language that is always there, and that answers where none is asked for."""


class TextError(RapportError):
    """A text that cannot be used; the message says which, and why."""


@dataclass(frozen=True)
class Template:
    """A parsed text, as two %-formats: `one` where the number is exactly 1, `other` for all else.

    What is filled in is never read as a template again: no value brings places or formats of its own.
    """

    one: str
    other: str

    @classmethod
    def literal(cls, text: str) -> "Template":
        escaped = text.replace("%", "%%")
        return cls(escaped, escaped)

    @classmethod
    def place(cls, name: str) -> "Template":
        """Filled in when the text is used: `template.other % {name: ...}`."""
        return cls(f"%({name})s", f"%({name})s")

    @classmethod
    def parse(cls, text: str, places: Mapping[str, "Template"]) -> "Template":
        """places: by name, what stands in them. Raises TextError."""
        parts: list[Template] = []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(text):
                parts.append(cls.literal(literal))
                if spec or conversion:
                    raise TextError(f"{text!r}: a place has a name and nothing else")
                if name is not None:
                    parts.append(_choice(text, name) if "|" in name else places[name])
        except KeyError as exc:
            known = ", ".join(f"{{{place}}}" for place in places)
            raise TextError(f"{text!r} has the place {{{exc.args[0]}}}; there are {known or 'none'}") from exc
        except ValueError as exc:  # a lone brace
            raise TextError(f"{text!r}: {exc}") from exc
        return cls("".join(part.one for part in parts), "".join(part.other for part in parts))


def _choice(text: str, name: str) -> Template:
    one, _, other = name.partition("|")
    if "|" in other:
        raise TextError(f"{text!r}: a choice is {{singular|plural}}")
    return Template(Template.literal(one).one, Template.literal(other).other)


def places(*names: str) -> dict[str, Template]:
    return {name: Template.place(name) for name in names}


@dataclass(frozen=True)
class NumberFormat:
    """How a language writes numbers, said by how it writes one thousand two hundred thirty-four and a half."""

    example: str

    def __post_init__(self) -> None:
        match = re.fullmatch(r"1([^\w-]?)234([^\w-])5", self.example)
        if match is None or match[1] == match[2]:
            raise TextError(f"the number format {self.example!r} is not 1234.5 with separators, as in 1,234.5")

    def write(self, number: float, decimals: int) -> str:
        text = f"{number:,.{decimals}f}"
        return text if self._separators is None else text.translate(self._separators)

    def localise(self, text: str) -> str:
        """text: a number as Python writes it."""
        return text if self._separators is None else text.translate(self._separators)

    @cached_property
    def _separators(self) -> dict[int, str] | None:
        group, decimal = self.example[1 : self.example.index("2")], self.example[-2]
        return None if (group, decimal) == (",", ".") else {ord(","): group, ord("."): decimal}


@dataclass(frozen=True)
class Frames:
    """How a language puts things. The defaults are English."""

    number: str = "1,234.5"
    months: str = "January|February|March|April|May|June|July|August|September|October|November|December"
    # Sentences.
    raises: str = "{what}: raises {task} by {amount}"
    lowers: str = "{what}: lowers {task} by {amount}"
    none: str = "{what}: does not change {task}"
    other: str = "Everything else"
    # A feature that has no phrase of its own, and values that are none.
    say: str = "{label} ({value})"
    missing: str = "not known"
    unseen: str = "not seen in training"
    # Amounts.
    points: str = "{number} {point|points}"
    log_odds: str = "{number} in log-odds"
    log_currency: str = "{number} in the logarithm of {currency}"
    less_than: str = "less than {amount}"
    currency: str = "{currency} {number}"
    share: str = "{number}%"

    def month(self, number: int) -> str:
        """number: from 1."""
        return self.months.split("|")[number - 1]


FRAME_PLACES: Mapping[str, tuple[str, ...]] = {
    "raises": ("what", "task", "amount"),
    "lowers": ("what", "task", "amount"),
    "none": ("what", "task"),
    "say": ("label", "value", "number"),
    "points": ("number",),
    "log_odds": ("number",),
    "log_currency": ("number", "currency"),
    "less_than": ("amount",),
    "currency": ("number", "currency"),
    "share": ("number",),
}
"""The frames that are templates, and the places of each; the others are words."""


@dataclass(frozen=True)
class FeatureTexts:
    """Phrases that name a feature's value: where there is one, where it is zero, missing, or a category that was not
    seen in training. What is empty falls back: the label to Feature.label, a phrase to the frame `say`."""

    label: str = ""
    say: str = ""
    say_zero: str = ""
    say_missing: str = ""
    say_unseen: str = ""


PHRASE_PLACES: Mapping[str, tuple[str, ...]] = {
    "say": ("label", "value", "number"),
    "say_zero": ("label",),
    "say_missing": ("label",),
    "say_unseen": ("label",),
}


@dataclass(frozen=True)
class Texts:
    """One language. Labels of English are the schema's own. Raises TextError.

    units: as `singular|plural`. currencies: code -> template with {number}. tasks: as the object of a sentence.
    """

    frames: Frames = field(default_factory=Frames)
    features: Mapping[str, FeatureTexts] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    currencies: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        NumberFormat(self.frames.number)
        if len(self.frames.months.split("|")) != 12:
            raise TextError("months are 12 names with | between them")
        frames = asdict(self.frames)
        for name, known in FRAME_PLACES.items():
            _check(name, frames[name], known)
        for feature, texts in self.features.items():
            phrases = asdict(texts)
            for name, known in PHRASE_PLACES.items():
                _check(f"{feature}: {name}", phrases[name], known)
        for code, text in self.currencies.items():
            _check(f"currency {code}", text, ("number",))
        for unit, text in self.units.items():
            if text.count("|") > 1 or set("{}") & set(text):
                raise TextError(f"unit {unit}: {text!r} is not singular|plural")


def _check(name: str, text: str, known: Collection[str]) -> None:
    try:
        Template.parse(text, places(*known))
    except TextError as exc:
        raise TextError(f"{name}: {exc}") from exc
