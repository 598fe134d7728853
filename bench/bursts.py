"""Table 1, the problem and its solution: eleven calls at once, through each usual set-up and through percore."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import client, servers
from bench.calls import Call
from bench.setups import CALLS, Setup

PATIENCE = 5.0
"""How long a burst may take, in multiples of its ideal. Then the client gives up the calls without an answer."""
LEAST_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Work:
    """The work of the eleven calls."""

    application: str
    """The baseline's function."""
    value: float
    """The input of a call: steps, or seconds."""
    alone: float
    """Seconds that one call takes if it does not share its core."""
    best: float
    """The ideal: seconds that eleven calls take at best."""
    percore: dict[str, str | Path]
    """percore's settings for the same work."""
    model: str

    @property
    def patience(self) -> float:
        """Seconds after which the client gives up."""
        return max(LEAST_PATIENCE_SECONDS, PATIENCE * self.best)


@dataclass(frozen=True, slots=True)
class Burst:
    """The result of one set-up."""

    setup: Setup
    calls: list[Call] = field(default_factory=list)
    error: str = ""
    """Why there are no calls; empty if the server started."""


def measure(setup: Setup, work: Work, logs: Path) -> Burst:
    """Start a set-up, send the calls, end it."""
    if setup.skipped:
        return Burst(setup)
    try:
        if setup.kind == "percore":
            return Burst(setup, _through_percore(setup, work))
        return Burst(setup, _through_gunicorn(setup, work, logs / f"{work.application}-{setup.slug}.log"))
    except TimeoutError as error:
        return Burst(setup, error=str(error))


def _through_gunicorn(setup: Setup, work: Work, log: Path) -> list[Call]:
    value = int(work.value) if work.application == "burn" else work.value
    message = client.request("/predict", json.dumps({"inputs": [value]}).encode())
    with servers.gunicorn(setup, work.application, log) as port:
        return relative(client.burst(port, [message] * CALLS, work.patience), _run_by_baseline)


def _run_by_baseline(timed: client.Timed) -> tuple[float, float, int]:
    assert timed.reply is not None
    answer = timed.reply.json()
    return answer["started"], answer["run"], answer["core"]


def _through_percore(setup: Setup, work: Work) -> list[Call]:
    body = json.dumps({"inputs": [int(work.value) if work.application == "burn" else work.value]}).encode()
    messages = [client.request(f"/v1/models/{work.model}:predict", body, X_Request_ID=f"bench-{n}") for n in range(CALLS)]
    with servers.percore(setup.workers, **work.percore) as service:
        timed = client.burst(service.port, messages, work.patience)
        cores = servers.cores_of(service)
        ran_on = {line["request_id"]: cores.get(line["pid"]) for line in service.runs()}
    return relative(timed, lambda each: _run_by_percore(each, ran_on))


def _run_by_percore(timed: client.Timed, ran_on: dict[str, int | None]) -> tuple[float, float, int | None]:
    """Read the run time that percore reports. The answer comes about a millisecond after the run, so this tells its begin."""
    assert timed.reply is not None
    run = run_seconds(timed.reply.headers["server-timing"])
    return timed.ended - run, run, ran_on.get(timed.reply.headers["x-request-id"])


def run_seconds(server_timing: str) -> float:
    """Return ``run`` of a ``Server-Timing`` header, in seconds."""
    times = dict(entry.strip().split(";dur=") for entry in server_timing.split(","))
    return float(times["run"]) / 1000


def relative(timed: Sequence[client.Timed], run_of: Callable[[client.Timed], tuple[float, float, int | None]]) -> list[Call]:
    """Return calls with times since the first one was sent. ``run_of`` returns when, how long and on which core a call ran."""
    zero = min(each.sent for each in timed)
    calls = []
    for each in timed:
        started, run, core = run_of(each) if not each.failure else (None, None, None)
        since = None if started is None else max(started, each.sent) - zero
        calls.append(Call(each.sent - zero, each.ended - zero, since, run, core, each.failure))
    return calls


def set_environment() -> None:
    """Keep TensorFlow's messages out of the servers' logs, and let Python write compiled modules, as it does by default."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
