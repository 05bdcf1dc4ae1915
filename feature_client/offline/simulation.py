"""How generated customers behave, week by week; the effects are the truth that truth.json states."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WEEKS = 104
WEEK_S = 604_800
YEAR_S = 365.2425 * 86_400
PEAK_S = 338 * 86_400
"""Seconds into the year at which buying peaks: early December."""

CATEGORIES = (
    "accessories",
    "christmas",
    "decoration",
    "garden",
    "kitchen",
    "lighting",
    "stationery",
    "textiles",
    "toys",
)
COUNTRY_SHARES = {
    "Germany": 0.38, "France": 0.17, "United Kingdom": 0.14, "Netherlands": 0.10,
    "Spain": 0.08, "Sweden": 0.06, "Poland": 0.05, "Japan": 0.02,
}  # fmt: skip
CHANNELS = ("web", "app", "store")


ABOUT_EFFECTS = (
    "Rates are per week. Effects add to the logarithm of a rate or hazard; those of opens to log-odds. "
    "Engagement is a standard normal state of the customer that drifts slowly; nobody observes it."
)


@dataclass(frozen=True)
class Effects:
    orders_mean_rate: float = 0.11
    orders_rate_sd: float = 1.0  # between customers, of the logarithm: a heavy tail
    orders_per_engagement: float = 0.55
    orders_per_open_last_week: float = 0.45
    orders_season: float = 0.30  # amplitude of a yearly wave

    leaving_mean_hazard: float = 0.009
    leaving_per_engagement: float = -0.60
    leaving_per_return_last_4_weeks: float = 0.70  # orders of these weeks that were (or will be) sent back; at most 2
    leaving_per_service_use_last_4_weeks: float = -0.35  # at most 3

    pieces_mean: float = 2.0  # of a line
    pieces_sd: float = 0.70  # between customers, of the logarithm
    pieces_per_engagement: float = 0.15

    sessions_mean_rate: float = 0.45
    sessions_per_engagement: float = 0.90
    sessions_per_rate: float = 0.40  # by the standardised buying rate
    services_mean_rate: float = 0.06
    services_per_engagement: float = 0.50
    opens_log_odds: float = -1.6  # of one campaign; there is one every second week
    opens_per_engagement: float = 0.80

    engagement_memory: float = 0.94  # autocorrelation from week to week
    returned_order_share: float = 0.08  # between customers Beta(0.8, .)


@dataclass(frozen=True)
class Behaviour:
    """Some customers. Weekly arrays are [customers, weeks]; week 0 begins WEEKS weeks before the anchor."""

    country: Ints  # [customers] into COUNTRY_SHARES
    channel: Ints  # [customers] into CHANNELS: the preferred one
    taste: Floats  # [customers, categories], cumulative
    pieces: Floats  # weekly: mean pieces of a line
    orders: Ints
    returned: Ints  # of these orders
    sessions: Ints
    services: Ints
    opens: Ints


def simulate(rng: np.random.Generator, customers: int, anchor_s: float, effects: Effects) -> Behaviour:
    """anchor_s: epoch seconds at which the last week ends."""
    buying = rng.standard_normal(customers)
    rate = effects.orders_mean_rate * np.exp(effects.orders_rate_sd * buying - effects.orders_rate_sd**2 / 2)
    share = rng.beta(0.8, 0.8 / effects.returned_order_share - 0.8, customers)
    joined = np.where(rng.random(customers) < 0.4, 0, rng.integers(1, WEEKS - 4, customers))
    engagement = rng.standard_normal(customers)
    present = np.ones(customers, dtype=bool)
    pieces_level = effects.pieces_sd * rng.standard_normal(customers)

    weekly = {
        name: np.zeros((customers, WEEKS), dtype=np.int64)
        for name in ("orders", "returned", "sessions", "services", "opens")
    }
    pieces = np.zeros((customers, WEEKS))
    for week in range(WEEKS):
        middle = anchor_s - (WEEKS - week - 0.5) * WEEK_S
        season = effects.orders_season * np.cos(2 * np.pi * (middle - PEAK_S) / YEAR_S)
        active = present & (joined <= week)
        opened = weekly["opens"][:, week - 1] if week else np.zeros(customers, dtype=np.int64)
        growth = effects.orders_per_engagement * engagement + effects.orders_per_open_last_week * opened + season
        orders = rng.poisson(np.minimum(rate * np.exp(growth), 15.0)) * active
        # Whoever joins does so with an order; who was there before the data begins need not.
        orders = np.where((joined == week) & (week > 0), np.maximum(orders, 1), orders)
        weekly["orders"][:, week] = orders
        weekly["returned"][:, week] = rng.binomial(orders, share)
        weekly["sessions"][:, week] = active * rng.poisson(
            effects.sessions_mean_rate
            * np.exp(effects.sessions_per_engagement * engagement + effects.sessions_per_rate * buying)
        )
        weekly["services"][:, week] = active * rng.poisson(
            effects.services_mean_rate * np.exp(effects.services_per_engagement * engagement)
        )
        if week % 2 == 0:
            log_odds = effects.opens_log_odds + effects.opens_per_engagement * engagement
            weekly["opens"][:, week] = active & (rng.random(customers) < 1 / (1 + np.exp(-log_odds)))
        pieces[:, week] = effects.pieces_mean * np.exp(pieces_level + effects.pieces_per_engagement * engagement)

        lately = slice(max(week - 3, 0), week + 1)
        hazard = effects.leaving_mean_hazard * np.exp(
            effects.leaving_per_engagement * engagement
            + effects.leaving_per_return_last_4_weeks * np.minimum(weekly["returned"][:, lately].sum(axis=1), 2)
            + effects.leaving_per_service_use_last_4_weeks * np.minimum(weekly["services"][:, lately].sum(axis=1), 3)
        )
        present &= ~(active & (rng.random(customers) < -np.expm1(-hazard)))
        noise = np.sqrt(1 - effects.engagement_memory**2) * rng.standard_normal(customers)
        engagement = effects.engagement_memory * engagement + noise

    taste = rng.dirichlet(np.full(len(CATEGORIES), 0.6), customers)
    return Behaviour(
        country=rng.choice(len(COUNTRY_SHARES), customers, p=list(COUNTRY_SHARES.values())),
        channel=rng.choice(len(CHANNELS), customers, p=[0.5, 0.35, 0.15]),
        taste=taste.cumsum(axis=1),
        pieces=pieces,
        **weekly,
    )
