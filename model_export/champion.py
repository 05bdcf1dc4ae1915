"""What the champion says of the rows that a new model was tested on."""

from pathlib import Path

import numpy as np

from feature_client.errors import RapportError
from feature_client.release import Release, graph_file, read_release
from feature_client.routes import read_routes, routes_file
from feature_client.schema import MISSING, UNSEEN, FeatureSchema
from model_export.export import SCORE_OUTPUTS
from model_export.verify import Floats, Ints, Session

ROWS_AT_ONCE = 4_096


class OtherFeatures(RapportError):
    """A release that reads features which these rows do not have; the message names them."""


def find_champion(models: Path, model: str) -> Release | None:
    """The release that answers for `model` in this repository, if any does. Raises ReleaseError, RoutesError."""
    route = read_routes(models).get(model) if routes_file(models).exists() else None
    return None if route is None else read_release(models, model, route.champion)


def scores_of(release: Release, schema: FeatureSchema, numeric: Floats, categorical: Ints) -> Floats:
    """The release's own graph in ONNX Runtime, on rows of another schema [rows, N], [rows, K]: [rows, its tasks].

    Columns are found by name and categories by word; one that `schema` has no word for counts as unseen.
    Raises OtherFeatures.
    """
    numeric, categorical = _translated(release.contract.schema, schema, numeric, categorical)
    session = Session(graph_file(release.directory), SCORE_OUTPUTS)
    parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(numeric), ROWS_AT_ONCE)]
    return np.concatenate([session.run(numeric[part], categorical[part])["scores"] for part in parts])


def _translated(to: FeatureSchema, of: FeatureSchema, numeric: Floats, categorical: Ints) -> tuple[Floats, Ints]:
    there = {feature.name: feature.kind for feature in of.features}
    if other := [feature.name for feature in to.features if there.get(feature.name) != feature.kind]:
        raise OtherFeatures(f"it reads {', '.join(other[:3])}{', ...' if len(other) > 3 else ''}, not among these rows")
    numbers = [feature.name for feature in of.numeric]
    words = {feature.name: column for column, feature in enumerate(of.categorical)}
    columns = [numbers.index(feature.name) for feature in to.numeric]
    translated = np.empty((len(categorical), len(to.categorical)), dtype=np.int64)
    for column, feature in enumerate(to.categorical):
        place = words[feature.name]
        known = {word: index for index, word in enumerate(feature.vocabulary, start=2)}
        table = [MISSING, UNSEEN, *(known.get(word, UNSEEN) for word in of.categorical[place].vocabulary)]
        translated[:, column] = np.array(table)[categorical[:, place]]
    return numeric[:, columns], translated
