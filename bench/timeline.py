"""Timelines as SVG: a panel for each set-up, and a bar for each call, light for its wait and strong for its run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.calls import Call
from tools.svg import FAILED, FAINT, INK, MARGIN, PALETTE, WAITING, axis, document, legend, number, placed, rectangle, text

BAR, PITCH = 8, 10
HEAD, FOOT, GAP = 56, 24, 32
LEGEND = 26


@dataclass(frozen=True, slots=True)
class Panel:
    """One set-up."""

    title: str
    caption: str
    calls: Sequence[Call]
    ideal: float
    """When the last answer would come at best, in seconds."""

    @property
    def height(self) -> float:
        """With its title and its axis."""
        return HEAD + len(self.calls) * PITCH + FOOT


def span(panels: Sequence[Panel]) -> float:
    """Return how many seconds the axis must show, so that all panels can have the same axis."""
    return max(max([panel.ideal, *(call.ended for call in panel.calls)]) for panel in panels) * 1.02


def draw(rows: Sequence[Sequence[Panel]], seconds: float, *, width: int = 760, cores: int = 2, note: Sequence[str] = ()) -> str:
    """Return an SVG of panels, row by row, with one axis of ``seconds`` for each, and a legend.

    The lines of ``note`` stand where the first row has room for one more panel.
    """
    columns = max(map(len, rows))
    each = (width - 2 * MARGIN - (columns - 1) * GAP) / columns
    lefts = [MARGIN + column * (each + GAP) for column in range(columns)]
    panels = [panel for row in rows for panel in row]
    top = float(MARGIN + LEGEND)
    body = [legend(_entries(cores, fails=any(call.failure for panel in panels for call in panel.calls)))]
    body += _lines(note, lefts[-1], top + HEAD) if len(rows[0]) < columns else []
    for row in rows:
        body += [placed(_panel(panel, each, seconds), left, top) for panel, left in zip(row, lefts, strict=False)]
        top += max(panel.height for panel in row) + GAP / 2
    return document("\n".join(body), width, top, "; ".join(panel.title for panel in panels))


def _lines(note: Sequence[str], left: float, top: float) -> list[str]:
    return [text(left, top + 18 * index, line, size=12, colour=INK) for index, line in enumerate(note)]


def _entries(cores: int, *, fails: bool) -> list[tuple[str, str]]:
    """Return the entries of the legend."""
    return [
        ("waits", WAITING),
        *((f"runs on core {core}", PALETTE[core]) for core in range(min(cores, len(PALETTE)))),
        *([("fails", FAILED)] if fails else []),
    ]


def _panel(panel: Panel, width: float, seconds: float) -> str:
    scale, bottom = width / seconds, HEAD + len(panel.calls) * PITCH
    ordered = sorted(panel.calls, key=lambda call: (bool(call.failure), call.ended))
    bars = "".join(_bar(call, HEAD + index * PITCH, scale) for index, call in enumerate(ordered))
    heads = text(0, 15, panel.title, size=14, colour=INK, bold=True) + text(0, 32, panel.caption, size=12, colour=FAINT)
    return heads + "".join(axis(width, seconds, HEAD - 4, bottom)) + bars + _ideal(panel.ideal * scale, bottom, width)


def _bar(call: Call, top: float, scale: float) -> str:
    """Return one call: a rectangle for its wait, and one for its run."""
    begins, ends = call.sent * scale, call.ended * scale
    if call.failure or call.started is None:
        return rectangle(begins, ends, top, FAILED, call.failure or "failed", height=BAR)
    starts = call.started * scale
    stops = min(ends, (call.started + (call.run or 0.0)) * scale)
    colour = PALETTE[-1] if call.core is None else PALETTE[call.core % len(PALETTE)]
    where = "" if call.core is None else f" on core {call.core}"
    says = f"waited {call.started - call.sent:.2f} s, ran {call.run or 0.0:.2f} s{where}"
    return rectangle(begins, starts, top, WAITING, says, height=BAR) + rectangle(starts, stops, top, colour, says, height=BAR)


def _ideal(left: float, bottom: float, width: float) -> str:
    near_end = left > width - 40
    label = text(left + (-4 if near_end else 4), HEAD - 8, "ideal", size=11, colour=INK, anchor="end" if near_end else "start")
    place = f'x1="{number(left)}" y1="{HEAD - 17}" x2="{number(left)}" y2="{number(bottom + 2)}"'
    return f'<line {place} stroke="{INK}" stroke-dasharray="3 3"/>{label}'
