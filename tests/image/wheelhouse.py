"""Wheels for a build without an index: what pip on this machine can reach, for the Python of the image."""

import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from email.parser import BytesHeaderParser
from pathlib import Path
from zipfile import ZipFile

from packaging.markers import default_environment
from packaging.requirements import Requirement

DOWNLOAD_TIMEOUT_S = 600


def fill_wheelhouse(directory: Path, project: Path, extra: str, python: Mapping[str, str]) -> None:
    """python: the markers python_version and python_full_version of the image.

    pip picks wheels for another Python, but reads the requirements' markers with its own: redis needs async-timeout
    only before Python 3.11.3, which Debian 12 has and most machines don't. Such requirements are added until none is
    missing.
    """
    settings = tomllib.loads((project / "pyproject.toml").read_text())
    wanted = {
        *settings["build-system"]["requires"],
        *settings["project"]["dependencies"],
        *settings["project"]["optional-dependencies"][extra],
    }
    while True:
        _download(directory, wanted, python)
        more = set(_overlooked(directory, python)) - wanted
        if not more:
            return
        wanted |= more


def _download(directory: Path, requirements: Iterable[str], python: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "pip", "download", "-qq", "--dest", str(directory)]
    command += ["--only-binary", ":all:", "--python-version", python["python_version"], *sorted(requirements)]
    subprocess.run(command, check=True, timeout=DOWNLOAD_TIMEOUT_S)


def _overlooked(directory: Path, python: Mapping[str, str]) -> Iterable[str]:
    """Requirements that hold in the image and not here."""
    here = {name: str(value) for name, value in default_environment().items()}
    for wheel in sorted(directory.glob("*.whl")):
        for text in _requirements(wheel):
            requirement = Requirement(text)
            marker = requirement.marker
            if (
                marker
                and marker.evaluate({**here, **python, "extra": ""})
                and not marker.evaluate({**here, "extra": ""})
            ):
                requirement.marker = None
                yield str(requirement)


def _requirements(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return BytesHeaderParser().parsebytes(archive.read(metadata)).get_all("Requires-Dist") or []
