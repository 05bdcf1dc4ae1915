"""Installed once, and only what is whole counts; without an index, so that whatever would be fetched is an error.

That it can be made at all is what `make test` shows before any of these.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from feature_client.errors import RapportError
from service import triton_install
from service.local_triton import LocalTriton
from service.triton_install import Installation, find, install


@pytest.fixture
def copy(triton: LocalTriton, tmp_path: Path) -> Installation:
    """Of the real one, to damage: links, so that it costs nothing."""
    home = tmp_path / "triton"
    shutil.copytree(
        find().home, home, copy_function=lambda source, target: Path(target).hardlink_to(source), symlinks=True
    )
    # Written anew where it is written.
    stamp = (home / "installed.json").read_text()
    (home / "installed.json").unlink()
    (home / "installed.json").write_text(stamp)
    return find(home)


@pytest.fixture(autouse=True)
def _no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_a_second_install_does_nothing(copy: Installation) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.home.iterdir() if path.name != ".lock"}

    command = [sys.executable, "-m", "service.cli", "triton", "install", str(copy.home)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout == f"{copy.home}\n"
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("part", ["installed.json", "python", "wheel"])
def test_what_is_not_whole_is_not_found_and_made_anew(copy: Installation, part: str) -> None:
    path = copy.home / part
    path.unlink() if path.is_file() else shutil.rmtree(path)

    with pytest.raises(RapportError, match="there is no Triton in"):
        find(copy.home)
    with pytest.raises(RapportError, match="No matching distribution found for nvidia-pytriton"):
        install(copy.home)
    # What failed half-way is not found either.
    with pytest.raises(RapportError, match="there is no Triton in"):
        find(copy.home)


def test_other_versions_than_these_are_not_found(copy: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install, "NUMPY", "numpy==1.26.5")
    with pytest.raises(RapportError, match="there is no Triton in"):
        find(copy.home)


def test_a_machine_without_its_python_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install, "PYTHON", "3.9999")
    with pytest.raises(RapportError, match=r"needs python3\.9999: install Debian's package python3\.9999"):
        install(tmp_path)


def test_a_machine_without_a_library_is_told_which(copy: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copy.libraries)
    with pytest.raises(RapportError, match=r"needs libcudart.*: install them"):
        triton_install.require_libraries(copy)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RapportError, match=f"cannot be installed in {tmp_path}/file"):
        install(tmp_path / "file")


def test_nothing_of_this_python_reaches_the_other(monkeypatch: pytest.MonkeyPatch, triton: LocalTriton) -> None:
    """Its Python processes would find another NumPy, and answer OK with empty tensors."""
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PYTHONHOME", "/somewhere")
    installation = find()

    environment = installation.environment()

    assert environment.keys() & {"PYTHONPATH", "PYTHONHOME", "RAPPORT_TRITON_HOME"} == set()
    code = "import numpy, sys; print(sys.version_info[:2], numpy.__version__)"
    said = subprocess.run(["python3", "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "(3, 11) 1.26.4\n"
