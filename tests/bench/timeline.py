"""Timelines as SVG, by hand: one panel a set-up, one bar a call, light while it waits and strong while it runs. Pure.

White ground and dark text, whatever the theme of the page around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from tests.bench.calls import Call

PALETTE = ("#0969da", "#e36209", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#0e7490", "#6e7781")
"""A colour for each core; the first two are told apart by everybody."""
WAITING, FAILED, INK, FAINT, LINE = "#d8dee4", "#ffb8b0", "#1f2328", "#59636e", "#d1d9e0"
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
BAR, PITCH = 8, 10
HEAD, FOOT, MARGIN, GAP = 56, 24, 20, 32
LEGEND = 26
STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
MOST_TICKS = 10


@dataclass(frozen=True, slots=True)
class Panel:
    """One set-up."""

    title: str
    caption: str
    calls: Sequence[Call]
    ideal: float
    """Where the last answer would come at best, in seconds."""

    @property
    def height(self) -> float:
        """With its title and its axis."""
        return HEAD + len(self.calls) * PITCH + FOOT


def span(panels: Sequence[Panel]) -> float:
    """Return how many seconds an axis must show so that every panel can have the same."""
    return max(max([panel.ideal, *(call.ended for call in panel.calls)]) for panel in panels) * 1.02


def tick_step(seconds: float) -> float:
    """Return a round number of seconds between ticks, so that there are at most ten."""
    return next((step for step in STEPS if seconds / step <= MOST_TICKS), seconds / MOST_TICKS)


def draw(rows: Sequence[Sequence[Panel]], seconds: float, *, width: int = 760, cores: int = 2, note: Sequence[str] = ()) -> str:
    """Return an SVG of panels, row by row, with one axis of ``seconds`` for each, and a legend.

    The lines of ``note`` stand where the first row has room for one more panel.
    """
    columns = max(map(len, rows))
    each = (width - 2 * MARGIN - (columns - 1) * GAP) / columns
    lefts = [MARGIN + column * (each + GAP) for column in range(columns)]
    panels = [panel for row in rows for panel in row]
    top = float(MARGIN + LEGEND)
    body = [_legend(cores, fails=any(call.failure for panel in panels for call in panel.calls))]
    body += _lines(note, lefts[-1], top + HEAD) if len(rows[0]) < columns else []
    for row in rows:
        body += [_placed(_panel(panel, each, seconds), left, top) for panel, left in zip(row, lefts, strict=False)]
        top += max(panel.height for panel in row) + GAP / 2
    return _document("\n".join(body), width, top, "; ".join(panel.title for panel in panels))


def _placed(content: str, left: float, top: float) -> str:
    return f'<g transform="translate({_n(left)} {_n(top)})">{content}</g>'


def _lines(note: Sequence[str], left: float, top: float) -> list[str]:
    return [_text(left, top + 18 * index, text, size=12, colour=INK) for index, text in enumerate(note)]


def _document(body: str, width: float, height: float, label: str) -> str:
    size = f'width="{_n(width)}" height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}" font-family="{FONT}">'
    ground = f'<rect width="{_n(width)}" height="{_n(height)}" rx="8" fill="#ffffff"/>'
    return "\n".join([head, ground, body, "</svg>"]) + "\n"


def _legend(cores: int, *, fails: bool) -> str:
    entries = [
        ("waits", WAITING),
        *((f"runs on core {core}", PALETTE[core]) for core in range(min(cores, len(PALETTE)))),
        *([("fails", FAILED)] if fails else []),
    ]
    parts, left = [], float(MARGIN)
    for name, colour in entries:
        parts.append(f'<rect x="{_n(left)}" y="{MARGIN - 6}" width="14" height="10" rx="2" fill="{colour}"/>')
        parts.append(_text(left + 20, MARGIN + 3, name, size=12, colour=FAINT))
        left += 20 + 6.2 * len(name) + 20
    return "".join(parts)


def _panel(panel: Panel, width: float, seconds: float) -> str:
    scale, bottom = width / seconds, HEAD + len(panel.calls) * PITCH
    ordered = sorted(panel.calls, key=lambda call: (bool(call.failure), call.ended))
    bars = "".join(_bar(call, HEAD + index * PITCH, scale) for index, call in enumerate(ordered))
    heads = _text(0, 15, panel.title, size=14, colour=INK, bold=True) + _text(0, 32, panel.caption, size=12, colour=FAINT)
    return heads + "".join(_axis(width, seconds, bottom)) + bars + _ideal(panel.ideal * scale, bottom, width)


def _bar(call: Call, top: float, scale: float) -> str:
    """Return one call: a rectangle for what it waited, and one for what it ran."""
    begins, ends = call.sent * scale, call.ended * scale
    if call.failure or call.started is None:
        return _rectangle(begins, ends, top, FAILED, call.failure or "failed")
    starts = call.started * scale
    stops = min(ends, (call.started + (call.run or 0.0)) * scale)
    colour = PALETTE[-1] if call.core is None else PALETTE[call.core % len(PALETTE)]
    where = "" if call.core is None else f" on core {call.core}"
    says = f"waited {call.started - call.sent:.2f} s, ran {call.run or 0.0:.2f} s{where}"
    return _rectangle(begins, starts, top, WAITING, says) + _rectangle(starts, stops, top, colour, says)


def _rectangle(left: float, right: float, top: float, colour: str, says: str) -> str:
    if right - left < 0.05:
        return ""
    place = f'x="{_n(left)}" y="{_n(top)}" width="{_n(right - left)}" height="{BAR}"'
    return f'<rect {place} fill="{colour}"><title>{escape(says)}</title></rect>'


def _axis(width: float, seconds: float, bottom: float) -> Iterator[str]:
    yield f'<line x1="0" y1="{_n(bottom + 2)}" x2="{_n(width)}" y2="{_n(bottom + 2)}" stroke="{LINE}"/>'
    step, at = tick_step(seconds), 0.0
    while at <= seconds:
        left = at / seconds * width
        yield f'<line x1="{_n(left)}" y1="{HEAD - 4}" x2="{_n(left)}" y2="{_n(bottom)}" stroke="{LINE}" stroke-width="0.6"/>'
        yield _text(left, bottom + 15, f"{at:g} s", size=11, colour=FAINT, anchor="start" if at == 0 else "middle")
        at += step


def _ideal(left: float, bottom: float, width: float) -> str:
    near_end = left > width - 40
    label = _text(left + (-4 if near_end else 4), HEAD - 8, "ideal", size=11, colour=INK, anchor="end" if near_end else "start")
    line = (
        f'<line x1="{_n(left)}" y1="{HEAD - 17}" x2="{_n(left)}" y2="{_n(bottom + 2)}" stroke="{INK}" stroke-dasharray="3 3"/>'
    )
    return line + label


def _text(left: float, base: float, text: str, *, size: int, colour: str, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{_n(left)}" y="{_n(base)}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
    return f"<text {place}{weight}>{escape(text)}</text>"


def _n(value: float) -> str:
    """Return a number short: a tenth of a pixel is enough."""
    return f"{value:.1f}".removesuffix(".0")
