"""Waits in a queue: calls come at random, there is one queue, and each of several servers takes one call at a time. Pure.

All times are multiples of one run. ``load`` is the share of time in which a server is busy.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TAIL_CALLS = 30
"""The largest number of queued calls that the model counts is this number divided by the share of free time. A longer queue has
a probability of less than 1e-12."""


@dataclass(frozen=True, slots=True)
class Waits:
    """The waits of callers in the long run."""

    mean: float
    """Mean wait of all calls, those that do not wait included."""
    long: float
    """Share of calls that wait longer than one run."""


def equal_runs(servers: int, load: float) -> Waits:
    """Return the waits of calls that all run equally long: the queue M/D/c.

    One run later, all calls that run now have ended, and the first c waiting calls run. So the number of calls is a Markov
    chain with steps of one run. An arrival waits longer than one run if it finds 2c calls or more. Source: C. D. Crommelin,
    Delay probability formulae when the holding times are constant, 1932.
    """
    shares = _calls_present(servers, load)
    present = np.arange(len(shares))
    waiting = float(shares @ np.maximum(present - servers, 0))
    # Little's law: the number of waiting calls is the arrival rate times the mean wait.
    return Waits(waiting / (servers * load), float(shares[2 * servers :].sum()))


def _calls_present(servers: int, load: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the share of time with 0, 1, 2 ... calls present."""
    size = 4 * servers + math.ceil(TAIL_CALLS / (1 - load))
    come = servers * load
    arrivals = np.exp([count * math.log(come) - come - math.lgamma(count + 1) for count in range(size)])
    steps = np.zeros((size, size))
    for before in range(size):
        left = max(before - servers, 0)
        steps[before, left:] = arrivals[: size - left]
        steps[before, -1] += 1 - steps[before].sum()
    # The balance equations. One of them follows from the others, so it is replaced: the sum of all shares is one.
    balance = steps.T - np.eye(size)
    balance[-1] = 1
    return np.linalg.solve(balance, np.eye(size)[-1])


def exponential_runs(servers: int, load: float) -> Waits:
    """Return the waits of calls whose run times are exponentially distributed: the queue M/M/c, by Erlang's C formula.

    Source: A. K. Erlang, 1917; L. Kleinrock, Queueing Systems, volume 1, 1975, section 3.5.
    """
    offered = servers * load
    full = offered**servers / math.factorial(servers) / (1 - load)
    waits = full / (sum(offered**count / math.factorial(count) for count in range(servers)) + full)
    spare = servers - offered
    return Waits(waits / spare, waits * math.exp(-spare))


def load_for_share(servers: int, long: float) -> float:
    """Return the load at which a share of the calls, ``long``, waits longer than one run. All runs take the same time."""
    low, high = 0.001, 0.999
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if equal_runs(servers, middle).long > long else (middle, high)
    return low


def ideal_waits(arrivals: Sequence[float], servers: int, run: float) -> list[float]:
    """Return the wait of each arrival in an ideal queue, in the unit of ``arrivals`` and ``run``."""
    free = [-math.inf] * servers
    waits = []
    for arrival in sorted(arrivals):
        begins = max(arrival, heapq.heappop(free))
        heapq.heappush(free, begins + run)
        waits.append(begins - arrival)
    return waits
