"""This machine: its cores, its memory, its name for the tables, and the cores that a process may use."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from percore.cores import usable_cores

PACKAGES = ("tensorflow-cpu", "flask", "gunicorn", "gevent")


def cores() -> tuple[int, ...]:
    """Return the cores that percore would use here."""
    return usable_cores()


def free_megabytes() -> float:
    """Return how much memory may be taken without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def described() -> str:
    """Return one line that describes the machine and the software of the measurement."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    where = f"{len(cores())} cores of {names[0] if names else platform.machine()}"
    return f"{where}, Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}, {packages}"


@contextlib.contextmanager
def pinned(chosen: Sequence[int]) -> Iterator[None]:
    """Keep this thread, and every process that it starts in the context, on the cores ``chosen``."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process as the scheduler counts it. The file ``stat`` is less exact: it counts clock ticks."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory(pid: int) -> dict[str, float]:
    """Return a process's memory in MB: ``Rss``, and ``Pss``, in which each process counts only its part of a shared page."""
    lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return {name: found[name] for name in ("Rss", "Pss")}
