"""What a queue does to waits: calls that come at random, one queue, and so many servers that each take one call. Pure.

All times are multiples of one run. ``load`` is the share of time in which a server is busy.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STATES_A_SPARE = 30
"""How far the number of calls is followed, per share of time that is free: beyond it lie less than 1e-12 of all states."""


@dataclass(frozen=True, slots=True)
class Waits:
    """What callers see in the long run."""

    mean: float
    """Mean wait of all calls, those that do not wait included."""
    long: float
    """Share of calls that wait longer than one run."""


def same(servers: int, load: float) -> Waits:
    """Return the waits of calls that all run equally long: the queue M/D/c.

    Whoever runs now has ended one run later, and by then the first c of those who wait run. So the number of calls is a Markov
    chain from one run to the next, and an arrival waits longer than one run where it finds 2c calls or more.
    Source: C. D. Crommelin, Delay probability formulae when the holding times are constant, 1932.
    """
    shares = _calls_present(servers, load)
    present = np.arange(len(shares))
    waiting = float(shares @ np.maximum(present - servers, 0))
    # Little's law: as many wait as come while one waits.
    return Waits(waiting / (servers * load), float(shares[2 * servers :].sum()))


def _calls_present(servers: int, load: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the share of time with 0, 1, 2 ... calls present."""
    size = 4 * servers + math.ceil(STATES_A_SPARE / (1 - load))
    come = servers * load
    arrivals = np.exp([count * math.log(come) - come - math.lgamma(count + 1) for count in range(size)])
    steps = np.zeros((size, size))
    for before in range(size):
        left = max(before - servers, 0)
        steps[before, left:] = arrivals[: size - left]
        steps[before, -1] += 1 - steps[before].sum()
    # Balance, with one of its equations, which the others imply, replaced by: the shares are one.
    balance = steps.T - np.eye(size)
    balance[-1] = 1
    return np.linalg.solve(balance, np.eye(size)[-1])


def mixed(servers: int, load: float) -> Waits:
    """Return the waits of calls whose runs differ as exponentially distributed ones do: the queue M/M/c, by Erlang's C formula.

    Source: A. K. Erlang, 1917; L. Kleinrock, Queueing Systems, volume 1, 1975, section 3.5.
    """
    offered = servers * load
    full = offered**servers / math.factorial(servers) / (1 - load)
    waits = full / (sum(offered**count / math.factorial(count) for count in range(servers)) + full)
    spare = servers - offered
    return Waits(waits / spare, waits * math.exp(-spare))


def most(servers: int, long: float) -> float:
    """Return the load at which this share of equally long calls waits longer than one run."""
    low, high = 0.001, 0.999
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if same(servers, middle).long > long else (middle, high)
    return low


def fed(arrivals: Sequence[float], servers: int, run: float) -> list[float]:
    """Return what each of these arrivals waits in a queue that costs nothing, in the unit of ``arrivals`` and ``run``."""
    free = [-math.inf] * servers
    waits = []
    for arrival in sorted(arrivals):
        begins = max(arrival, heapq.heappop(free))
        heapq.heappush(free, begins + run)
        waits.append(begins - arrival)
    return waits
