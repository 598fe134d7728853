"""The exporter's routes: probes, metrics, the slot, the catalog, and the read-only routes of the API."""

from __future__ import annotations

import logging

from flask import Flask, Response, jsonify
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from percore import __version__
from percore.api.readonly import register
from percore.errors import NotReady
from percore.exporter import backlog
from percore.exporter.workers import State, Workers
from percore.telemetry import Telemetry

log = logging.getLogger("percore.exporter")


def create_app(workers: Workers, telemetry: Telemetry, port: int) -> Flask:
    """Return the application. ``port`` is where calls are queued; its accept queue is read at every scrape."""
    app = Flask("percore-exporter", static_folder=None)
    telemetry.build_info.labels(__version__).set(1)
    register(app, workers.catalog)

    @app.get("/livez")
    def livez() -> Response:
        return jsonify(status="ok")

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        return (jsonify(status="ok"), 200) if workers.ready() else (jsonify(status="no worker has loaded its models"), 503)

    @app.get("/slot")
    def slot() -> Response:
        return jsonify(slot=workers.slot())

    @app.get("/catalog")
    def catalog() -> Response:
        served = workers.catalog()
        if served is None:
            raise NotReady("the model is not loaded yet")
        return jsonify(served.document())

    @app.get("/metrics")
    def metrics() -> Response:
        states = workers.states()
        for state in State:
            telemetry.workers.labels(state.value).set(states[state])
        telemetry.in_flight.labels("executing").set(states[State.BUSY])
        telemetry.in_flight.labels("queued").set(backlog.waiting(port))
        return Response(generate_latest(telemetry.registry), content_type=CONTENT_TYPE_LATEST)

    return app
