"""A timer by which the kernel kills this process, whatever its code does.

It is a POSIX timer, and not ``signal.setitimer``, because a handler or an app may use SIGALRM itself. A process that is forked
does not inherit it.
"""

from __future__ import annotations

import ctypes
import math
import signal
import time
from typing import ClassVar

SIGEV_SIGNAL = 0


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
    """Sends SIGKILL to this process. Does nothing if the system has no such timers."""

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
