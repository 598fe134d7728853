"""Draws what `test_burst.py` measured: calls, pods wanted and pods ready over time, and a bar for each call. Pure.

Every number comes from the measurement. `make e2e` writes `build/e2e/burst-N.json`, and a picture of it into the same folder. A
copy of one measurement is in `docs/bench/burst.json`; `make update` draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tools.svg import FAINT, INK, LINE, MARGIN, PALETTE, WAITING, axis, document, legend, number, placed, rectangle, text

WIDTH = 760
GUTTER = 56
"""Room for the names of pods, and for the scale of the steps."""
HEAD, STEPS_HEIGHT, FOOT = 84, 110, 30
BAR, PITCH = 11, 14
IN_FLIGHT, WANTED, READY, RUNS = "#ddf4ff", PALETTE[1], PALETTE[2], PALETTE[0]
Steps = Sequence[tuple[float, int]]


@dataclass(frozen=True, slots=True)
class Run:
    """A call while it ran, in seconds since the burst, as its pod logged it."""

    began: float
    ended: float
    pod: str


@dataclass(frozen=True, slots=True)
class Burst:
    """One measurement."""

    calls: int
    total: float
    """When the last caller had its answer."""
    wanted: Steps
    """How many pods autoscaling wanted: a time, and the number from then on."""
    ready: Sequence[float]
    """When each pod was first seen to be ready."""
    runs: Sequence[Run]

    @property
    def in_flight(self) -> Steps:
        """How many calls waited or ran: all came at once, and each ended with its run."""
        ends = sorted(run.ended for run in self.runs)
        return [(0.0, self.calls), *((at, self.calls - gone) for gone, at in enumerate(ends, 1))]

    @property
    def ready_pods(self) -> Steps:
        """How many pods had been ready: a time, and the number from then on."""
        return [(at, count) for count, at in enumerate(sorted(self.ready), 1)]


def read(measured: dict[str, Any]) -> Burst:
    """Return the measurement that the test wrote as JSON."""
    runs = [Run(*run) for run in measured["runs"]]
    wanted = [(at, count) for at, count in measured["wanted"]]
    return Burst(measured["calls"], measured["total"], wanted, measured["ready"], sorted(runs, key=lambda run: run.began))


def drawn(measured: dict[str, Any]) -> str:
    """Return the measurement as an SVG."""
    burst = read(measured)
    width, seconds = WIDTH - 2 * MARGIN - GUTTER, 1.02 * max([burst.total, *(run.ended for run in burst.runs)])
    bars_top = HEAD + STEPS_HEIGHT + 16
    bottom = bars_top + PITCH * len(burst.runs)
    most = max(count for _, count in (*burst.in_flight, *burst.wanted, *burst.ready_pods))
    chart = [
        *axis(width, seconds, HEAD, bottom),
        *_lines(burst, width / seconds, STEPS_HEIGHT / most),
        *_scale(most),
        *(_call(run, bars_top + index * PITCH, width / seconds) for index, run in enumerate(burst.runs)),
    ]
    names = [("calls in flight", IN_FLIGHT), ("pods wanted", WANTED), ("pods ready", READY), ("a call waits", WAITING)]
    body = [legend([*names, ("and runs, on this pod", RUNS)]), *_heads(burst), placed("".join(chart), MARGIN + GUTTER, 0)]
    return document("\n".join(body), WIDTH, bottom + FOOT, f"{_title(burst)}: {_caption(burst)}")


def described(measured: dict[str, Any]) -> str:
    """Return the measurement in words."""
    burst = read(measured)
    return f"{_title(burst)}: {_caption(burst)}"


def _title(burst: Burst) -> str:
    before = burst.wanted[0][1]
    return f"{burst.calls} calls at once on {before} ready pod{'' if before == 1 else 's'}"


def _caption(burst: Burst) -> str:
    most, since = max((count, -at) for at, count in burst.wanted)
    parts = [f"{most} pods wanted after {-since:.1f} s, {len(burst.ready)} ready after {max(burst.ready, default=0.0):.1f} s"]
    if burst.runs:
        took = sorted({f"{run.ended - run.began:.1f}" for run in burst.runs}, key=float)
        parts += [f"each call ran {' to '.join(took[:1] + took[1:][-1:])} s", f"last answer after {burst.total:.1f} s"]
    if missing := burst.calls - len(burst.runs):
        parts.append(f"{missing} never ran")
    return "; ".join(parts)


def _heads(burst: Burst) -> list[str]:
    title = text(MARGIN, MARGIN + 30, _title(burst), size=14, colour=INK, bold=True)
    return [title, text(MARGIN, MARGIN + 47, _caption(burst), size=12, colour=FAINT)]


def _lines(burst: Burst, across: float, up: float) -> Iterator[str]:
    """Yield the three counts over time: an area and two lines. The dashed line is on top."""
    end, floor = burst.total * across, HEAD + STEPS_HEIGHT
    yield f'<path d="{_path(burst.in_flight, across, up, end)}V{number(floor)}H0Z" fill="{IN_FLIGHT}"/>'
    dashed = f'stroke="{WANTED}" stroke-width="2" stroke-dasharray="5 3"'
    for steps, style in ((burst.ready_pods, f'stroke="{READY}" stroke-width="3"'), (burst.wanted, dashed)):
        if steps:
            yield f'<path d="{_path(steps, across, up, end)}" fill="none" {style}/>'


def _path(steps: Steps, across: float, up: float, end: float) -> str:
    """Return a line that holds each count until the next."""
    floor = HEAD + STEPS_HEIGHT
    (first, count), *others = steps
    moves = [f"M{number(first * across)} {number(floor - count * up)}"]
    moves += [f"H{number(at * across)}V{number(floor - count * up)}" for at, count in others]
    return "".join(moves) + (f"H{number(end)}" if steps[-1][0] * across < end else "")


def _scale(most: int) -> Iterator[str]:
    floor = HEAD + STEPS_HEIGHT
    yield f'<line x1="0" y1="{HEAD}" x2="0" y2="{floor}" stroke="{LINE}"/>'
    for count, base in ((0, floor + 4), (most, HEAD + 4)):
        yield text(-6, base, str(count), size=11, colour=FAINT, anchor="end")


def _call(run: Run, top: float, across: float) -> str:
    """Return the bars of one call: its wait, its run, and the name of its pod."""
    says = f"waited {run.began:.1f} s, ran {run.ended - run.began:.1f} s on {run.pod}"
    name = text(-6, top + BAR - 2, run.pod.rsplit("-", 1)[-1], size=11, colour=FAINT, anchor="end")
    begins, ends = max(run.began, 0.0) * across, run.ended * across
    waits = rectangle(0, begins, top, WAITING, says, height=BAR)
    return name + waits + rectangle(begins, ends, top, RUNS, says, height=BAR)
