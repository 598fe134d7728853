"""Counts starts of workers, in memory that the arbiter and its workers share.

It knows whether a worker was ever ready, and how many have started since one was last ready. If a load fails before a worker
was ever ready, the operator has made a mistake, and the service ends. If a load fails later, when a worker is replaced, the
other workers go on. The load is tried again, after a longer and longer delay.
"""

from __future__ import annotations

import mmap

LONGEST_DELAY_SECONDS = 10.0
EVER_READY, BEGUN = 0, 1
MOST_BEGUN = 255


def restart_delay(failures: int) -> float:
    """Return the seconds to wait before the next start, after this number of failures in a row."""
    return min(0.1 * 2.0**failures, LONGEST_DELAY_SECONDS) if failures > 0 else 0.0


class RestartBackoff:
    """Two bytes that are shared across forks."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._shared = mmap.mmap(-1, 2)

    def begin(self) -> float:
        """Count one more start and return the seconds to wait before it. The first start of each worker does not wait."""
        begun = self._shared[BEGUN]
        self._shared[BEGUN] = min(begun + 1, MOST_BEGUN)
        return restart_delay(begun + 1 - self._workers)

    def succeed(self) -> None:
        """Take note that a worker is ready."""
        self._shared[EVER_READY] = 1
        self._shared[BEGUN] = 0

    @property
    def ever_ready(self) -> bool:
        """Whether any worker was ready since the arbiter started."""
        return bool(self._shared[EVER_READY])
