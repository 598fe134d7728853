"""Threads that a process needs: if one of them fails, the process ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from percore import logs

log = logging.getLogger("percore")


def start_vital(name: str, target: Callable[..., object], *arguments: object) -> None:
    """Run ``target`` in a thread. If it fails, the process ends, because it must not go on without this thread."""

    def run() -> None:
        try:
            target(*arguments)
        except BaseException:
            log.exception("the thread %s failed; the process ends", name)
            logs.end_process(1)

    threading.Thread(target=run, name=name, daemon=True).start()
