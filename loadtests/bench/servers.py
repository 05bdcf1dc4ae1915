"""A server under test: its own session, one core, and what its processes cost the CPU."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.05
ACCESS = '"event": "request"'
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server that did not start, or ended; the message has its last words."""


@dataclass(frozen=True)
class Server:
    """pid: of the process that was started, and of its session. log: file descriptor of all that it says."""

    pid: int
    log: int

    def cpu_s(self) -> float:
        """User and system seconds so far of all processes of the session, those that have ended included.

        To 10 ms: measure for seconds, and take differences.
        """
        return sum(cpu for session, _, cpu in _processes() if session == self.pid)

    def said(self, limit: int = 8_000_000) -> str:
        """The last of it, at most `limit` bytes."""
        return _tail(self.log, limit)

    def resident_mib(self) -> float:
        """Of the process that was started alone."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


@contextmanager
def server(
    argv: Sequence[str],
    env: Mapping[str, str],
    ready_url: str | None,
    core: int | None,
    *,
    cwd: Path | None = None,
    timeout_s: float = READY_TIMEOUT_S,
) -> Iterator[Server]:
    """Runs `argv` on one core until the block ends, then ends its whole process group.

    env: set in addition to the caller's environment, from which RAPPORT_* is taken out. ready_url: the block begins
    when this answers 200; None waits for nothing. core: None pins nothing. Raises ServerError.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAPPORT_")} | dict(env)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603  (the caller's own command)
            pinned(argv, core),
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            if ready_url is not None:
                _wait_ready(process, ready_url, log.fileno(), timeout_s)
            yield Server(process.pid, log.fileno())
            if process.poll() is not None:
                raise ServerError(f"{argv[0]} ended with code {process.returncode}: {_tail(log.fileno())}")
        finally:
            _end(process)


def pinned(argv: Sequence[str], core: int | None) -> list[str]:
    """The command on one core, with all its children and threads."""
    return list(argv) if core is None else ["taskset", "--cpu-list", str(core), *argv]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(process: "subprocess.Popen[bytes]", url: str, log: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"{process.args!r} ended with code {process.returncode}: {_tail(log)}")
        # HTTPError is an URLError: a server that answers 503 is not ready yet.
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return
        time.sleep(POLL_S)
    raise ServerError(f"{url} did not answer within {timeout_s:.0f} s: {_last_words(log)}")


def _tail(log: int, limit: int = 2_000) -> str:
    text = os.pread(log, limit, max(os.fstat(log).st_size - limit, 0)).decode(errors="replace")
    return text.strip() or "it said nothing"


def _last_words(log: int) -> str:
    """Without the lines of a gateway's requests: that it answered our asking is not why it is not ready."""
    lines = [line for line in _tail(log, 1_000_000).splitlines() if ACCESS not in line]
    return "\n".join(lines[-10:])[-2_000:] or "it said nothing"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM for the process, which ends its children in order; SIGKILL for whoever of the group is left."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    # Ended children whose new parent does not care stay in the table as zombies.
    while any(session == process.pid and state != "Z" for session, state, _ in _processes()):
        if time.monotonic() > deadline:
            raise ServerError(f"{process.args!r} left processes that do not end")
        time.sleep(POLL_S)


def _processes() -> Iterator[tuple[int, str, float]]:
    """Session, state and CPU seconds of every process of this machine."""
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            # Processes end while we look.
            with contextlib.suppress(OSError):
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
                # As proc(5) counts, state is field 3: session 6, utime and stime 14 and 15, those of children 16, 17.
                yield int(fields[3]), fields[0], sum(int(field) for field in fields[11:15]) / TICKS_PER_S
