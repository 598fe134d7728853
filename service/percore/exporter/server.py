"""The exporter's process: one thread for the workers' reports, a few for HTTP."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType

from prometheus_client import disable_created_metrics
from waitress.server import create_server

from percore import logs, rundir
from percore.errors import StartError
from percore.exporter.app import create_app
from percore.exporter.inbox import Inbox
from percore.exporter.workers import Workers
from percore.settings import Settings
from percore.telemetry import Telemetry

log = logging.getLogger("percore.exporter")
HTTP_THREADS = 4
BOUNDS = {"connection_limit": 1000, "channel_timeout": 10, "max_request_body_size": 65536, "ident": "percore"}
"""Idle clients must not keep probes out, and nothing here takes a body."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def serve(settings: Settings) -> None:
    """Serve until told to stop."""
    logs.configure(settings.server.log_level)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    rundir.make(settings.server.run_dir)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter, which nothing here reads
    telemetry = Telemetry()
    workers = Workers(telemetry)
    app = create_app(workers, telemetry, settings.server.port)
    signal.signal(signal.SIGTERM, _stop)
    host, exporter_port = settings.server.host, settings.server.exporter_port
    try:
        server = create_server(app, host=host, port=exporter_port, threads=HTTP_THREADS, **BOUNDS)
    except OSError as error:
        where = f"PERCORE_HOST={host!r} PERCORE_EXPORTER_PORT={exporter_port}"
        raise StartError(f"{where}: cannot listen there: {error.strerror}") from error
    Inbox(settings.server.reports, workers).start()
    log.info("exporter listens on %s:%d", host, exporter_port)
    server.run()
