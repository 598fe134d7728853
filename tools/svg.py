"""Draws the pictures of this project as SVG, without scripts and without fonts of their own. Pure.

White ground and dark text, whatever the theme of the page around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

PALETTE = ("#0969da", "#e36209", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#0e7490", "#6e7781")
"""Colours for different things. Colour-blind readers can distinguish the first two."""
WAITING, FAILED, INK, FAINT, LINE = "#d8dee4", "#ffb8b0", "#1f2328", "#59636e", "#d1d9e0"
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
MARGIN = 20
STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
MOST_TICKS = 10


def document(body: str, width: float, height: float, label: str) -> str:
    """Return a whole SVG. ``label`` describes the picture for readers who cannot see it."""
    size = f'width="{number(width)}" height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}" font-family="{FONT}">'
    ground = f'<rect width="{number(width)}" height="{number(height)}" rx="8" fill="#ffffff"/>'
    return "\n".join([head, ground, body, "</svg>"]) + "\n"


def placed(content: str, left: float, top: float) -> str:
    """Return content with its origin moved to ``left`` and ``top``."""
    return f'<g transform="translate({number(left)} {number(top)})">{content}</g>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return names with their colours, in one line at the top."""
    parts, left = [], float(MARGIN)
    for name, colour in entries:
        parts.append(f'<rect x="{number(left)}" y="{MARGIN - 6}" width="14" height="10" rx="2" fill="{colour}"/>')
        parts.append(text(left + 20, MARGIN + 3, name, size=12, colour=FAINT))
        left += 20 + 6.2 * len(name) + 20
    return "".join(parts)


def rectangle(left: float, right: float, top: float, colour: str, says: str, *, height: float) -> str:
    """Return a bar with a tooltip; an empty text if it would be too narrow to see."""
    if right - left < 0.05:
        return ""
    place = f'x="{number(left)}" y="{number(top)}" width="{number(right - left)}" height="{number(height)}"'
    return f'<rect {place} fill="{colour}"><title>{escape(says)}</title></rect>'


def tick_step(seconds: float) -> float:
    """Return a round number of seconds between ticks, so that there are at most ten."""
    return next((step for step in STEPS if seconds / step <= MOST_TICKS), seconds / MOST_TICKS)


def axis(width: float, seconds: float, top: float, bottom: float) -> Iterator[str]:
    """Yield an axis of time, with lines from ``top`` to ``bottom``."""
    yield f'<line x1="0" y1="{number(bottom + 2)}" x2="{number(width)}" y2="{number(bottom + 2)}" stroke="{LINE}"/>'
    step, at = tick_step(seconds), 0.0
    while at <= seconds:
        left = number(at / seconds * width)
        yield f'<line x1="{left}" y1="{number(top)}" x2="{left}" y2="{number(bottom)}" stroke="{LINE}" stroke-width="0.6"/>'
        anchor = "start" if at == 0 else "middle"
        yield text(at / seconds * width, bottom + 15, f"{at:g} s", size=11, colour=FAINT, anchor=anchor)
        at += step


def text(  # noqa: PLR0913 - the attributes of an SVG text
    left: float, base: float, words: str, *, size: int, colour: str, bold: bool = False, anchor: str = "start"
) -> str:
    """Return one line of text."""
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{number(left)}" y="{number(base)}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
    return f"<text {place}{weight}>{escape(words)}</text>"


def number(value: float) -> str:
    """Return a number with few digits: a tenth of a pixel is enough."""
    return f"{value:.1f}".removesuffix(".0")
