"""A handler that fails on request: fault injection for tests and demonstrations, never for a real service."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from percore.errors import BadInput
from percore.handlers import Array, Tensors

PAGE = 4096


class Faulty:
    """Runs the faults that its inputs name, in the order of ``FAULTS``.

    Then it returns its inputs, and ``pid``, the worker's process id.
    """

    def load(self) -> None:
        """Nothing to load."""

    def predict(self, inputs: Tensors) -> Tensors:
        """Run each fault that an input names, with the input's single value. Inputs with other names are only returned."""
        held = [fault(_single(name, inputs[name])) for name, fault in FAULTS.items() if name in inputs]
        del held
        return {**inputs, "pid": np.array(os.getpid())}


def _memory(size: float) -> bytearray:
    """Allocate ``size`` bytes, touch every page, and hold them until the call ends."""
    block = bytearray(int(size))
    block[::PAGE] = b"\1" * len(range(0, len(block), PAGE))
    return block


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _burn(seconds: float) -> None:
    """Keep one core busy with Python."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


def _fail(text: object) -> None:
    raise RuntimeError(f"failed as asked: {text}")


def _bad(text: object) -> None:
    raise BadInput(f"bad: refused as asked: {text}")


def _exit(code: float) -> None:
    """End the process at once, as a crash in native code would."""
    os._exit(int(code))


def _signal(number: float) -> None:
    """Send the process a signal: 9 is what the kernel's out-of-memory killer sends, 11 a crash."""
    os.kill(os.getpid(), int(number))


FAULTS: dict[str, Callable[[Any], object]] = {
    "memory": _memory,
    "sleep": _sleep,
    "burn": _burn,
    "bad": _bad,
    "fail": _fail,
    "signal": _signal,
    "exit": _exit,
}
TEXTS = ("bad", "fail")


def _single(name: str, array: Array) -> float | str:
    if array.size != 1:
        raise BadInput(f"{name}: must be one value; got shape {array.shape}")
    value = array.reshape(-1)[0]
    if name in TEXTS:
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if array.dtype.kind not in "biuf" or not np.isfinite(value) or value < 0:
        raise BadInput(f"{name}: must be a finite number, at least 0; got {value!r}")
    return float(value)
