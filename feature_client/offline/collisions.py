"""Feast names a stored value by 4 bytes of hash: two features of one entity that share them overwrite each other."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import mmh3
from feast import FeatureStore


def colliding(store: FeatureStore, view: Any, fields: Iterable[str], stored_as: str | None = None) -> str | None:
    """Names in one sentence, where a field of `view` or of any view beside it, read or not, shares its bytes.

    stored_as: the view's name in Redis, where a version makes it another one.
    """
    keys = join_keys(store, view)
    names = {(stored_as or str(view.name), field) for field in fields}
    registry, project = store.registry, store.project
    for other in (*registry.list_feature_views(project), *registry.list_stream_feature_views(project)):
        if join_keys(store, other) == keys:
            names.update((str(other.name), str(field.name)) for field in other.features)
    stored: defaultdict[int, set[str]] = defaultdict(set)
    for name, field in names:
        stored[mmh3.hash(f"{name}:{field}")].add(f"{name}:{field}")
    for same in stored.values():
        if len(same) > 1:
            return f"{' and '.join(sorted(same))} share one field in Feast's Redis layout: rename one"
    return None


def join_keys(store: FeatureStore, view: Any) -> list[str]:
    return sorted(store.registry.get_entity(name, store.project, allow_cache=True).join_key for name in view.entities)
