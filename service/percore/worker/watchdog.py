"""The watchdog: a thread that checks the time and the client while the main thread is inside TensorFlow.

The main thread can check nothing while a call computes, and Python runs no signal handler before TensorFlow returns. So a
second thread checks every 100 ms. If a call must end, this thread answers and ends the process. To start or end the watch of a
call, the main thread only sets an attribute and a timer.

While native code keeps Python's global lock, this thread cannot run either. So the kernel ends the process by the timer, some
time after the deadline. This works without the arbiter, which may have died.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

log = logging.getLogger("percore.worker")

TICK_SECONDS = 0.1
KILL_SECONDS = 30.0
"""How long after a deadline the kernel ends the process."""
WATCHDOG_FAILED = 70
"""Exit status: EX_SOFTWARE of sysexits.h."""
SIGEV_SIGNAL = 0


@dataclass(slots=True)
class Deadline:
    """One thing to watch: a load, or a call that computes."""

    limit: float
    """Seconds from now."""
    on_expired: Callable[[], None]
    """Called by the watchdog, at most once, when the limit has passed."""
    is_disconnected: Callable[[], bool] = lambda: False
    """Returns whether the client has disconnected; called at each tick."""
    on_disconnect: Callable[[float], bool] = lambda _left: False
    """Called by the watchdog when the client has disconnected, with the seconds that are left. True: do not ask again."""
    deadline: float = field(init=False, default=math.inf)
    handled: bool = field(init=False, default=False)


class Watchdog:
    """Runs the callbacks of a deadline under a lock, so that ``disarm`` returns only when no callback runs or will run."""

    def __init__(self, on_tick: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_tick = on_tick
        self._clock = clock
        self._lock = threading.Lock()
        self._deadline: Deadline | None = None
        self._kill_timer: KillTimer | None = None

    def start(self) -> None:
        """Start the thread; a daemon, so it never keeps the process alive."""
        self._kill_timer = KillTimer()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def arm(self, watch: Deadline) -> None:
        """Watch this deadline from now on, and no earlier one."""
        watch.deadline = self._clock() + watch.limit
        with self._lock:
            self._deadline = watch
        if self._kill_timer is not None:
            self._kill_timer.set(max(watch.limit, 0.0) + KILL_SECONDS)

    def disarm(self) -> float:
        """Watch nothing; once this returns, no callback will answer or end anything. Return the seconds that were left."""
        with self._lock:
            watch, self._deadline = self._deadline, None
        if self._kill_timer is not None:
            self._kill_timer.set(0)
        return 0.0 if watch is None else watch.deadline - self._clock()

    @contextmanager
    def watching(self, watch: Deadline) -> Iterator[None]:
        """Watch this deadline within the context. After it no callback will answer or end anything."""
        self.arm(watch)
        try:
            yield
        finally:
            self.disarm()

    def check(self) -> None:
        """Check the deadline once."""
        with self._lock:
            watch = self._deadline
            if watch is None:
                return
            left = watch.deadline - self._clock()
            if left <= 0:
                self._deadline = None
                watch.on_expired()
            elif not watch.handled and watch.is_disconnected():
                watch.handled = watch.on_disconnect(left)

    def _run(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            self.tick()

    def tick(self) -> None:
        """Check the deadline, and run the regular checks.

        If this fails, the process ends, because no call may run without a watchdog.
        """
        try:
            self.check()
        except BaseException:
            log.exception("the watchdog failed; the worker ends, because its calls must not run without one")
            os._exit(WATCHDOG_FAILED)
        try:
            self._on_tick()
        except Exception:
            log.exception("a report to the status server failed")


def should_end(policy: str, run_seconds_left: float, load_seconds: float) -> bool:
    """Decide by ``PERCORE_ON_CLIENT_DISCONNECT`` whether to end a worker whose client disconnected.

    Ending the worker costs one load. Letting the call go on costs the rest of its run, which ends at the run timeout at the
    latest.
    """
    if policy == "end-if-worthwhile":
        return run_seconds_left > load_seconds
    return policy == "end"


class _Event(ctypes.Structure):
    """``struct sigevent``; 64 bytes."""

    _fields_: ClassVar = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("_", ctypes.c_byte * 48),
    ]


class _Times(ctypes.Structure):
    """``struct itimerspec``, with the interval of a timer that repeats."""

    _fields_: ClassVar = [(name, ctypes.c_long) for name in ("every", "every_nanoseconds", "seconds", "nanoseconds")]


class KillTimer:
    """A timer by which the kernel kills this process, whatever its code does. Does nothing if the system has no such timers.

    It is a POSIX timer, and not ``signal.setitimer``, because a handler or an app may use SIGALRM itself. A process that is
    forked does not inherit it.
    """

    def __init__(self) -> None:
        self._timer = ctypes.c_void_p()
        self._library = ctypes.PyDLL(None)  # its functions return at once, so they need not release the lock of Python
        event = _Event(signal=signal.SIGKILL, notify=SIGEV_SIGNAL)
        create = getattr(self._library, "timer_create", None)
        self._works = create is not None and create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)) == 0

    def set(self, seconds: float) -> None:
        """Kill this process after ``seconds``, and not at the time that was set before. 0: never."""
        if self._works:
            times = _Times(seconds=math.ceil(seconds))
            self._library.timer_settime(self._timer, 0, ctypes.byref(times), None)
