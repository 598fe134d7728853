"""Which cores this process may use, and how each worker gets its own.

Cores come from the cpuset (``sched_getaffinity``) and from the CPU quota of every cgroup that the process is in, version 1
and 2. A worker claims its cores by a file lock. The kernel releases the lock when the worker ends, however it ends. So the next
worker takes the cores of the worker that ended, and never a core on which another worker still computes.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from percore.errors import SettingsError
from percore.state_dir import Lock

log = logging.getLogger("percore.cores")

RETRY_SECONDS = 0.05
Cores = tuple[int, ...]


def _folders(root: Path, path: str) -> Iterator[Path]:
    """Yield a cgroup's folder and those above it; in a container ``path`` may name folders that are not mounted."""
    folder = root / path.lstrip("/")
    while True:
        yield folder
        if folder in (root, folder.parent):
            return
        folder = folder.parent


def _quota(folder: Path) -> float:
    """Return the CPUs that one cgroup allows; infinity if it sets no bound."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def cpu_quota(cgroup_file: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many CPUs the cgroups allow, for example 1.5; infinity if they set no bound."""
    quotas = [math.inf]
    try:
        lines = cgroup_file.read_text().splitlines()
    except OSError:
        return math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers if controllers else mount
        root = root if root.exists() else mount / "cpu"
        quotas += [_quota(folder) for folder in _folders(root, path)]
    return min(quotas)


def _cpuset() -> Iterable[int]:
    try:
        return os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return range(os.cpu_count() or 1)


def usable_cores(affinity: Sequence[int] | None = None, quota: float | None = None) -> Cores:
    """Return the cores to compute on: the first N cores of the cpuset, where N is the whole CPUs of the quota."""
    cores = sorted(_cpuset() if affinity is None else affinity)
    quota = cpu_quota() if quota is None else quota
    return tuple(cores[: max(1, math.floor(min(quota, len(cores))))])


def core_groups(cores: Sequence[int], per_call: int) -> tuple[Cores, ...]:
    """Return groups of ``per_call`` cores, one for each worker; raise SettingsError if there are too few cores for one."""
    groups = tuple(tuple(cores[start : start + per_call]) for start in range(0, len(cores) - per_call + 1, per_call))
    if not groups:
        raise SettingsError(
            f"PERCORE_CORES_PER_CALL={per_call}: must be at most the number of cores this process may use, {len(cores)}"
        )
    return groups


@dataclass(frozen=True, slots=True)
class Claim:
    """Cores that belong to this process as long as it lives and keeps the lock."""

    cores: Cores
    lock: Lock


def try_claim(folder: Path, groups: Sequence[Cores]) -> Claim | None:
    """Claim the first group that no other process holds; return None if all are held."""
    for cores in groups:
        lock = Lock(folder / f"core-{cores[0]}.lock")
        if lock.take():
            return Claim(cores, lock)
    return None


def claim(folder: Path, groups: Sequence[Cores], sleep: Callable[[float], None] = time.sleep) -> Claim:
    """Claim a group of cores, waiting while other processes hold them all."""
    while (claimed := try_claim(folder, groups)) is None:
        sleep(RETRY_SECONDS)
    return claimed


def pin(cores: Sequence[int]) -> None:
    """Let this process, and every thread it starts from now on, run on ``cores`` only."""
    try:
        os.sched_setaffinity(0, cores)
    except (OSError, AttributeError) as error:
        log.warning("the kernel cannot pin this process to its cores (%s): it may run on any core", error)
