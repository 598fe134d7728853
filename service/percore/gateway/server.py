"""The controller's process: threads around the loop, each of which does one thing for ever."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from prometheus_client import disable_created_metrics
from waitress.server import create_server

from percore import logs as process_logs
from percore import rundir
from percore.errors import StartError
from percore.gateway import logs
from percore.gateway.app import create_app
from percore.gateway.controller import Controller
from percore.gateway.endpoints import Fixed, Listed, Source
from percore.gateway.marking import Marker, Marking
from percore.gateway.runtime import HAProxy
from percore.gateway.settings import GatewaySettings, Settings
from percore.gateway.telemetry import GatewayTelemetry

log = logging.getLogger("percore.gateway")
ADMIN_SOCKET = "admin.sock"
HTTP_THREADS = 2
BOUNDS = {"connection_limit": 1000, "channel_timeout": 10, "max_request_body_size": 65536, "ident": "percore"}
"""As the exporter's: idle clients must not keep probes out, and nothing here takes a body."""


def serve(settings: Settings, *, once: bool, dry_run: bool) -> int:
    """Run the controller until told to stop; with ``once`` compare once, print the commands and return the exit status."""
    process_logs.configure(settings.server.log_level)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter, which nothing reads
    telemetry = GatewayTelemetry()
    controller = Controller(HAProxy(settings.server.run_dir / ADMIN_SOCKET), telemetry, dry_run=dry_run)
    source, marker = _source(settings.gateway, telemetry)
    if once:
        return _once(controller, source)
    signal.signal(signal.SIGTERM, _stop)
    server = _http(settings, controller, telemetry)
    journal = logs.Journal(telemetry, controller.pod_at)
    rundir.make(settings.server.run_dir)
    _thread(logs.follow, logs.listen(settings.server.run_dir / logs.SOCKET_NAME), journal)
    _thread(source.follow, controller.publish)
    _thread(controller.run, settings.gateway.interval)
    if marker is not None and not dry_run:
        _thread(Marking(marker, controller.busy_pods, telemetry).run)
    server.run()
    return 0


def _source(gateway: GatewaySettings, telemetry: GatewayTelemetry) -> tuple[Source, Marker | None]:
    """Return the source of endpoints that the settings name, and who marks pods, if anybody does."""
    if not gateway.service:
        return (Fixed(gateway.endpoints) if gateway.endpoints_file == Path() else Listed(gateway.endpoints_file)), None
    # Only here: elsewhere the client of Kubernetes need not be installed.
    from percore.gateway.cluster import Cluster  # noqa: PLC0415

    cluster = Cluster(gateway)
    telemetry.knowledge_age.set_function(cluster.age)
    return cluster, (cluster if gateway.deletion_costs == "yes" else None)


def _once(controller: Controller, source: Source) -> int:
    controller.publish(source.read())
    commands = controller.step()
    sys.stdout.writelines(f"{command}\n" for command in commands)
    return 0 if controller.look() is not None else 1


def _http(settings: Settings, controller: Controller, telemetry: GatewayTelemetry) -> Any:
    host, port = settings.server.host, settings.server.exporter_port
    app = create_app(controller.look, controller.observe, telemetry)
    try:
        return create_server(app, host=host, port=port, threads=HTTP_THREADS, **BOUNDS)
    except OSError as error:
        where = f"PERCORE_HOST={host!r} PERCORE_EXPORTER_PORT={port}"
        raise StartError(f"{where}: cannot listen there: {error.strerror}") from error


def _thread(target: Callable[..., None], *arguments: object) -> None:
    name = getattr(target, "__qualname__", "")
    threading.Thread(target=_vital, args=(target, *arguments), name=name, daemon=True).start()


def _vital(target: Callable[..., None], *arguments: object) -> None:
    """Run a thread without which the controller is none: if it dies, so does the process, whose restart cuts no call."""
    try:
        target(*arguments)
    except BaseException:
        log.exception("a thread of the controller died")
        os._exit(1)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)
