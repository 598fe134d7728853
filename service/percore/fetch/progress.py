"""How far a fetch is: a bar on a terminal, otherwise a line of the log each five seconds."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

logger = logging.getLogger("percore.fetch")

LINE_SECONDS = 5.0
BAR_SECONDS = 0.2
BAR_WIDTH = 30
MEGA = 1_000_000


class Progress:
    """The bytes of one fetch."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        """Bytes that are on disk."""
        self.trouble = ""
        """The last error that was tried again."""
        self._began = time.monotonic()
        self._resumed = 0
        self._warned = -LINE_SECONDS

    def resume(self, size: int) -> None:
        """Count bytes that an earlier attempt left on disk."""
        self.done += size
        self._resumed += size

    def fail(self, reason: str) -> None:
        """Take in an error that will be tried again; log one each five seconds."""
        self.trouble = reason
        if time.monotonic() - self._warned >= LINE_SECONDS:
            self._warned = time.monotonic()
            logger.warning("trying again: %s", reason)

    def text(self) -> str:
        """Return how far it is, in words."""
        share = 100 * self.done / self.total if self.total else 100.0
        rate = (self.done - self._resumed) / max(time.monotonic() - self._began, 0.001)
        return f"{self.done / MEGA:.1f} of {self.total / MEGA:.1f} MB, {share:.0f} %, {rate / MEGA:.1f} MB/s"

    async def show(self) -> None:
        """Show it, until cancelled."""
        on_terminal = sys.stderr.isatty()
        try:
            while True:
                await asyncio.sleep(BAR_SECONDS if on_terminal else LINE_SECONDS)
                if on_terminal:
                    self._draw()
                else:
                    logger.info("fetched %s", self.text())
        finally:
            if on_terminal:
                self._draw()
                sys.stderr.write("\n")

    def _draw(self) -> None:
        full = BAR_WIDTH * self.done // self.total if self.total else BAR_WIDTH
        sys.stderr.write(f"\r[{'#' * full}{'.' * (BAR_WIDTH - full)}] {self.text()}\x1b[K")
        sys.stderr.flush()
