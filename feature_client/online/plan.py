"""What to read for a schema, computed once: DESIGN.md 5, research on Feast's layout."""

from dataclasses import dataclass

from feature_client.schema import FeatureSchema


@dataclass(frozen=True)
class ReadPlan:
    schema: FeatureSchema
