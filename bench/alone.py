"""One ``burn`` call alone: ``python -m bench.alone SECONDS REPEATS [STEPS]``, in a process pinned to one core.

All other measurements are compared with it. Without STEPS it finds how many steps take SECONDS on this machine. It runs in a
process of its own, because TensorFlow's threads can be set only once, and because the bench itself must not load TensorFlow.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.machine import pinned
from harness.service import MODELS, ROOT

TRIAL_SECONDS = 0.5
ROUND_STEPS = 100


@dataclass(frozen=True, slots=True)
class Alone:
    """How long ``steps`` take if no other work uses the core."""

    steps: int
    seconds: float
    """The median of ``all``."""
    all: tuple[float, ...]


def measure(core: int, seconds: float, repeats: int, steps: int = 0) -> Alone:
    """Measure it on ``core``, in a process with one TensorFlow thread."""
    command = [sys.executable, "-m", "bench.alone", str(seconds), str(repeats), *([str(steps)] if steps else [])]
    with pinned([core]):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    found = json.loads(done.stdout)
    return Alone(found["steps"], statistics.median(found["all"]), tuple(found["all"]))


def calibrated(timed: Callable[[int], float], seconds: float) -> int:
    """Return how many steps take ``seconds``. Trials become longer until one is long enough to be exact."""
    steps = ROUND_STEPS
    while (took := timed(steps)) < min(TRIAL_SECONDS, seconds):
        steps *= 2
    again = min(took, *(timed(steps) for _ in range(3)))
    return max(ROUND_STEPS, round(seconds / again * steps / ROUND_STEPS) * ROUND_STEPS)


def _model() -> Callable[[int], float]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf  # noqa: PLC0415 - in this process only

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model: Any = tf.saved_model.load(str(MODELS / "burn" / "1"))
    serve = model.signatures["serving_default"]

    def timed(steps: int) -> float:
        began = time.monotonic()
        serve(steps=tf.constant([steps], tf.int64))["checksum"].numpy()
        return time.monotonic() - began

    timed(1)
    timed.model = model  # type: ignore[attr-defined]  # it owns what the signature uses
    return timed


def main(seconds: str, repeats: str, steps: str = "0") -> None:
    """Measure and print."""
    timed = _model()
    chosen = int(steps) or calibrated(timed, float(seconds))
    print(json.dumps({"steps": chosen, "all": [timed(chosen) for _ in range(int(repeats))]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
