"""The peers' virtual environments: made on demand, used again while their requirements are the same."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from loadtests.bench.home import PreparationError

REQUIREMENTS = Path(__file__).parent / "requirements"
INSTALL_TIMEOUT_S = 1_800.0


def ensure(name: str, home: Path, requirements: Path = REQUIREMENTS) -> Path:
    """The Python of home/<name>/venv, with all that requirements/<name>.txt names. Raises PreparationError.

    What <name>.no-deps.txt names comes afterwards, without its dependencies.
    """
    directory = home / name
    python = (directory / "venv" / "bin" / "python").absolute()
    stamp = directory / "requirements.sha256"
    wanted = digest(name, requirements)
    if python.is_file() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    # Half an environment must not pass for a whole one.
    stamp.unlink(missing_ok=True)
    shutil.rmtree(directory / "venv", ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    steps = [[sys.executable, "-m", "venv", str(directory / "venv")], [*pip, "-r", str(requirements / f"{name}.txt")]]
    if (alone := requirements / f"{name}.no-deps.txt").is_file():
        steps.append([*pip, "--no-deps", "-r", str(alone)])
    for step in tqdm(steps, desc=f"installing the peer {name}", unit="step"):
        _run(name, step)
    stamp.write_text(wanted)
    return python


def digest(name: str, requirements: Path = REQUIREMENTS) -> str:
    """Of everything that decides what is installed: the files and the Python."""
    said = hashlib.sha256(sys.version.encode())
    for path in sorted(requirements.glob(f"{name}.*")):
        content = path.read_bytes()
        said.update(f"{path.name} {len(content)}\n".encode() + content)
    return said.hexdigest()


def versions(python: Path, packages: Sequence[str]) -> Mapping[str, str]:
    """What is really there, by the names that pip knows."""
    code = "import json, sys, importlib.metadata as m; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    answer = subprocess.run(  # noqa: S603  (a Python that we installed)
        [str(python), "-c", code, *packages], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(answer.stdout)
    return found


def _run(name: str, step: Sequence[str]) -> None:
    try:
        subprocess.run(  # noqa: S603  (our own command)
            step, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True, timeout=INSTALL_TIMEOUT_S
        )
    except subprocess.SubprocessError as exc:
        said = [line for line in (getattr(exc, "stderr", None) or str(exc)).splitlines() if line.strip()]
        raise PreparationError(f"the peer {name} cannot be installed: {' '.join(said[-2:])}") from exc
