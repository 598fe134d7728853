"""The arbiter: Gunicorn, configured from the settings.

It never imports Flask, numpy or TensorFlow: its workers do, each for itself, after the fork.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from percore import cores, logs, rundir
from percore.errors import START_FAILED
from percore.settings import LimitSettings, Settings
from percore.worker.boots import Boots
from percore.worker.peers import keep_alive
from percore.worker.pod import PodWorker, shut_down
from percore.worker.shared import SharedWorker

MARGIN_SECONDS = 30.0
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Gunicorn unlinks its files there at once


class JsonLogger(Logger):  # type: ignore[misc]
    """Gunicorn's log lines, in the format of all others."""

    def setup(self, cfg: Any) -> None:
        """Leave the handlers to ``percore.logs``."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        self.error_log.setLevel(logging.NOTSET)


def backstop(limits: LimitSettings) -> int:
    """Return Gunicorn's ``timeout``: longer than any call may take, for when not even the guardian gets a turn."""
    return math.ceil(limits.body + limits.run + limits.body + MARGIN_SECONDS)


def options(settings: Settings, workers: int, fd: int | None) -> dict[str, Any]:
    """Return Gunicorn's settings. With ``fd`` the workers share that listening socket; without, this is a pod."""
    host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
    chosen: dict[str, Any] = {
        "bind": [f"{host}:{settings.server.port}" if fd is None else f"fd://{fd}"],
        "workers": workers,
        "worker_class": PodWorker if fd is None else SharedWorker,
        "preload_app": False,
        "timeout": backstop(settings.limits),
        "graceful_timeout": math.ceil(settings.limits.drain),
        "logger_class": JsonLogger,
        "control_socket_disable": True,
        "forwarder_headers": "",  # nobody in front may change the path or the scheme that a call sees
        "forwarded_allow_ips": "",
        "proc_name": "percore",
        "when_ready": _keep_alive,
    }
    if SHARED_MEMORY.is_dir():
        chosen["worker_tmp_dir"] = str(SHARED_MEMORY)  # heartbeats must not wait for a disk
    return chosen


def _keep_alive(arbiter: Arbiter) -> None:
    for listener in arbiter.LISTENERS:
        keep_alive(listener.sock)


class CallArbiter(Arbiter):  # type: ignore[misc]
    """Gunicorn's arbiter, with other reasons to stop.

    There it stops whenever a worker ends with status 3 or 4; a handler that calls ``exit(3)`` must not end the service.
    """

    WORKER_BOOT_ERROR = APP_LOAD_ERROR = START_FAILED

    def __init__(self, app: Server) -> None:
        super().__init__(app)
        self._parent = os.getppid()

    def reap_workers(self) -> None:
        """Take note of workers that ended; stop only for one that could not load before any ever had."""
        before = set(self.WORKERS)
        try:
            super().reap_workers()
        except HaltServer:
            if not self.app.boots.ever_ready:
                raise
        ended = before - set(self.WORKERS)
        for group in ended:
            # What a handler started would go on computing on the core that the next worker takes.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    def stop(self, graceful: bool = True) -> None:
        """Stop. Give the port up at once, so that whoever waits there goes elsewhere, and let the running call end.

        On one machine the supervisor keeps the port, as long as it lives, and answers those who wait.
        """
        if self.app.fd is None or os.getppid() != self._parent:
            for listener in self.LISTENERS:
                shut_down(listener.sock)
        super().stop(graceful)


class Server(BaseApplication):  # type: ignore[misc]
    """Gunicorn's application object: the workers take the settings and the groups of cores from it."""

    def __init__(self, settings: Settings, fd: int | None) -> None:
        self.settings = settings
        self.fd = fd
        usable = cores.usable_cores()
        groups = cores.deal(usable, settings.cores.per_call)
        self.groups = groups if fd is not None else groups[:1]
        self.boots = Boots(len(self.groups))
        super().__init__()

    def load_config(self) -> None:
        """Hand the options to Gunicorn."""
        for name, value in options(self.settings, len(self.groups), self.fd).items():
            self.cfg.set(name, value)

    def run(self) -> None:
        """Run the arbiter."""
        CallArbiter(self).run()


def serve(settings: Settings, fd: int | None = None) -> None:
    """Run the arbiter until it is told to stop; never returns."""
    logs.configure(settings.server.log_level)
    rundir.make(settings.server.run_dir)
    Server(settings, fd).run()
