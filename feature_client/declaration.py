"""Whether a model was trained on the features that are declared now: one that changed since is served in silence.

What only people read (labels, texts, groups) may change, and the vocabulary comes from training.
"""

from collections.abc import Mapping

from feature_client.schema import FeatureSchema

HELD = ("kind", "view", "field", "dtype", "default", "nullable", "max_age_s", "on_stale")
"""What a model's numbers depend on."""


def declaration_differences(trained: FeatureSchema, declared: FeatureSchema) -> Mapping[str, str]:
    """Feature -> what is another in the model's contract than in the feature repository, in words."""
    found = {}
    for name in dict.fromkeys((*trained.by_name, *declared.by_name)):
        ours, theirs = trained.by_name.get(name), declared.by_name.get(name)
        if ours is None or theirs is None:
            found[name] = "declared, and not known to the model" if ours is None else "no longer declared"
        elif different := [part for part in HELD if getattr(ours, part) != getattr(theirs, part)]:
            found[name] = ", ".join(
                f"{part} is {getattr(ours, part)} in the model and {getattr(theirs, part)} as declared"
                for part in different
            )
    return found
