"""One tiny release, really trained and exported, to damage and to poison."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from feature_client.release import Release
from tests.model_export.tiny_release import build_tiny_release


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A published release that no test changes."""
    return build_tiny_release(tmp_path_factory.mktemp("pristine") / "models")


@pytest.fixture
def release(pristine: Release, tmp_path: Path) -> Release:
    """A copy of it to change."""
    return replace(pristine, root=Path(shutil.copytree(pristine.root, tmp_path / "models")))
