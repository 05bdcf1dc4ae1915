"""Several processes where one is too slow: started, restarted when they die, drained at the end, never left behind.

Forked, not spawned: the parent has one thread and has imported neither the web framework nor a runtime, so that there
is nothing in it that a fork could break, and a child inherits the listening socket as it is.
"""

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from feature_client.errors import RapportError

log = logging.getLogger("rapport.workers")

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
CANNOT_START = 3
"""Exit status (uvicorn's as well) of what would fail again in the same way."""
LIVED_S = 10.0
"""A child that dies sooner is restarted later and later."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
MARGIN_S = 5.0
"""On top of the time to drain, before a child is killed."""
PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One process, and the next one in its place."""

    name: str
    run: Callable[[], None]
    """In the child; returns or raises when it has ended. RapportError: it cannot start."""
    ended: Callable[[], None] = lambda: None
    """In the parent, after each end."""
    pid: int | None = None
    started: float = 0.0
    start_at: float = 0.0
    delay_s: float = FIRST_DELAY_S
    starts: int = 0

    def start(self) -> None:
        parent = os.getpid()
        self.started = time.monotonic()
        self.starts += 1
        self.pid = os.fork()
        if self.pid == 0:
            _become(self.run, parent)

    def reap(self) -> None:
        """Looks whether it has ended, and when the next may start. Raises RapportError where none can."""
        if self.pid is None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return
        self.pid = None
        self.ended()
        code = os.waitstatus_to_exitcode(status)
        if code == CANNOT_START and self.starts == 1:
            raise RapportError(f"{self.name} cannot start; the log says why")
        now = time.monotonic()
        self.delay_s = FIRST_DELAY_S if now - self.started > LIVED_S else min(2 * self.delay_s, LONGEST_DELAY_S)
        self.start_at = now + self.delay_s
        log.warning("a process died", extra={"role": self.name, "exit": code, "restart_in_s": self.delay_s})


def supervise(children: Sequence[Child], drain_s: float) -> int:
    """Keeps `children` running until SIGTERM or SIGINT, then drains them; returns the signal's number.

    Only for a process with one thread. Raises RapportError where a child cannot start at all.
    """
    # Blocked and waited for, not handled: nothing here ever runs in between two other lines.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        while True:
            now = time.monotonic()
            for child in children:
                if child.pid is None and child.start_at <= now:
                    child.start()
            received = signal.sigtimedwait(SIGNALS, FIRST_DELAY_S)
            if received is not None and received.si_signo != signal.SIGCHLD:
                return received.si_signo
            for child in children:
                child.reap()
    finally:
        _drain([child.pid for child in children if child.pid is not None], drain_s + MARGIN_S)


def _drain(pids: Sequence[int], seconds: float) -> None:
    ends = time.monotonic() + seconds
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    left = set(pids)
    while left:
        left -= {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]}
        if time.monotonic() > ends:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, FIRST_DELAY_S)


def _become(run: Callable[[], None], parent: int) -> None:
    """The rest of a child's life; never returns into what its parent was doing."""
    code = 1
    try:
        end_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        run()
        code = 0
    except RapportError as exc:
        log.error("cannot start", extra={"reason": str(exc)})  # noqa: TRY400  (a sentence, not a defect)
        code = CANNOT_START
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        log.exception("died of a defect")
    finally:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


def end_with(parent: int) -> None:
    """SIGTERM for this process when its parent is gone, whatever ended it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went before we asked
        raise SystemExit(1)
