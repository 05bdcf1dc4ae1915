"""What definitions.py says to people, in German: the same tags with `.de` behind them.

Nouns stand as the sentence needs them: `task` in the accusative ("erhöht die Abwanderung"), and a unit in another case
than its own is written out by the phrase that needs it ("seit {number} {Tag|Tagen}").
"""

from collections.abc import Mapping

LANGUAGE = "de"


def _translated(texts: Mapping[str, str]) -> Mapping[str, str]:
    return {f"{tag}.{LANGUAGE}": text for tag, text in texts.items()}


def _said(label: str, **texts: str) -> Mapping[str, str]:
    return _translated({"label": label, **texts})


FIELDS: Mapping[str, Mapping[str, str]] = {
    "orders_30d": _said("Bestellungen in 30 Tagen", say="{value} in 30 Tagen", say_zero="keine Bestellung in 30 Tagen"),
    "orders_90d": _said("Bestellungen in 90 Tagen", say="{value} in 90 Tagen", say_zero="keine Bestellung in 90 Tagen"),
    "orders_365d": _said(
        "Bestellungen in einem Jahr", say="{value} in einem Jahr", say_zero="keine Bestellung in einem Jahr"
    ),
    "spend_30d": _said("Umsatz in 30 Tagen", say="{value} Umsatz in 30 Tagen", say_zero="kein Umsatz in 30 Tagen"),
    "spend_90d": _said("Umsatz in 90 Tagen", say="{value} Umsatz in 90 Tagen", say_zero="kein Umsatz in 90 Tagen"),
    "spend_365d": _said(
        "Umsatz in einem Jahr", say="{value} Umsatz in einem Jahr", say_zero="kein Umsatz in einem Jahr"
    ),
    "orders_prev_90d": _said(
        "Bestellungen in den 90 Tagen vor den letzten 90",
        say="{value} in den 90 Tagen vor den letzten 90",
        say_zero="keine Bestellung in den 90 Tagen vor den letzten 90",
    ),
    "spend_prev_90d": _said(
        "Umsatz in den 90 Tagen vor den letzten 90",
        say="{value} Umsatz in den 90 Tagen vor den letzten 90",
        say_zero="kein Umsatz in den 90 Tagen vor den letzten 90",
    ),
    "orders_next30_year_ago": _said(
        "Bestellungen in den nächsten 30 Tagen, vor einem Jahr",
        say="{value} in den nächsten 30 Tagen des Vorjahres",
        say_zero="keine Bestellung in den nächsten 30 Tagen des Vorjahres",
        say_missing="keine Aufzeichnung des Vorjahres",
    ),
    "spend_next90_year_ago": _said(
        "Umsatz in den nächsten 90 Tagen, vor einem Jahr",
        say="{value} Umsatz in den nächsten 90 Tagen des Vorjahres",
        say_zero="kein Umsatz in den nächsten 90 Tagen des Vorjahres",
        say_missing="keine Aufzeichnung des Vorjahres",
    ),
    "max_order_365d": _said(
        "Größte Bestellung in einem Jahr",
        say="eine größte Bestellung von {value} in einem Jahr",
        say_zero="keine Bestellung in einem Jahr",
    ),
    "returns_90d": _said(
        "Zurückgesandte Positionen in 90 Tagen",
        say="{value} zurückgesandt in 90 Tagen",
        say_zero="nichts zurückgesandt in 90 Tagen",
        say_missing="Rücksendungen nicht erfasst",
    ),
    "returns_365d": _said(
        "Zurückgesandte Positionen in einem Jahr",
        say="{value} zurückgesandt in einem Jahr",
        say_zero="nichts zurückgesandt in einem Jahr",
        say_missing="Rücksendungen nicht erfasst",
    ),
    "return_value_365d": _said(
        "Wert der Rücksendungen in einem Jahr",
        say="Rücksendungen im Wert von {value} in einem Jahr",
        say_zero="nichts zurückgesandt in einem Jahr",
        say_missing="Rücksendungen nicht erfasst",
    ),
    "distinct_items_90d": _said(
        "Verschiedene Artikel in 90 Tagen",
        say="{number} {verschiedener|verschiedene} Artikel in 90 Tagen",
        say_zero="kein Artikel in 90 Tagen",
    ),
    "distinct_items_365d": _said(
        "Verschiedene Artikel in einem Jahr",
        say="{number} {verschiedener|verschiedene} Artikel in einem Jahr",
        say_zero="kein Artikel in einem Jahr",
    ),
    "distinct_categories_365d": _said(
        "Verschiedene Kategorien in einem Jahr",
        say="{number} verschiedene {Kategorie|Kategorien} in einem Jahr",
        say_zero="keine Kategorie in einem Jahr",
    ),
    "avg_price_365d": _said(
        "Mittlerer Preis eines Artikels",
        say="im Mittel {value} je Artikel",
        say_missing="keine Bestellung in einem Jahr",
    ),
    "lines_per_order_365d": _said(
        "Positionen je Bestellung", say="{value} je Bestellung", say_missing="keine Bestellung in einem Jahr"
    ),
    "christmas_share_365d": _said(
        "Anteil der Weihnachtsartikel",
        say="{value} Weihnachtsartikel",
        say_zero="keine Weihnachtsartikel",
        say_missing="keine Bestellung in einem Jahr",
    ),
    "top_category": _said(
        "Meistgekaufte Kategorie",
        say="kauft am meisten {value}",
        say_missing="keine Bestellung in einem Jahr",
        say_unseen="kauft am meisten aus einer Kategorie, die im Training nicht vorkam",
    ),
    "last_purchase_at": _said(
        "Tage seit dem letzten Kauf",
        say="kein Kauf seit {number} {Tag|Tagen}",
        say_zero="ein Kauf innerhalb des letzten Tages",
        say_missing="noch kein Kauf",
    ),
    "first_purchase_at": _said(
        "Tage seit dem ersten Kauf",
        say="Kunde seit {number} {Tag|Tagen}",
        say_zero="Kunde seit weniger als einem Tag",
        say_missing="noch kein Kauf",
    ),
    "lifetime_orders": _said("Bestellungen bisher", say="{value} bisher", say_zero="noch keine Bestellung"),
    "lifetime_spend": _said("Umsatz bisher", say="{value} Umsatz bisher", say_zero="noch kein Umsatz"),
    "mean_gap_days": _said(
        "Mittlere Tage zwischen Bestellungen",
        say="im Mittel {value} zwischen Bestellungen",
        say_zero="alle Bestellungen an einem Tag",
        say_missing="noch keine zweite Bestellung",
    ),
    "gap_std_days": _said(
        "Abweichung der Tage zwischen Bestellungen",
        say="Zeit zwischen Bestellungen schwankt um {value}",
        say_zero="Bestellungen in gleichen Abständen",
        say_missing="noch keine dritte Bestellung",
    ),
    "last_order_value": _said(
        "Wert der letzten Bestellung", say="eine letzte Bestellung von {value}", say_missing="noch keine Bestellung"
    ),
    "country": _said(
        "Land",
        say="Kunde in {value}",
        say_missing="Land nicht bekannt",
        say_unseen="ein Land, das im Training nicht vorkam",
    ),
    "preferred_channel": _said(
        "Meistgenutzter Kanal",
        say="nutzt am meisten {value}",
        say_missing="Kanal nicht bekannt",
        say_unseen="ein Kanal, der im Training nicht vorkam",
    ),
    "sessions_7d": _said(
        "Besuche in 7 Tagen",
        say="{value} in 7 Tagen",
        say_zero="kein Besuch in 7 Tagen",
        say_missing="Besuche nicht erfasst",
    ),
    "sessions_30d": _said(
        "Besuche in 30 Tagen",
        say="{value} in 30 Tagen",
        say_zero="kein Besuch in 30 Tagen",
        say_missing="Besuche nicht erfasst",
    ),
    "service_uses_30d": _said(
        "Nutzungen von Diensten in 30 Tagen",
        say="{value} von Diensten in 30 Tagen",
        say_zero="kein Dienst genutzt in 30 Tagen",
        say_missing="Nutzung von Diensten nicht erfasst",
    ),
    "campaign_opens_30d": _said(
        "Geöffnete Kampagnen in 30 Tagen",
        say="{number} {Kampagne|Kampagnen} geöffnet in 30 Tagen",
        say_zero="keine Kampagne geöffnet in 30 Tagen",
        say_missing="Kampagnen nicht erfasst",
    ),
    "last_session_at": _said(
        "Tage seit dem letzten Besuch",
        say="kein Besuch seit {number} {Tag|Tagen}",
        say_zero="ein Besuch innerhalb des letzten Tages",
        say_missing="kein Besuch bekannt",
    ),
}
"""Name of a stored field -> its tags."""

SERVICE: Mapping[str, str] = _translated(
    {
        "format.number": "1.234,5",
        "format.months": ("Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"),
        "sentence.raises": "{what}: erhöht {task} um {amount}",
        "sentence.lowers": "{what}: senkt {task} um {amount}",
        "sentence.none": "{what}: ändert {task} nicht",
        "sentence.other": "Alles Übrige",
        "sentence.say": "{label} ({value})",
        "sentence.missing": "nicht bekannt",
        "sentence.unseen": "im Training nicht vorgekommen",
        "amount.points": "{number} {Prozentpunkt|Prozentpunkte}",
        "amount.log_odds": "{number} in Log-Odds",
        "amount.log_currency": "{number} im Logarithmus von {currency}",
        "amount.less_than": "weniger als {amount}",
        "amount.currency": "{number} {currency}",
        "amount.share": "{number} %",
        "calendar_label": "Jahreszeit",
        "calendar_say": "es ist {value}",
        "group.recency": "Tage seit dem letzten Kauf",
        "group.frequency": "Wie oft sie kaufen",
        "group.spend": "Wie viel sie ausgeben",
        "group.rhythm": "Der Rhythmus ihrer Bestellungen",
        "group.products": "Was sie kaufen",
        "group.returns": "Was sie zurücksenden",
        "group.engagement": "Besuche, Dienste und Kampagnen",
        "group.context": "Land, Kanal und Jahreszeit",
        "task.purchase_30d": "die Kaufwahrscheinlichkeit",
        "task.churn_90d": "die Abwanderung",
        "task.spend_90d": "den erwarteten Umsatz",
        "unit.days": "Tag|Tage",
        "unit.orders": "Bestellung|Bestellungen",
        "unit.lines": "Position|Positionen",
        "unit.items": "Artikel",
        "unit.categories": "Kategorie|Kategorien",
        "unit.sessions": "Besuch|Besuche",
        "unit.uses": "Nutzung|Nutzungen",
        "unit.opens": "Öffnung|Öffnungen",
        "currency.GBP": "{number} £",
        "currency.EUR": "{number} €",
        "currency.USD": "{number} $",
    }
)
