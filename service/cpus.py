"""How many CPUs this process may use: the limit of its container, which the machine's cores know nothing of."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP, mount: Path = MOUNT, cores: int | None = None) -> float:
    """CPUs, as 1.5 of them: the smallest of all limits that hold for this process.

    cgroup: a file like /proc/self/cgroup. mount: where control groups are mounted. cores: those we may be scheduled on.
    """
    return min([_cores() if cores is None else cores, *_limits(cgroup, mount)])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limits(cgroup: Path, mount: Path) -> Iterator[float]:
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            for directory in _upwards(mount, path):
                yield from _quota(_words(directory / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for directory in _upwards(mount / controllers, path):
                yield from _quota(_words(directory / "cpu.cfs_quota_us") + _words(directory / "cpu.cfs_period_us"))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Every group above us limits us too. Inside a container the path may be the host's: then the root is ours."""
    group = Path(path.lstrip("/"))
    for directory in (group, *group.parents):
        if ".." not in directory.parts:
            yield mount / directory


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _quota(words: list[str]) -> Iterator[float]:
    """`quota period` in microseconds; no limit is `max` in version 2 and -1 in version 1."""
    match words:
        case [quota, period] if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)


def too_many_threads(workers: int, model_threads: int, cpus: float) -> bool:
    """A worker's event loop waits while its model computes, so that a worker is worth its model's threads."""
    return workers * model_threads > max(1, math.ceil(cpus))
