"""One `rapport up` for all end-to-end tests: as a visitor starts it, with few customers, every part real."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from feature_client.offline.workspace import Workspace

CUSTOMERS = 400
UP_TIMEOUT_S = 400.0


@dataclass
class Visitor:
    """Someone who types `rapport up` in a directory of its own, and what they see."""

    home: Path
    port: int
    options: Sequence[str]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def workspace(self) -> Workspace:
        [root] = (path.parent for path in self.home.glob("*/dataset.json"))
        return Workspace(root)

    @property
    def printed(self) -> str:
        return (self.home / "stdout").read_text()

    @property
    def said(self) -> str:
        return (self.home / "stderr").read_text()

    def up(self) -> None:
        """Returns when it serves."""
        self.home.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "service.cli", "up", "--home", str(self.home), "--port", str(self.port)]
        with (self.home / "stdout").open("wb") as stdout, (self.home / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen([*command, *self.options], stdout=stdout, stderr=stderr)
        deadline = time.monotonic() + UP_TIMEOUT_S
        while "serving on" not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        assert self.process is not None
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def visiting(home: Path, *options: str) -> Iterator[Visitor]:
    """Up inside the block, with everything built that was not there."""
    visitor = Visitor(home, free_port(), options)
    try:
        visitor.up()
        yield visitor
    finally:
        if visitor.process is not None and visitor.process.poll() is None:
            visitor.end()


@pytest.fixture(scope="session")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """Up on events that it made itself."""
    with visiting(tmp_path_factory.mktemp("home"), "--customers", str(CUSTOMERS)) as one:
        yield one


@pytest.fixture(scope="session")
def customers(visitor: Visitor) -> list[str]:
    return visitor.workspace.customers.read_text().split()
