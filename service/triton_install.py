"""A real tritonserver without a container: NVIDIA's binary from a wheel, and an environment for its Python processes.

Only what executes a graph is ours (deploy/triton/backends/onnxruntime): configurations, versions, batching, metrics,
model control and both protocols are Triton's own.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from feature_client.errors import RapportError

HOME_VARIABLE = "RAPPORT_TRITON_HOME"
BACKENDS = Path(__file__).parents[1] / "deploy/triton/backends"
SERVER = "nvidia-pytriton==0.7.0"
"""The wheel that holds tritonserver 2.51, which is 24.10's."""

NUMPY = "numpy==1.26.4"
"""With NumPy 2, the Python processes of this Triton answer OK with empty tensors."""

PYTHON = "3.11"
"""The wheel has a stub for several; this is Debian 12's."""

FORMAT = 1


@dataclass(frozen=True)
class Installation:
    """home: the directory that holds all of it, and nothing else."""

    home: Path

    @property
    def server(self) -> Path:
        return self.home / "wheel/pytriton/tritonserver/bin/tritonserver"

    @property
    def libraries(self) -> Path:
        return self.home / "wheel/nvidia_pytriton.libs"

    @property
    def backends(self) -> Path:
        """Triton's own: `python`, which runs the Python processes of others."""
        return self.home / "backends"

    @property
    def python(self) -> Path:
        return self.home / "python/bin/python3"

    @property
    def stamp(self) -> Path:
        """Written last: without it there is no installation, however much of it is there."""
        return self.home / "installed.json"

    def environment(self) -> dict[str, str]:
        """Of tritonserver. Not the shell's PYTHON*: what they name is for another Python, with another NumPy."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAPPORT_"))}
        return kept | {
            # Its Python processes are embedded: they look for packages beside the first python3 of PATH.
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": str(self.libraries),
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def default_home() -> Path:
    """RAPPORT_TRITON_HOME, else inside the environment that this Python runs in: it goes when that goes."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path(sys.prefix) / "triton"


def find(home: Path | None = None) -> Installation:
    """Raises RapportError, with the command to type, where there is none that this version made."""
    installation = Installation((home or default_home()).absolute())
    if not _is_whole(installation):
        raise RapportError(f"there is no Triton in {installation.home}: `rapport triton install` makes it")
    return installation


def install(home: Path | None = None) -> Installation:
    """Does nothing where it is done. Raises RapportError, in one sentence, where this machine cannot have it."""
    installation = Installation((home or default_home()).absolute())
    try:
        installation.home.mkdir(parents=True, exist_ok=True)
        with _alone(installation.home):
            if not _is_whole(installation):
                _install(installation)
    except OSError as exc:
        raise RapportError(f"Triton cannot be installed in {installation.home}: {exc.strerror or exc}") from exc
    return installation


def _install(installation: Installation) -> None:
    if not BACKENDS.is_dir():
        raise RapportError("deploy/triton is not here: a local Triton needs a checkout of the repository")
    home, python = installation.home, _find_python()
    installation.stamp.unlink(missing_ok=True)
    for part in ("wheel", "backends", "python"):
        shutil.rmtree(home / part, ignore_errors=True)
    _pip("install", "--no-deps", "--target", str(home / "wheel"), SERVER)
    source = home / "wheel/pytriton/tritonserver"
    # Triton looks for the stub beside the library of the backend that starts it.
    shutil.copytree(source / "backends/python", installation.backends / "python")
    stub = source / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    shutil.copy(stub, installation.backends / "python")
    require_libraries(installation)
    _run([python, "-m", "venv", "--without-pip", str(home / "python")])
    # Not what ONNX Runtime declares: it runs without, and what is not there cannot be of a wrong version.
    _pip("--python", str(installation.python), "install", "--no-deps", NUMPY, _runtime())
    _run([str(installation.python), "-c", "import onnxruntime"])
    installation.stamp.write_text(json.dumps(_made_from()))


def _is_whole(installation: Installation) -> bool:
    try:
        made_from = json.loads(installation.stamp.read_text())
    except (OSError, ValueError):
        return False
    # Its Python is a link to the one of this machine, which may have gone.
    return bool(made_from == _made_from() and installation.server.exists() and installation.python.exists())


def _made_from() -> dict[str, object]:
    return {"format": FORMAT, "packages": [SERVER, NUMPY, _runtime()], "python": PYTHON}


def _runtime() -> str:
    """The ONNX Runtime that verified the release, where there is one: the same graph, the same answers."""
    try:
        return f"onnxruntime=={version('onnxruntime')}"
    except PackageNotFoundError:
        return "onnxruntime>=1.20,<2"


def _find_python() -> str:
    """A Python of the stub's version, whatever runs this."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = sys.executable if own == PYTHON else shutil.which(f"python{PYTHON}")
    if found is None:
        raise RapportError(f"a local Triton needs python{PYTHON}: install Debian's package python{PYTHON}")
    return found


def require_libraries(installation: Installation) -> None:
    stub = installation.backends / "python/triton_python_backend_stub"
    listed = _run(["ldd", str(stub)], installation.environment())
    if missing := [line.split()[0] for line in listed.splitlines() if "not found" in line]:
        packages = f"Debian's package libpython{PYTHON}" if any("libpython" in name for name in missing) else "them"
        raise RapportError(f"a local Triton needs {', '.join(missing)}: install {packages}")


def _pip(*arguments: str) -> None:
    _run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments])


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    # With the lock, so that what a killed installer leaves running is waited for, too.
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, close_fds=False)  # noqa: S603
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RapportError(f"Triton cannot be installed: {said[-1] if said else command[0] + ' failed'}")
    return done.stdout


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Two that install at once wait for each other; the second finds it done."""
    with (home / ".lock").open("w") as lock:
        fcntl.fcntl(lock, fcntl.F_SETFD, 0)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
