"""``python -m bench.waits``: measures how long calls that come at random wait in the real service.

It takes a minute and a half, in which the machine is nearly idle. The handler sleeps, so that the bench measures the queue and
not the machine. ``--write-docs`` keeps the result for the docs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench import client, machine, queueing, servers
from bench.bursts import run_seconds
from bench.report import DOCS, OUTPUT

RUN_SECONDS = 0.2
LOADS = ((0.5, 20.0), (0.7, 25.0), (0.9, 45.0))
"""The share of time in which a worker is busy, and the seconds of the measurement. At a higher load, random differences take
longer to even out."""
TRIES = 200
AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Load:
    """The result of one load. A wait is the time of a call minus the time of its run, in multiples of the run."""

    load: float
    calls: int
    mean: float
    long: float
    """Share of calls that waited longer than one run."""


@dataclass(frozen=True, slots=True)
class Waits:
    """One measurement."""

    machine: str
    workers: int
    run: float
    loads: Sequence[Load]


def read(path: Path) -> Waits:
    """Read a measurement that ``main`` wrote."""
    found = json.loads(path.read_text())
    return Waits(**{**found, "loads": [Load(**each) for each in found["loads"]]})


def arrivals(load: float, workers: int, seconds: float) -> list[float]:
    """Return when calls come, in seconds.

    Within one minute, chance alone can change the waits by half. So this takes many random sequences, computes the waits of
    each in an ideal queue, and returns the sequence whose waits are nearest to those in the long run. A difference from the
    formula then comes from the service.
    """
    expected = queueing.equal_runs(workers, load).mean * RUN_SECONDS
    tries = (_at_random(seed, workers * load / RUN_SECONDS, seconds) for seed in range(TRIES))
    return min(tries, key=lambda found: abs(statistics.mean(queueing.ideal_waits(found, workers, RUN_SECONDS)) - expected))


def _at_random(seed: int, rate: float, seconds: float) -> list[float]:
    chance, at, found = random.Random(seed), 0.0, list[float]()
    while (at := at + chance.expovariate(rate)) < seconds:
        found.append(at)
    return found


def summarised(load: float, timed: Sequence[tuple[float, float, float]]) -> Load:
    """Return the result of calls: ``timed`` has for each call when it was sent, when it ended and how long it ran."""
    waited = [(ended - sent - ran) / RUN_SECONDS for sent, ended, ran in timed]
    return Load(load, len(timed), round(statistics.mean(waited), 3), round(sum(wait > 1 for wait in waited) / len(waited), 3))


def _measured(port: int, workers: int) -> Iterator[Load]:
    body = json.dumps({"inputs": [RUN_SECONDS]}).encode()
    message = client.request("/v1/models/default:predict", body)

    def call() -> tuple[float, float, float]:
        sent = time.monotonic()
        reply = client.ask(port, message)
        assert reply.status == 200
        return sent, time.monotonic(), run_seconds(reply.headers["server-timing"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for load, seconds in LOADS:
            began = time.monotonic()
            calls = []
            for at in arrivals(load, workers, seconds):
                time.sleep(max(0.0, began + at - time.monotonic()))
                calls.append(pool.submit(call))
            yield summarised(load, [each.result() for each in calls])


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.waits", description="Measure what a queue does to waits.")
    parser.add_argument("--write-docs", action="store_true", help="write docs/bench/waits.json")
    folder = DOCS if parser.parse_args().write_docs else OUTPUT
    workers = len(machine.cores())
    loads = []
    with servers.percore(workers, handler="percore.handlers.echo:Sleep") as service:
        for found in _measured(service.port, workers):
            print(found, "expected:", queueing.equal_runs(workers, found.load), flush=True)
            loads.append(found)
    folder.mkdir(parents=True, exist_ok=True)
    result = Waits(machine.described(), workers, RUN_SECONDS, loads)
    (folder / "waits.json").write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
