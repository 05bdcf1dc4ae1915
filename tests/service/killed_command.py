"""The `rapport` command, killed before its n-th change to a file: `python -m tests.service.killed_command N ...`."""

import os
import signal
import sys

from service.cli import main

CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"})
WRITING = os.O_WRONLY | os.O_RDWR


def kill_at(change: int) -> None:
    left = change

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event == "open":
            flags = arguments[2]
            if not (isinstance(flags, int) and flags & WRITING):
                return
        elif event not in CHANGES:
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    kill_at(int(sys.argv.pop(1)))
    main()
