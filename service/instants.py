"""Instants as people write them on a command line."""

from datetime import UTC, datetime

from feature_client.errors import RapportError


def instant_of(text: str | None) -> datetime | None:
    """ISO 8601, in UTC where it names no zone. Raises RapportError."""
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as exc:
        raise RapportError("--as-of takes an ISO 8601 instant, for example 2011-09-01T00:00:00Z") from exc
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
