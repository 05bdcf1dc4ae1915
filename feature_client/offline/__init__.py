"""Events to features, offline: events, aggregates, the Feast registry, historical rows, materialization."""
