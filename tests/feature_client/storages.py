"""Storages to mirror: directories, memory, a web server, and S3 as moto speaks it; each real, each empty."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest

KINDS = ("file", "memory", "http", "s3")
NETWORK = ("http", "s3")

NEEDS = {"http": ("aiohttp",), "s3": ("s3fs", "moto", "flask")}


@dataclass(frozen=True)
class Storage:
    """url: what is mirrored. target: where it is written, which for a web server is another address."""

    url: str
    target: str

    @property
    def files(self) -> Any:
        return fsspec.core.url_to_fs(self.target, skip_instance_cache=True, use_listings_cache=False)

    def read(self, path: str) -> bytes:
        files, base = self.files
        content: bytes = files.cat_file(f"{base}/{path}")
        return content

    def write(self, path: str, content: bytes) -> None:
        files, base = self.files
        files.pipe_file(f"{base}/{path}", content)

    def remove(self, path: str) -> None:
        files, base = self.files
        files.rm(f"{base}/{path}", recursive=True)


def require(kind: str) -> None:
    """Skips where a library is not installed; in CI it is."""
    if missing := [package for package in NEEDS.get(kind, ()) if find_spec(package) is None]:
        assert not os.environ.get("CI"), f"{missing[0]} is not installed"
        pytest.skip(f"{missing[0]} is not installed")


@contextmanager
def storage_of(kind: str, directory: Path) -> Iterator[Storage]:
    """An empty one. Until its end a web server answers; S3 does as long as `s3_server`."""
    directory.mkdir()
    if kind == "http":
        with web_server(directory) as url:
            yield Storage(url, f"file://{directory}")
        return
    if kind == "file":
        url = f"file://{directory}"
    elif kind == "memory":
        url = f"memory://{uuid.uuid4()}"
    else:
        bucket = f"models-{uuid.uuid4()}"
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
        url = f"s3://{bucket}/shop"
    yield Storage(url, url)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name that the library gives it)
        pass


@contextmanager
def web_server(directory: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def s3_server() -> Iterator["subprocess.Popen[bytes]"]:
    """The environment points to it until the end, even where it is killed before."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port, server)
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
                environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
                environment.setenv("AWS_ACCESS_KEY_ID", "test")
                environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
                yield server
        finally:
            server.kill()


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < ends:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the S3 server did not start")
