"""What somebody who can write to a repository can do: change files, and recompute every checksum."""

import json
from pathlib import Path
from typing import Any

import msgspec

from feature_client.release import Release, read_release, release_files, sha256


def seal(release: Release, **changed: Any) -> None:
    """Makes the manifest anew over what is there now. changed: fields of the manifest."""
    listed = [
        file for file in release_files(release.name, release.manifest.explainers) if (release.root / file).is_file()
    ]
    digests = {file: sha256(release.root / file) for file in listed}
    manifest = {**msgspec.to_builtins(release.manifest), "files": digests, **changed}
    manifest_file(release).write_text(json.dumps(manifest))


def manifest_file(release: Release) -> Path:
    return release.directory / "manifest.json"


def read_again(release: Release) -> Release:
    return read_release(release.root, release.manifest.model, release.manifest.version)
