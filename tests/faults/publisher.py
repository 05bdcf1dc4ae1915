"""A publisher that dies: each line of stdin publishes a release once more, in a child that is killed on its way.

    python -m tests.faults.publisher ROOT

reads `SOURCE NTH ROUTE`: publish what SOURCE was made of, as the next version; make it the champion if ROUTE is 1; be
killed (SIGKILL) just before the NTH thing done to a file in ROOT, or never for 0. Writes `killed`, or how many things
were done.
"""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from feature_client.release import read_release
from model_export.publish import publish, set_champion
from model_export.republish import artifacts_of

MODEL = "engagement"


class Publisher:
    """The program above, as seen from a test: started once, for its imports take seconds."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate(timeout=60)

    def publish(self, source: int, *, route: bool, killed_before: int = 0) -> int | None:
        """How many things it did to files; None: it was killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{source} {killed_before} {int(route)}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, "the publisher failed; its trace is above"
        return None if answer == "killed" else int(answer)


def die_before(nth: int, root: str) -> "itertools.count[int]":
    """Counts, from 1, what is done to files below `root`."""
    steps = itertools.count(1)

    def watch(event: str, args: tuple[object, ...]) -> None:
        ours = event.startswith(("open", "os.", "shutil.", "tempfile."))
        if ours and any(str(arg).startswith(root) for arg in args) and next(steps) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return steps


def publish_once(root: Path, source: int, nth: int, *, route: bool) -> int:
    release = read_release(root, MODEL, source)
    steps = die_before(nth, str(root))
    version = publish(root, release.contract, artifacts_of(release)).manifest.version
    if route:
        set_champion(root, MODEL, version)
    return next(steps) - 1


def main(root: Path) -> None:
    for line in sys.stdin:
        source, nth, route = map(int, line.split())
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, str(publish_once(root, source, nth, route=bool(route))).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as done:
            steps = done.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{'killed' if code == -signal.SIGKILL else steps}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
