"""The set-ups that are compared, as data, and which of them a machine can be asked to run. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

CALLS = 11
"""As many callers as in the story that made this project: one more than the ten threads that should have served them."""
WORKER_MEGABYTES = 500
"""What one worker with TensorFlow takes, and to spare: a set-up that does not fit is skipped, not swapped."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to serve a Flask application with Gunicorn, or percore."""

    name: str
    """Whether two set-ups are the same does not depend on it."""
    kind: str
    """``sync``, ``gthread``, ``gevent``, or ``percore``."""
    workers: int
    per_worker: int = 1
    """Threads of a gthread worker; connections of a gevent one."""
    one_thread: bool = False
    """Whether TensorFlow computes with one thread a process, or with its default, a thread for every core."""
    timeout: int = 3600
    """Gunicorn's. The fair try: longer than any call."""
    skipped: str = ""
    """Why it is not run here."""

    @property
    def arguments(self) -> list[str]:
        """What Gunicorn is started with."""
        chosen = ["--workers", str(self.workers), "--worker-class", self.kind, "--timeout", str(self.timeout)]
        extra = {"gthread": "--threads", "gevent": "--worker-connections"}.get(self.kind)
        return [*chosen, *((extra, str(self.per_worker)) if extra else ())]

    @property
    def slug(self) -> str:
        """A name for files."""
        threads = "" if self.kind == "percore" else "-one-thread" if self.one_thread else "-default-threads"
        return "-".join(re.findall(r"\w+", self.name)) + threads


def common(cores: int) -> list[Setup]:
    """Return what people try on a machine with so many cores, in the order in which they try it."""
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


def impatient() -> Setup:
    """Return a set-up whose timeout is shorter than its calls, as Gunicorn's 30 s are for a call of ten minutes."""
    return Setup("gevent 4 x 4, timeout shorter than a call", "gevent", 4, 4, one_thread=True, timeout=1)


def settle(setups: Sequence[Setup], free_megabytes: float = float("inf")) -> list[Setup]:
    """Mark what would repeat another set-up or would not fit the memory, saying so."""
    seen: dict[tuple[str, int, int, bool, int], str] = {}
    settled = []
    for setup in setups:
        identity = (setup.kind, setup.workers, setup.per_worker, setup.one_thread, setup.timeout)
        needed = setup.workers * WORKER_MEGABYTES
        if identity in seen:
            settled.append(replace(setup, skipped=f"here the same as {seen[identity]}"))
        elif needed > free_megabytes:
            settled.append(replace(setup, skipped=f"needs about {needed} MB of memory, {free_megabytes:.0f} MB are free"))
        else:
            seen[identity] = setup.name
            settled.append(setup)
    return settled


def both_ways(setups: Sequence[Setup]) -> list[Setup]:
    """Return each set-up twice: with TensorFlow's default threads, and with one."""
    return [replace(setup, one_thread=one_thread) for setup in setups for one_thread in (False, True)]
