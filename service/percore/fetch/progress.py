"""Shows the progress of a fetch: a bar on a terminal, otherwise a line of the log every five seconds."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator

logger = logging.getLogger("percore.fetch")

LINE_SECONDS = 5.0
BAR_SECONDS = 0.2
BAR_WIDTH = 30
MEGA = 1_000_000


class Progress:
    """The bytes of one fetch. Several threads count them."""

    def __init__(self) -> None:
        self.total: int | None = None
        """None until the files are known."""
        self.trouble = ""
        """The last error after which a request was sent again; empty if there was none."""
        self._done = 0
        """Bytes that are on disk."""
        self._began = time.monotonic()
        self._resumed = 0
        self._warned = -LINE_SECONDS
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Count bytes that were received. A negative number takes bytes back that will be received again."""
        with self._lock:
            self._done += size

    def resume(self, size: int) -> None:
        """Count bytes that an earlier attempt left on disk."""
        self.add(size)
        self._resumed += size

    def note_retry(self, reason: str) -> None:
        """Record an error after which the request is sent again. Log at most one such error in five seconds."""
        self.trouble = reason
        if time.monotonic() - self._warned >= LINE_SECONDS:
            self._warned = time.monotonic()
            logger.warning("trying again: %s", reason)

    def text(self) -> str:
        """Return the progress as text."""
        if self.total is None:
            return "its files are not known yet"
        share = 100 * self._done / self.total if self.total else 100.0
        rate = (self._done - self._resumed) / max(time.monotonic() - self._began, 0.001)
        return f"{self._done / MEGA:.1f} of {self.total / MEGA:.1f} MB, {share:.0f} %, {rate / MEGA:.1f} MB/s"

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress until the end of the context."""
        ended = threading.Event()
        showing = threading.Thread(target=self._show, args=(ended,), daemon=True)
        showing.start()
        try:
            yield
        finally:
            ended.set()
            showing.join()

    def _show(self, ended: threading.Event) -> None:
        on_terminal = sys.stderr.isatty()
        while not ended.wait(BAR_SECONDS if on_terminal else LINE_SECONDS):
            if on_terminal:
                self._draw()
            else:
                logger.info("fetched %s", self.text())
        if on_terminal:
            self._draw()
            sys.stderr.write("\n")

    def _draw(self) -> None:
        full = BAR_WIDTH * self._done // self.total if self.total else BAR_WIDTH
        sys.stderr.write(f"\r[{'#' * full}{'.' * (BAR_WIDTH - full)}] {self.text()}\x1b[K")
        sys.stderr.flush()
