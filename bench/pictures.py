"""Chooses the timelines to draw: one with all set-ups, and for the README the worst usual set-up and percore. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.bursts import Burst
from bench.calls import ideal, most_at_once, summarise
from bench.report import seconds, threads_of
from bench.results import Results
from bench.setups import CALLS
from bench.timeline import Panel, draw, span

WIDE = 1000
NOTE = (
    f"How to read it: {CALLS} calls are sent at the same moment, a bar for each.",
    "Left and right are the same set-up, with TensorFlow's default threads and with one.",
    "The colour of a call is the core on which it began; only percore keeps it there.",
    "Where more calls run at once than there are cores, each of them takes longer.",
    "The dashed line is when the last answer comes at best.",
)


def panel(burst: Burst, alone: float, best: float) -> Panel:
    """Return one set-up's panel; its caption says what the bars show."""
    found = summarise(burst.calls, alone, best)
    title = burst.setup.name
    if burst.setup.kind != "percore":
        title += f" ({threads_of(burst.setup)} TensorFlow {'thread' if burst.setup.one_thread else 'threads'})"
    if found.run_mean is None:
        return Panel(title, f"all {len(burst.calls)} failed: {found.failures}", burst.calls, best)
    run = f"{most_at_once(burst.calls)} at once, a call runs {found.run_mean:.2f} x its time alone"
    failed = f"; {found.failed} failed" if found.failed else ""
    return Panel(title, f"{run}; answers from {seconds(found.first)} to {seconds(found.last)}{failed}", burst.calls, best)


def worst_setup(measured: Sequence[Burst], alone: float, best: float) -> Burst | None:
    """Return the set-up in which the mean run time grew most, among those with TensorFlow's default threads."""
    usual = [burst for burst in measured if burst.setup.kind != "percore" and not burst.setup.one_thread]
    grown = [(summarise(burst.calls, alone, best).run_mean or 0.0, index) for index, burst in enumerate(usual) if burst.calls]
    return usual[max(grown)[1]] if grown else None


def paired(measured: Sequence[Burst]) -> list[list[Burst]]:
    """Return rows for the timeline: the two variants of a set-up beside each other."""
    rows: dict[str, list[Burst]] = {}
    for burst in measured:
        rows.setdefault(burst.setup.name, []).append(burst)
    return list(rows.values())


def all_of(results: Results) -> dict[str, str]:
    """Return the SVGs by the names of their files. A picture is left out if its set-ups were not measured."""
    ran = [burst for burst in results.cpu if burst.calls]
    if results.alone is None or not ran:
        return {}
    alone, best = results.alone.seconds, ideal(CALLS, results.cores, results.alone.seconds)
    rows = [[panel(burst, alone, best) for burst in row] for row in paired(ran)]
    scale = span([each for row in rows for each in row])
    found = {"timeline.svg": draw(rows, scale, width=WIDE, cores=results.cores, note=NOTE)}
    worst, percore = worst_setup(ran, alone, best), next((burst for burst in ran if burst.setup.kind == "percore"), None)
    if worst and percore:
        pair = {"trouble.svg": panel(worst, alone, best), "cure.svg": panel(percore, alone, best)}
        found |= {name: draw([[each]], span(list(pair.values())), cores=results.cores) for name, each in pair.items()}
    return found
