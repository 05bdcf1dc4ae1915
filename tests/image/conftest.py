"""The image, built as anybody would build it and without a Docker daemon: `make test-image`, as root on Debian.

Base image and build storage stay in .rapport/image, so that the second run takes a minute instead of three.
RAPPORT_TEST_BASE_IMAGE names another base image, for example python:3.11-slim-bookworm where there is a registry.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.image.wheelhouse import fill_wheelhouse

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".rapport" / "image"
TIMEOUT_S = 900


@dataclass(frozen=True)
class Buildah:
    """Debian's buildah with its own storage; chroot isolation needs neither a daemon nor kernel namespaces."""

    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return ["buildah", *arguments]

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()


@dataclass(frozen=True)
class Container:
    """name: buildah's. root: its files, seen from outside."""

    buildah: Buildah
    name: str
    root: Path
    config: dict[str, Any]

    def command(
        self, command: list[str], settings: dict[str, str], volumes: dict[Path, str] | None = None
    ) -> list[str]:
        options = [option for name, value in settings.items() for option in ("--env", f"{name}={value}")]
        for source, target in (volumes or {}).items():
            options += ["--volume", f"{source}:{target}:ro"]
        return self.buildah.command("run", *options, self.name, "--", *command)

    def python(self, code: str) -> str:
        return self.buildah.run("run", self.name, "--", "python", "-c", code)


@pytest.fixture(scope="session")
def buildah() -> Buildah:
    if os.geteuid() != 0:
        pytest.skip("needs root, for debootstrap and buildah's chroot isolation")
    HOME.mkdir(parents=True, exist_ok=True)
    storage = HOME / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{HOME}/storage"\nrunroot = "{HOME}/run"\n')
    return Buildah({**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"})


@pytest.fixture(scope="session")
def base_image(buildah: Buildah) -> str:
    if given := os.environ.get("RAPPORT_TEST_BASE_IMAGE"):
        return given
    name = "localhost/rapport-base"
    subprocess.run([ROOT / "deploy/image/base.sh", name], env=buildah.environment, check=True, timeout=TIMEOUT_S)
    return name


@pytest.fixture(scope="session")
def image(buildah: Buildah, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    started = time.monotonic()
    container = buildah.run("from", base_image)
    versions = "import platform, json, sys; v = platform.python_version(); "
    versions += "print(json.dumps({'python_full_version': v, 'python_version': '.'.join(v.split('.')[:2])}))"
    python = json.loads(buildah.run("run", container, "--", "python3", "-c", versions))
    buildah.run("rm", container)
    wheels = tmp_path_factory.mktemp("wheels")
    fill_wheelhouse(wheels, ROOT, "cpu", python)
    name = "localhost/rapport"
    # `docker` is the format that has health checks. The build sees no index: what it installs is what pip found here.
    buildah.run(
        *("build", "--format", "docker", "--tag", name, "--build-arg", f"BASE_IMAGE={base_image}"),
        *("--build-context", f"wheels={wheels}", "--build-arg", "PIP_NO_INDEX=1", str(ROOT)),
    )
    print(f"\nbuilt in {time.monotonic() - started:.0f} s for Python {python['python_full_version']}")  # noqa: T201
    return name


@pytest.fixture(scope="session")
def container(buildah: Buildah, image: str) -> Iterator[Container]:
    config = json.loads(buildah.run("inspect", "--type", "image", image))["Docker"]["config"]
    name = buildah.run("from", image)
    try:
        yield Container(buildah, name, Path(buildah.run("mount", name)), config)
    finally:
        buildah.run("rm", name)
        buildah.run("rmi", "--prune")  # what builds replaced; vfs stores every layer whole
