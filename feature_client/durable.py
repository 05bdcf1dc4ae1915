"""Files that a crash leaves as they were or as they were meant to be, and nothing between."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes, scratch: Path) -> None:
    """The content is on the disk before its name is. scratch: a directory of the same file system. Raises OSError."""
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}-", dir=scratch)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).chmod(0o644)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Whatever was written to this file, or named and removed in this directory, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
