"""The results as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.bulk import MEGABYTES
from bench.bursts import Burst
from bench.calls import ideal, most_at_once, summarise
from bench.empty import AT_ONCE, EmptyCall
from bench.footprint import Footprint
from bench.gateway import INSTANT_AT_ONCE, INSTANT_WORKERS, QUANTILES, GatewayCosts
from bench.results import Results
from bench.setups import CALLS, Setup
from harness.service import ROOT

OUTPUT, DOCS = ROOT / "build" / "bench", ROOT / "docs" / "bench"
SHOWN_FUNCTIONS = 15


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def times(value: float | None) -> str:
    """Return a multiple as text: ``1.02 x``."""
    return "-" if value is None else f"{value:.2f} x"


def seconds(value: float | None) -> str:
    """Return a time in seconds, or in milliseconds if it is less than a second."""
    if value is None:
        return "-"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.2f} ms"


def threads_of(setup: Setup) -> str:
    """Return how many threads TensorFlow computes with."""
    return "one" if setup.one_thread else "default"


def bursts(measured: Sequence[Burst], alone: float, best: float, *, computing: bool) -> str:
    """Return table 1, for calls that compute or for calls that wait."""
    heads = ["set-up", *(["TensorFlow's threads"] if computing else [])]
    heads += [
        "run / alone, mean",
        "max",
        "first answer",
        "last answer",
        "makespan / ideal",
        "run at once",
        f"failed of {CALLS}",
    ]
    rows = []
    for burst in measured:
        found = summarise(burst.calls, alone, best)
        name = f"**{burst.setup.name}**" if burst.setup.kind == "percore" else burst.setup.name
        row = [name, *([threads_of(burst.setup)] if computing else [])]
        if not burst.calls:
            rows.append([*row, burst.setup.skipped or f"did not start: {burst.error}", *[""] * (len(heads) - len(row) - 1)])
            continue
        failed = f"{found.failed}: {found.failures}" if found.failed else "0"
        row += [times(found.run_mean), times(found.run_max), seconds(found.first), seconds(found.last), times(found.makespan)]
        rows.append([*row, str(most_at_once(burst.calls)), failed])
    return table(heads, rows)


def empty(found: EmptyCall) -> str:
    """Return table 2, and where percore's time goes."""
    rows = [[row.name, f"{row.p50 * 1000:.3f} ms", f"{row.p99 * 1000:.3f} ms", f"{row.rate:.0f}"] for row in found.rows]
    steps = [[cost.name, f"{cost.microseconds:.1f}"] for cost in found.costs.steps]
    functions = [[f"`{cost.name}`", f"{cost.microseconds:.1f}", f"{cost.calls:g}"] for cost in found.costs.functions]
    return "\n\n".join(
        [
            table(["one worker on one core", "p50", "p99", f"calls/s, {AT_ONCE} at once"], rows),
            f"Where an empty call's time goes in percore's worker, {found.costs.whole:.0f} us from accept to the next accept:",
            table(["step", "us"], steps),
            "The functions that take most by themselves, as cProfile sees them (it makes small ones look slower):",
            table(["function", "us a call", "times a call"], functions[:SHOWN_FUNCTIONS]),
        ]
    )


def gateway(found: GatewayCosts) -> str:
    """Return the time of a call, directly and through the gateway, and the measurements of the gateway alone."""
    heads = ["an empty call, one at a time", "calls", *(f"p{share * 100:g}" for share in QUANTILES)]
    rows = [
        [way.name, way.calls, *(f"{value * 1000:.3f} ms" for value in way.quantiles), f"{way.tensor * 1000:.0f} ms"]
        for way in found.ways
    ]
    alone = [
        [f"calls/s, {INSTANT_WORKERS} workers that answer at once, {INSTANT_AT_ONCE} calls at once", f"{found.rate:.0f}"],
        ["CPU of the gateway for one of those calls", f"{found.cpu * 1000:.3f} ms"],
        ["from a worker that has loaded to the end of its first call", f"{found.first_call * 1000:.0f} ms"],
    ]
    tensor = f"{MEGABYTES} MB of float32, binary, echoed"
    return "\n\n".join([table([*heads, tensor], rows), table(["", ""], alone)])


def bulk(results: Results) -> str:
    """Return table 3."""
    rows = [
        [
            row.name,
            f"{row.request_megabytes:.0f} MB",
            seconds(row.seconds),
            seconds(row.run),
            f"{row.megabytes_per_second:.0f} MB/s",
        ]
        for row in results.bulk
    ]
    return table([f"{MEGABYTES} MB of float32, echoed", "request", "whole call", "in the worker", "there and back"], rows)


def footprint(found: Footprint) -> str:
    """Return table 4."""
    starts = [[f"from start to ready, {start.models}", seconds(start.seconds)] for start in found.starts]
    memory = [[each.name, f"{each.rss:.0f} MB", f"{each.pss:.0f} MB"] for each in found.processes]
    total = [f"{sum(getattr(each, name) for each in found.processes):.0f} MB" for name in ("rss", "pss")]
    memory.append(["**together**", *total])
    memory += [
        [f"{each.name}, with TensorFlow and both models", f"{each.rss:.0f} MB", f"{each.pss:.0f} MB"] for each in found.workers
    ]
    probes = [[f"`GET {each.path}`", *map(seconds, (each.p50, each.p99, each.slowest)), each.answers] for each in found.probes]
    return "\n\n".join(
        [
            table(["", "seconds"], starts),
            table(["memory", "resident", "proportional share"], memory),
            table(["status server, while every core computes", "p50", "p99", "slowest", "answers"], probes),
        ]
    )


INTRODUCTION = "How fast percore is beside usual set-ups of Flask and Gunicorn, and what its own parts cost."


def document(results: Results) -> str:
    """Return the whole report."""
    return (
        "\n\n".join(
            ["# Measurements", INTRODUCTION, f"Measured on {results.machine}. `make bench` repeats it.", *_sections(results)]
        )
        + "\n"
    )


def _sections(results: Results) -> Iterator[str]:
    if results.cpu and results.alone:
        yield from _computing(results, results.alone.seconds)
    if results.io:
        yield "## The same with calls that wait instead of compute"
        yield (
            f"{CALLS} calls at once, {results.sleep:g} s of sleep each: no core is needed, so the ideal is the time of one. "
            "Here threads and greenlets win, and percore is the wrong choice: it runs as many calls at once as there are cores."
        )
        yield bursts(results.io, results.sleep, results.sleep, computing=False)
    if results.empty:
        yield from ("## An empty call", empty(results.empty))
    if results.gateway:
        yield from ("## The gateway", gateway(results.gateway))
    if results.bulk:
        yield from ("## A large tensor", bulk(results))
    if results.footprint:
        yield from ("## Footprint", footprint(results.footprint))


def _computing(results: Results, alone: float) -> Iterator[str]:
    best = ideal(CALLS, results.cores, alone)
    yield "## Calls that compute"
    drift = (
        f" Measured again at the end of the run, one call alone took {results.alone_again.seconds:.2f} s."
        if results.alone_again
        else ""
    )
    yield (
        f"{CALLS} calls at once, each of which takes {alone:.2f} s alone on one core.{drift} "
        f"The ideal makespan is {best:.1f} s: {CALLS} calls on {results.cores} cores, one at a time on each."
    )
    yield bursts(results.cpu, alone, best, computing=True)
    yield "![Timeline of every call](timeline.svg)"
