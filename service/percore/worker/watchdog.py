"""The watchdog: one thread that watches the clock and the client while the main thread is inside TensorFlow.

The main thread cannot look at anything while a call computes, and no signal handler of Python's runs before TensorFlow
returns. So a second thread looks every 100 ms, and what it does is final: it answers for the main thread and ends the process.
A call costs the watchdog nothing: the main thread only sets an attribute.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger("percore.worker")

TICK_SECONDS = 0.1
WATCHDOG_FAILED = 70
"""Exit status: EX_SOFTWARE of sysexits.h."""


@dataclass(slots=True)
class Deadline:
    """One thing to watch: a load, or a call that computes."""

    limit: float
    """Seconds from now."""
    on_expired: Callable[[], None]
    """Called by the watchdog, at most once, when the limit has passed."""
    is_gone: Callable[[], bool] = lambda: False
    """Asked at every tick: did the client go away?"""
    on_gone: Callable[[float], bool] = lambda _left: False
    """Called by the watchdog with the seconds left when the client has gone; True means: do not ask again."""
    deadline: float = field(init=False, default=math.inf)
    settled: bool = field(init=False, default=False)


class Watchdog:
    """Runs a watch's callbacks under a lock, so that ``disarm`` returns only when no callback runs or will run."""

    def __init__(self, on_tick: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_tick = on_tick
        self._clock = clock
        self._lock = threading.Lock()
        self._watch: Deadline | None = None

    def start(self) -> None:
        """Start the thread; a daemon, so it never keeps the process alive."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def arm(self, watch: Deadline) -> None:
        """Watch this from now on, instead of whatever was watched."""
        watch.deadline = self._clock() + watch.limit
        with self._lock:
            self._watch = watch

    def disarm(self) -> float:
        """Watch nothing; once this returns, no callback will answer or end anything. Return the seconds that were left."""
        with self._lock:
            watch, self._watch = self._watch, None
        return 0.0 if watch is None else watch.deadline - self._clock()

    def look(self) -> None:
        """Look once at what is watched."""
        with self._lock:
            watch = self._watch
            if watch is None:
                return
            left = watch.deadline - self._clock()
            if left <= 0:
                self._watch = None
                watch.on_expired()
            elif not watch.settled and watch.is_gone():
                watch.settled = watch.on_gone(left)

    def _run(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            self.turn()

    def turn(self) -> None:
        """Look, and do what else is due. A watchdog that has failed must not be missed unseen: the process ends with it."""
        try:
            self.look()
        except BaseException:
            log.exception("the watchdog failed; the worker ends, for nobody would watch its calls")
            os._exit(WATCHDOG_FAILED)
        try:
            self._on_tick()
        except Exception:
            log.exception("a report to the status server failed")
