"""The process of a pod's status server: one thread for the workers' reports, an event loop for HTTP."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType

from prometheus_client import disable_created_metrics

from percore import logs, rundir
from percore.exporter.app import create_server
from percore.exporter.inbox import Inbox
from percore.exporter.workers import Workers
from percore.http.front import bind
from percore.settings import Settings
from percore.telemetry import Telemetry

log = logging.getLogger("percore.exporter")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def serve(settings: Settings) -> None:
    """Serve until told to stop."""
    logs.configure(settings.server.log_level)
    rundir.own(settings.server.run_dir)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter, which nothing here reads
    workers = Workers(Telemetry())
    signal.signal(signal.SIGTERM, _stop)
    host, port = settings.server.host, settings.server.exporter_port
    listener = bind(host, port, "PERCORE_EXPORTER_PORT")
    Inbox(settings.server.reports, workers).start()
    log.info("exporter listens on %s:%d", host, port)
    create_server(workers).run(listener)
