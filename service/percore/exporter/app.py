"""The exporter's routes: probes, metrics, the slot, and the read-only routes of the API."""

from __future__ import annotations

import logging

from flask import Flask, Response, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from percore import __version__
from percore.api.readonly import register
from percore.exporter import backlog
from percore.exporter.workers import State, Workers
from percore.telemetry import Telemetry

log = logging.getLogger("percore.exporter")


def create_app(workers: Workers, telemetry: Telemetry, port: int) -> Flask:
    """Return the application. ``port`` is where calls wait; its queue is read at every scrape."""
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
    def slot() -> tuple[Response, int]:
        is_open = workers.slot_is_open(request.headers.get("X-Percore-Gateway", ""))
        return (jsonify(slot="open"), 200) if is_open else (jsonify(slot="taken"), 404)

    @app.get("/metrics")
    def metrics() -> Response:
        states = workers.states()
        for state in State:
            telemetry.workers.labels(state.value).set(states[state])
        telemetry.in_flight.labels("executing").set(states[State.BUSY])
        telemetry.in_flight.labels("waiting").set(backlog.waiting(port))
        return Response(generate_latest(telemetry.registry), content_type=CONTENT_TYPE_LATEST)

    return app
