"""Tags of the Feast definitions, compiled into the texts of each language (docs/reasons.md says which tags there are).

A translation has the tag of the English text with the language behind it: `label.de`, `sentence.raises.de`. The
languages of a service are English and those in which its own tags put sentences; these it says whole. What a field,
group, task or unit does not say in such a language falls back to English.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feature_client.schema import CALENDAR, Feature, SchemaError
from feature_client.texts import ENGLISH, FeatureTexts, Frames, TextError, Texts

FIELD_TEXTS = ("label", "say", "say_zero", "say_missing", "say_unseen")
"""Tags of a field that people read, and that may be translated."""

CALENDAR_TEXTS: Mapping[str, str] = {"calendar_label": "label", "calendar_say": "say"}
"""The same for features of the calendar, which are no fields: tags of the service."""

FRAMES: Mapping[str, str] = {
    "format.number": "number",
    "format.months": "months",
    "sentence.raises": "raises",
    "sentence.lowers": "lowers",
    "sentence.none": "none",
    "sentence.other": "other",
    "sentence.say": "say",
    "sentence.missing": "missing",
    "sentence.unseen": "unseen",
    "amount.points": "points",
    "amount.log_odds": "log_odds",
    "amount.log_currency": "log_currency",
    "amount.less_than": "less_than",
    "amount.currency": "currency",
    "amount.share": "share",
}
"""Tag of a service -> the frame that it says; a language says them all."""

NAMES_AFTER: Mapping[str, int] = {
    **dict.fromkeys(CALENDAR_TEXTS, 0),
    **dict.fromkeys(("group", "task", "unit", "currency"), 1),
    **{frame.partition(".")[0]: 1 for frame in FRAMES},
}
"""How many names follow the first of a service's tag, before the language: `unit.days.de` has one."""

LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Said:
    """A tag of a service, taken apart."""

    family: str
    name: str  # of a group, task, unit, currency or frame
    language: str
    text: str


def languages(service: str, tags: Mapping[str, str]) -> tuple[str, ...]:
    """English, and the others in their alphabet. Raises SchemaError for one that lacks a frame, or is no language."""
    said: dict[str, set[str]] = {}
    for tag in tags:
        frame, _, language = tag.rpartition(".")
        if frame in FRAMES:
            said.setdefault(language, set()).add(frame)
    for language, frames in sorted(said.items()):
        if language == ENGLISH or not LANGUAGE.fullmatch(language):
            raise SchemaError(f"{service}: {language!r} is no language to translate into; write de or pt-BR")
        if lacking := [f"{frame}.{language}" for frame in FRAMES if frame not in frames]:
            raise SchemaError(f"{service}: {language} is not said whole: no tag {', '.join(lacking)}")
    return (ENGLISH, *sorted(said))


def field_texts(field: str, tags: Mapping[str, str], spoken: Sequence[str]) -> Mapping[str, FeatureTexts]:
    """language -> texts of one field. Raises SchemaError where a tag is misspelt, or in a language nobody speaks."""
    found: dict[str, dict[str, str]] = {}
    for tag, text in tags.items():
        name, dot, language = tag.partition(".")
        if name in FIELD_TEXTS:
            found.setdefault(_language(field, tag, language, spoken) if dot else ENGLISH, {})[name] = text
        elif language in spoken:
            raise SchemaError(f"{field}: unknown tag {tag}")
    return {language: _texts(language, texts) for language, texts in found.items()}


def compile_texts(
    service: str,
    tags: Mapping[str, str],
    features: Sequence[Feature],
    fields: Mapping[str, Mapping[str, FeatureTexts]],
) -> dict[str, Texts]:
    """language -> its texts, in an order that does not depend on Feast's.

    tags: of the service. fields: feature -> language -> what its field says. Raises SchemaError.
    """
    spoken = languages(service, tags)
    said = [read for tag, text in sorted(tags.items()) if (read := _read(service, tag, text, spoken))]
    texts = {}
    for language in spoken:
        in_it = [one for one in said if one.language == language]
        calendar = _texts(language, {CALENDAR_TEXTS[one.family]: one.text for one in in_it if not one.name})
        own = dict.fromkeys(CALENDAR, calendar)
        own |= {name: in_languages.get(language, FeatureTexts()) for name, in_languages in fields.items()}
        try:
            texts[language] = Texts(
                Frames(**{FRAMES[tag]: one.text for one in in_it if (tag := f"{one.family}.{one.name}") in FRAMES}),
                {feature.name: own[feature.name] for feature in features if own[feature.name] != FeatureTexts()},
                # The English ones are the schema's own.
                {} if language == ENGLISH else _named("group", in_it),
                _named("task", in_it),
                _named("unit", in_it),
                _named("currency", in_it),
            )
        except TextError as exc:
            raise SchemaError(f"{service}: {exc} ({language})") from exc
    return texts


def _texts(language: str, texts: Mapping[str, str]) -> FeatureTexts:
    """Without the English label, which is the feature's own."""
    return FeatureTexts(**{name: text for name, text in texts.items() if (name, language) != ("label", ENGLISH)})


def _named(family: str, said: Sequence[Said]) -> dict[str, str]:
    return {one.name: one.text for one in said if one.family == family}


def _read(service: str, tag: str, text: str, spoken: Sequence[str]) -> Said | None:
    """None for a tag that says none of these texts. Raises SchemaError for one that is misspelt."""
    family, *rest = tag.split(".")
    if family not in NAMES_AFTER:
        if rest and rest[-1] in spoken:
            raise SchemaError(f"{service}: unknown tag {tag}")
        return None
    names, language = rest[: NAMES_AFTER[family]], rest[NAMES_AFTER[family] :]
    frames = [frame for frame in FRAMES if frame.startswith(f"{family}.")]
    if len(names) < NAMES_AFTER[family] or len(language) > 1 or (frames and f"{family}.{names[0]}" not in frames):
        raise SchemaError(f"{service}: unknown tag {tag}")
    in_it = _language(service, tag, language[0], spoken) if language else ENGLISH
    return Said(family, "".join(names), in_it, text)


def _language(where: str, tag: str, language: str, spoken: Sequence[str]) -> str:
    if language not in spoken[1:]:
        translated = ", ".join(spoken[1:]) or "none"
        raise SchemaError(f"{where}: {tag} is in no language of the service besides English; there are {translated}")
    return language
