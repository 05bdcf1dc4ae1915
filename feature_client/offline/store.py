"""The Feast store of a workspace: feature_repo's own configuration, with the workspace's places filled in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import ibis
import yaml
from feast import FeatureStore
from feast.repo_config import RepoConfig

from feature_client.offline.events import scratch
from feature_client.offline.workspace import Workspace

REPO = Path(__file__).parent.parent / "feature_repo"


def open_store(workspace: Workspace, repo: Path = REPO) -> FeatureStore:
    """Connects to nothing yet. repo: the folder with feature_store.yaml."""
    places = {
        "RAPPORT_PROJECT": workspace.project,
        "RAPPORT_WORKSPACE": str(workspace.root.resolve()),
        "RAPPORT_REDIS": workspace.redis,
    }
    # Not Feast's own loader: it takes the variables from the environment of the whole process.
    settings = _filled(yaml.safe_load((repo / "feature_store.yaml").read_text()), places)
    config = RepoConfig(**settings)
    config.repo_path = workspace.root.resolve()
    return FeatureStore(config=config)


@contextmanager
def reading(workspace: Workspace) -> Iterator[None]:
    """Around everything that makes Feast read: its DuckDB store uses Ibis's default backend, one for the process.

    Ours spills into the workspace, not into the directory where the process stands, and is gone afterwards.
    """
    before = ibis.options.default_backend
    with scratch(workspace) as (connection, _):
        ibis.set_backend(connection)
        try:
            yield
        finally:
            ibis.options.default_backend = before


def _filled(node: Any, places: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, places) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, places) for value in node]
    return Template(node).safe_substitute(places) if isinstance(node, str) else node
