"""The set-ups that are compared, as data. Decides which of them a machine can run. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

CALLS = 11
"""One more than the threads of the set-up ``1 worker x 10 threads``."""
WORKER_MEGABYTES = 500
"""Memory of one worker with TensorFlow, and a reserve. A set-up that does not fit is skipped, because it would swap."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to serve a Flask application with Gunicorn, or percore."""

    name: str
    """Not part of the identity of a set-up: ``mark_skipped`` treats set-ups that differ only in their names as the same."""
    kind: str
    """``sync``, ``gthread``, ``gevent``, or ``percore``."""
    workers: int
    per_worker: int = 1
    """Threads of a gthread worker; connections of a gevent one."""
    one_thread: bool = False
    """Whether TensorFlow has one thread in each process. Otherwise it has its default, one thread for each core."""
    timeout: int = 3600
    """Gunicorn's timeout. In a fair comparison it is longer than any call."""
    skipped: str = ""
    """Why it is not run here."""

    @property
    def arguments(self) -> list[str]:
        """The arguments of Gunicorn."""
        chosen = ["--workers", str(self.workers), "--worker-class", self.kind, "--timeout", str(self.timeout)]
        extra = {"gthread": "--threads", "gevent": "--worker-connections"}.get(self.kind)
        return [*chosen, *((extra, str(self.per_worker)) if extra else ())]

    @property
    def slug(self) -> str:
        """A name for files."""
        threads = "" if self.kind == "percore" else "-one-thread" if self.one_thread else "-default-threads"
        return "-".join(re.findall(r"\w+", self.name)) + threads


def common(cores: int) -> list[Setup]:
    """Return the usual set-ups on a machine with ``cores`` cores, in the order in which people try them."""
    return [
        Setup("1 worker x 10 threads", "gthread", 1, 10),
        Setup("4 workers x 4 threads", "gthread", 4, 4),
        Setup("gevent 4 x 4", "gevent", 4, 4),
        Setup("gevent 8 x 8", "gevent", 8, 8),
        Setup("gevent 16 x 16", "gevent", 16, 16),
        Setup("11 sync workers", "sync", 11),
        Setup(f"2 x cores: {2 * cores} sync workers", "sync", 2 * cores),
        Setup(f"4 x cores: {4 * cores} sync workers", "sync", 4 * cores),
    ]


def percore(cores: int) -> Setup:
    """Return percore on so many cores."""
    return Setup("percore", "percore", cores, one_thread=True)


def with_short_timeout() -> Setup:
    """Return a set-up whose timeout is shorter than its calls, as Gunicorn's 30 s are for a call of ten minutes."""
    return Setup("gevent 4 x 4, timeout shorter than a call", "gevent", 4, 4, one_thread=True, timeout=1)


def mark_skipped(setups: Sequence[Setup], free_megabytes: float = float("inf")) -> list[Setup]:
    """Mark the set-ups that repeat another one or that do not fit into memory, each with the reason."""
    seen: dict[tuple[str, int, int, bool, int], str] = {}
    marked = []
    for setup in setups:
        identity = (setup.kind, setup.workers, setup.per_worker, setup.one_thread, setup.timeout)
        needed = setup.workers * WORKER_MEGABYTES
        if identity in seen:
            marked.append(replace(setup, skipped=f"here the same as {seen[identity]}"))
        elif needed > free_megabytes:
            marked.append(replace(setup, skipped=f"needs about {needed} MB of memory, {free_megabytes:.0f} MB are free"))
        else:
            seen[identity] = setup.name
            marked.append(setup)
    return marked


def with_both_thread_counts(setups: Sequence[Setup]) -> list[Setup]:
    """Return each set-up twice: with TensorFlow's default threads, and with one."""
    return [replace(setup, one_thread=one_thread) for setup in setups for one_thread in (False, True)]
