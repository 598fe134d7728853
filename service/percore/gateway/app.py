"""The controller's routes: probes and metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flask import Flask, Response, jsonify
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from percore import __version__
from percore.gateway.plan import Snapshot
from percore.gateway.telemetry import GatewayTelemetry

NO_HAPROXY = "HAProxy does not answer"
NOT_HELD = "calls would not wait at zero pods yet"


Look = Callable[[], Snapshot | None]


def create_app(look: Look, observe: Look, telemetry: GatewayTelemetry) -> Flask:
    """Return the application. ``look`` says what HAProxy does now, and ``observe`` sets the gauges to it as well."""
    one_scrape = threading.Lock()  # gauges are taken down and set anew: no other scrape may see them in between
    app = Flask("percore-gateway", static_folder=None)
    telemetry.build_info.labels(__version__).set(1)

    @app.get("/livez")
    def livez() -> Response:
        return jsonify(status="ok")

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        """Ready means that calls are taken in, though there may be no pod yet: they wait."""
        snapshot = look()
        if snapshot is not None and snapshot.held:
            return jsonify(status="ok"), 200
        return jsonify(status=NO_HAPROXY if snapshot is None else NOT_HELD), 503

    @app.get("/metrics")
    def metrics() -> Response:
        with one_scrape:
            observe()
            text = generate_latest(telemetry.registry)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    return app
