"""The process of a pod's status server: one thread for the workers' reports, an event loop for HTTP."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType

from prometheus_client import disable_created_metrics

from percore import logs, state_dir
from percore.http.front import bind
from percore.settings import Settings
from percore.status.event_receiver import EventReceiver
from percore.status.worker_status import create_server
from percore.status.workers import Workers
from percore.worker_metrics import WorkerMetrics

log = logging.getLogger("percore.status")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def serve(settings: Settings) -> None:
    """Serve until a signal stops the process."""
    logs.configure(settings.server.log_level)
    state_dir.ensure_owned(settings.server.state_dir)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # else each counter has a second series, which nothing reads
    workers = Workers(WorkerMetrics())
    signal.signal(signal.SIGTERM, _stop)
    host, port = settings.server.host, settings.server.status_port
    listener = bind(host, port, "PERCORE_STATUS_PORT")
    EventReceiver(settings.server.report_socket, workers).start()
    log.info("the status server listens on %s:%d", host, port)
    create_server(workers).run(listener)
