"""What is said to people about features, groups and tasks, in one language: compiled from the tags of the Feast
definitions (offline/texts.py), carried by the schema, put into words by the gateway (service/wording.py).

A template has places in braces, `{value}`, and choices by number, `{day|days}`: the first for exactly 1, the second
for everything else. Languages with more plural forms than these two cannot be written correctly.
"""

import re
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

from feature_client.errors import RapportError

ENGLISH = "en"
"""The language that is always there, and that answers where none is asked for."""


LONGEST_TEXT = 200
"""Characters. The longest that we say has 85; a release may come from anybody, and each is written a thousand times."""

MOST_PLACES = 2
"""How often a text may hold the same place: what stands in one may hold others."""


class TextError(RapportError):
    """A text that cannot be used; the message says which, and why."""


@dataclass(frozen=True)
class Place:
    """Where a value will stand."""

    name: str


Pieces = tuple[str | Place, ...]


@dataclass(frozen=True)
class Template:
    """A parsed text: `one` where the number is exactly 1, `other` for all else.

    What is filled in is never read as a template again: no value brings places or formats of its own.
    """

    one: Pieces
    other: Pieces

    @classmethod
    def literal(cls, text: str) -> "Template":
        return cls((text,), (text,))

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
            raise TextError(f"{text!r} has the place {{{exc.args[0]}}}; there are {known}") from exc
        except ValueError as exc:  # a lone brace
            raise TextError(f"{text!r}: {exc}") from exc
        return cls(sum((part.one for part in parts), ()), sum((part.other for part in parts), ()))


def places(*names: str) -> dict[str, Template]:
    """Places that are filled in when the text is used."""
    return {name: Template((Place(name),), (Place(name),)) for name in names}


def writer(pieces: Pieces, *names: str) -> Callable[..., str]:
    """What writes the text, given the values of these places in this order."""
    literals, order = [""], list[str]()
    for piece in pieces:
        if isinstance(piece, Place):
            order.append(piece.name)
            literals.append("")
        else:
            literals[-1] += piece
    # Thousands of these are written in a second: an f-string is several times faster than anything general.
    if tuple(order) == names and len(names) == 1:
        before, after = literals
        return lambda value: f"{before}{value}{after}"
    if tuple(order) == names and len(names) == 2:
        before, between, after = literals
        return lambda first, second: f"{before}{first}{between}{second}{after}"
    at = [names.index(name) for name in order]

    def write(*values: str) -> str:
        filled = [values[position] + literal for position, literal in zip(at, literals[1:], strict=True)]
        return literals[0] + "".join(filled)

    return write


def _choice(text: str, name: str) -> Template:
    one, _, other = name.partition("|")
    if "|" in other:
        raise TextError(f"{text!r}: a choice is {{singular|plural}}")
    return Template((one,), (other,))


@dataclass(frozen=True)
class NumberFormat:
    """How a language writes numbers, said by how it writes one thousand two hundred thirty-four and a half."""

    example: str

    def __post_init__(self) -> None:
        match = re.fullmatch(r"1([^\w-]?)234([^\w-])5", self.example)
        if match is None or match[1] == match[2]:
            raise TextError(f"the number format {self.example!r} is not 1234.5 with separators, as in 1,234.5")

    def localise(self, number: str) -> str:
        """number: as Python writes it, with commas between thousands."""
        return number if self._separators is None else number.translate(self._separators)

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
        for name, text in asdict(self.frames).items():
            _check(name, text, FRAME_PLACES.get(name))
        for feature, texts in self.features.items():
            for name, text in asdict(texts).items():
                _check(f"{feature}: {name}", text, PHRASE_PLACES.get(name))
        for group, text in self.groups.items():
            _check(f"group {group}", text, None)
        for task, text in self.tasks.items():
            _check(f"task {task}", text, None)
        for code, text in self.currencies.items():
            _check(f"currency {code}", text, ("number",))
        for unit, text in self.units.items():
            _check(f"unit {unit}", text, None)
            if text.count("|") > 1 or set("{}") & set(text):
                raise TextError(f"unit {unit}: {text!r} is not singular|plural")


def _check(name: str, text: str, known: Collection[str] | None) -> None:
    """known: the places that it may have; None where it is words. Raises TextError."""
    if len(text) > LONGEST_TEXT:
        raise TextError(f"{name}: a text has at most {LONGEST_TEXT} characters, not {len(text):,}")
    if known is None:
        return
    try:
        parsed = Template.parse(text, places(*known))
    except TextError as exc:
        raise TextError(f"{name}: {exc}") from exc
    if any(parsed.other.count(Place(place)) > MOST_PLACES for place in known):
        raise TextError(f"{name}: {text!r} has the same place more than {MOST_PLACES} times")
