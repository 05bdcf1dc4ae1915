"""A `rapport` command, again and again, each time in a fresh copy of a repository and in a process of its own, which is
killed before its first change to a file, then before its second, and so on until one gets through.

`python -m tests.service.killed_command REPOSITORY COPIES release ...`: the n-th copy is COPIES/n. One process loads the
libraries and forks the others.
"""

import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path

import tomlkit  # noqa: F401  (loaded here, once)

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


def run(repository: Path, copies: Path, arguments: list[str]) -> int:
    """Returns the exit status of the one that got through."""
    for change in count(1):
        models = shutil.copytree(repository, copies / str(change))
        child = os.fork()
        if child == 0:
            sys.argv = ["rapport", *arguments, "--models", str(models)]
            kill_at(change)
            main()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            return code
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
