"""The machine and the sources that figures are of."""

import os
import platform
import subprocess
from pathlib import Path


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((text.partition(":")[2].strip() for text in lines if text.startswith("model name")), platform.machine())


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3


def described() -> str:
    return f"{processor()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB"


def commit() -> str:
    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        run = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)  # noqa: S603, S607
        return run.stdout.strip()

    return (
        f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{' with changes' if git('status', '--porcelain') else ''}"
    )
