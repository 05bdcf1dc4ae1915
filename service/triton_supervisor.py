"""The process above a local tritonserver: it starts the server again when it dies, and ends it with whoever wanted it.

A process of its own, because tritonserver leaves behind what only somebody who outlives it can tidy up, and because
forking is for processes with one thread.
"""

import ctypes
import fcntl
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from feature_client.errors import RapportError
from service.workers import Child, end_with, supervise

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where Linux keeps it)
LOOK_S = 0.1
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Task:
    """What to run. directory: for the marks below. shared_memory: how the names of its regions start.

    owner: the process that it ends with. drain_s: what tritonserver takes at most to end in order.
    """

    command: list[str]
    environment: dict[str, str]
    directory: str
    shared_memory: str
    owner: int
    drain_s: float

    @property
    def pid_file(self) -> Path:
        """Of the tritonserver that runs."""
        return Path(self.directory) / "tritonserver.pid"

    @property
    def ready_mark(self) -> Path:
        """Somebody has seen it ready: what dies from here on is started again."""
        return Path(self.directory) / "ready"

    @property
    def scratch(self) -> Path:
        """Where Triton unpacks the models that it is sent; it forgets them when it is killed."""
        return Path(self.directory) / "scratch"


def main() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    end_with(task.owner)
    if sys.platform == "linux":
        # Its Python processes become our children when it dies, so that we can see them end.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = Child("tritonserver", lambda: _become(task))
    child.ended = lambda: _ended(task, child)
    try:
        _take(task)
        supervise([child], task.drain_s)
    except RapportError as exc:
        sys.exit(str(exc))
    _tidy(task)


def _take(task: Task) -> None:
    """The directory is ours once nothing of an earlier one runs, not even if its supervisor was killed."""
    lock = os.open(Path(task.directory) / "lock", os.O_RDWR | os.O_CREAT)
    # Inherited, so that tritonserver and its Python processes hold it, too.
    fcntl.fcntl(lock, fcntl.F_SETFD, 0)
    ends = time.monotonic() + task.drain_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends:
                raise RapportError(f"another tritonserver runs in {task.directory}") from None
            time.sleep(LOOK_S)
        else:
            break
    task.ready_mark.unlink(missing_ok=True)
    task.pid_file.unlink(missing_ok=True)  # whoever has that number now is a stranger
    _tidy(task)


def server_id(pid: int) -> str:
    return f"rapport-{pid}"


def _become(task: Task) -> None:
    # A group of its own, which its Python processes share: what is left of them is ended by it.
    os.setpgid(0, 0)
    task.scratch.mkdir(exist_ok=True)
    unfinished = task.pid_file.with_suffix(".new")
    unfinished.write_text(str(os.getpid()))
    unfinished.replace(task.pid_file)
    # Its own name for itself, so that whoever asks the address knows who answers.
    command = [*task.command, f"--id={server_id(os.getpid())}"]
    os.execve(command[0], command, task.environment)  # noqa: S606  (no shell: what we were told to run)


def _ended(task: Task, child: Child) -> None:
    _tidy(task)
    if child.starts == 1 and not task.ready_mark.exists():
        raise RapportError("tritonserver did not start")


def _tidy(task: Task) -> None:
    """After tritonserver: its Python processes (a killed one leaves them running), their memory, unpacked models."""
    with suppress(FileNotFoundError, ProcessLookupError, ChildProcessError):
        group = int(task.pid_file.read_text())
        os.killpg(group, signal.SIGKILL)
        while True:
            os.waitpid(-group, 0)
    task.pid_file.unlink(missing_ok=True)
    for region in SHARED_MEMORY.glob(f"{task.shared_memory}*"):
        region.unlink(missing_ok=True)
    for path in sorted(task.scratch.rglob("*"), reverse=True):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
