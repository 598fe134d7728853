"""HAProxy's configuration, from the settings. What callers are told comes from the error tree, and from nowhere else."""

from __future__ import annotations

import math
import secrets
import socket
from pathlib import Path
from string import Template

import orjson

from percore import rundir
from percore.errors import BadRequest, BodyTimeout, BodyTooLarge, Busy, CallError, NotFound, NotReady, RunTimeout
from percore.gateway.errors import PodLost, QueueFull
from percore.gateway.settings import Settings

TEMPLATE = Path(__file__).with_name("haproxy.cfg")
LOG_FIELDS = {
    # A number for each line, without gaps, so that lost ones show.
    "line": "%[var(proc.logged),add(1),set-var(proc.logged)]",
    "id": '"%[var(txn.id),json(utf8s)]"',
    "path": '"%[var(txn.path),json(utf8s)]"',
    "call": '"%[var(txn.call)]"',
    "status": "%ST",
    "end": '"%ts"',
    "address": '"%si"',
    "port": '"%sp"',
    "ahead": '"%[var(txn.ahead)]"',
    "wait": "%Tw",
    "run": "%Tr",
    "total": "%Ta",
    "received": "%U",
    "sent": "%B",
    "retries": '"%rc"',
    "client": '"%ci"',
}
"""Milliseconds, -1 where a call did not get so far. The life's name is added: with each life the numbers start anew."""
MARGIN_SECONDS = 60.0
SPARE_CONNECTIONS = 2048
"""For callers that read only, that send their body, or that keep a connection for their next call."""


CLASSES_BY_NUMBER = 2000
OCCUPANTS_WAITING = 2
"""Our own callers behind those that hold the servers which are always full: HAProxy counts them with the calls that wait."""


def new_name(settings: Settings) -> str:
    """Return a name for one life of HAProxy: pods must tell its calls from those that died with the life before."""
    return f"{settings.gateway.name or socket.gethostname()}-{secrets.token_hex(4)}"


def maxconn(settings: Settings) -> int:
    """Return how many connections HAProxy accepts: more than may wait and run, so that the rest hears why it may not."""
    return settings.limits.backlog + settings.gateway.slots + SPARE_CONNECTIONS


def descriptors(settings: Settings) -> int:
    """Return how many file descriptors it takes: one for each caller, and one more for each call that runs."""
    return maxconn(settings) + 2 * settings.gateway.slots + 64


def write(settings: Settings, name: str) -> Path:
    """Write the configuration into the run folder, and return its path."""
    folder = settings.server.run_dir
    rundir.make(folder)
    path = folder / "haproxy.cfg"
    path.write_text(configuration(settings, name))
    return path


def configuration(settings: Settings, name: str) -> str:
    """Return HAProxy's configuration for a life called ``name``."""
    return Template(TEMPLATE.read_text()).substitute(_values(settings, name) | _answers(settings))


def _values(settings: Settings, name: str) -> dict[str, object]:
    gateway, server, limits = settings.gateway, settings.server, settings.limits
    host = f"[{server.host}]" if ":" in server.host else server.host
    return {
        "name": name,
        "address": f"{host}:{server.port}",
        "run_dir": server.run_dir.absolute(),
        "maxconn": maxconn(settings),
        "buffer_bytes": gateway.buffer_bytes,
        "slots": gateway.slots,
        "queue_max": limits.backlog,
        "max_body_bytes": limits.max_body_bytes,
        "body": _milliseconds(limits.body),
        "wait": _milliseconds(limits.wait),
        # Above the pod's own clock, and above Gunicorn's: it ends only what neither of them could.
        "run": _milliseconds(limits.run + 2 * limits.body + MARGIN_SECONDS),
        "late": f"date(0,ms),sub(txn.arrived),div({round(limits.wait * 1000)}),bool",
        "check": _milliseconds(gateway.check_interval),
        "recheck": _milliseconds(gateway.check_interval / 8),
        "order_unit": max(1, round(gateway.order_unit * 1000)),
        "calls_a_class": math.ceil(limits.backlog / CLASSES_BY_NUMBER),
        "occupants_waiting": OCCUPANTS_WAITING,
        "priority": _priority(gateway.priority_header),
        "log_format": "{" + ",".join([f'"life":"{name}"', *(f'"{key}":{value}' for key, value in LOG_FIELDS.items())]) + "}",
    }


def _answers(settings: Settings) -> dict[str, str]:
    limits = settings.limits
    errors = {
        "bad_request": BadRequest("not a well-formed HTTP/1.1 request"),
        "not_found": NotFound("no such route; GET /openapi.json lists them"),
        "body_timeout": BodyTimeout(f"the body was not complete within {limits.body:g} s"),
        "body_too_large": BodyTooLarge(f"the body must be at most {limits.max_body_bytes} bytes"),
        "queue_full": QueueFull(f"{limits.backlog} calls wait, and no more may; send the call again later"),
        "pod_lost": PodLost("the pod went away while it computed the call; whether to send it again is yours to decide"),
        "busy": Busy("no pod is free; send the call again"),
        "not_ready": NotReady("no pod has loaded its models yet"),
        "run_timeout": RunTimeout(f"the call computed longer than the run limit, {limits.run:g} s, and was ended"),
    }
    waited = f"the call waited {limits.wait:g} s for a free pod and never ran"
    refused = "no pod could be reached and the call never ran"
    return {name: _answer(error) for name, error in errors.items()} | {"wait_timeout": f"{waited},{refused}"}


def _answer(error: CallError) -> str:
    """Return the arguments of ``http-error`` and of ``return`` that answer with ``error``."""
    document = orjson.dumps(error.document()).decode().replace("'", "\\'")
    retry = f" hdr Retry-After {error.retry_after}" if error.retry_after is not None else ""
    return f"content-type application/json string '{document}'{retry}"


def _priority(header: str) -> str:
    if not header:
        return "# No header gives a call priority."
    given = f"req.hdr({header})"
    return f"http-request set-priority-class {given},add(2037),neg if {{ {given} -m reg ^[1-9]$ }}"


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
