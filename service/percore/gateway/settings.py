"""The gateway's settings: the environment, read once, in the style of ``percore.settings``.

``PERCORE_HOST``, ``PERCORE_PORT``, ``PERCORE_EXPORTER_PORT``, ``PERCORE_RUN_DIR``, ``PERCORE_LOG_LEVEL`` and the limits mean
here what they mean in a pod, so that one set of values serves both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from percore.errors import SettingsError
from percore.gateway.endpoints import Endpoint, parse
from percore.settings import (
    PATH,
    PORT,
    SECONDS,
    TEXT,
    LimitSettings,
    Rule,
    ServerSettings,
    _checked,
    _one_of,
    _read,
    _within,
    setting,
)

HEADER = Rule("empty, or a header's name", _checked(str, lambda text: re.fullmatch(r"[A-Za-z0-9-]*", text) is not None))
IDENTITY = Rule(
    "empty, or up to 100 letters, digits, `.`, `_` or `-`",
    _checked(str, lambda text: re.fullmatch(r"[\w.-]{0,100}", text) is not None),
)
ENDPOINTS = Rule("empty, or `ADDRESS:PORT/EXPORTER_PORT` entries with commas between them", parse)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """The gateway: which pods there are, and how calls wait for them."""

    name: str = setting("PERCORE_GATEWAY_NAME", "", IDENTITY)
    """What pods call this gateway. Empty: the machine's name. A part that differs for each life of HAProxy is added."""
    haproxy: str = setting("PERCORE_GATEWAY_HAPROXY", "haproxy", TEXT)
    """HAProxy's program, version 2.6."""
    service: str = setting("PERCORE_GATEWAY_SERVICE", "", TEXT)
    """The Kubernetes Service whose endpoints are the pods. Empty: one of the next two settings lists them."""
    namespace: str = setting("PERCORE_GATEWAY_NAMESPACE", "default", TEXT)
    """That Service's namespace."""
    endpoints: tuple[Endpoint, ...] = setting("PERCORE_GATEWAY_ENDPOINTS", "", ENDPOINTS)
    """Without Kubernetes: the pods, as `10.0.0.5:8080/9090,10.0.0.6:8080/9090`."""
    endpoints_file: Path = setting("PERCORE_GATEWAY_ENDPOINTS_FILE", "", PATH)
    """Without Kubernetes: a file with such entries, one a line. It may change: replace it in one piece, by renaming."""
    pod_port: int = setting("PERCORE_GATEWAY_POD_PORT", "8080", PORT)
    """In Kubernetes: the port on which pods take calls."""
    pod_exporter_port: int = setting("PERCORE_GATEWAY_POD_EXPORTER_PORT", "9090", PORT)
    """In Kubernetes: the port of the pods' exporters, for checks and for everything that is read only."""
    slots: int = setting("PERCORE_GATEWAY_SLOTS", "1000", _within(1, 10000))
    """The most pods at a time; each costs HAProxy some 20 KB, used or not."""
    interval: float = setting("PERCORE_GATEWAY_INTERVAL", "1", SECONDS)
    """How often the controller compares HAProxy with the endpoints though neither is known to have changed."""
    check_interval: float = setting("PERCORE_GATEWAY_CHECK_INTERVAL", "2", SECONDS)
    """How often a pod is asked whether its slot is open; eight times as often while it is not."""
    order_unit: float = setting("PERCORE_GATEWAY_ORDER_UNIT", "30", SECONDS)
    """Calls are served in the order of their arrival. Should calls wait without a break, that is exact for the next 2,000 calls
    at least, then to this many seconds for another 2,000 such units, and from then on for waits below 524 s only."""
    priority_header: str = setting("PERCORE_GATEWAY_PRIORITY_HEADER", "", HEADER)
    """A request header in which callers may set 1 to 9: higher ones are served first, and all before calls without it. Empty:
    there is no such header."""
    buffer_bytes: int = setting("PERCORE_GATEWAY_BUFFER_BYTES", "16384", _within(4096, 2**20))
    """What each waiting call holds in memory. A call that a pod turns away (503) is sent elsewhere only where it fits;
    one whose connection a pod refuses, which is the rule, always."""
    deletion_costs: str = setting("PERCORE_GATEWAY_DELETION_COSTS", "yes", _one_of("yes", "no"))
    """In Kubernetes: whether to mark busy pods, so that scaling in takes idle ones. Needs the right to patch pods."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of a gateway, by group."""

    gateway: GatewaySettings
    server: ServerSettings
    limits: LimitSettings


GROUPS: dict[str, type[Any]] = {"gateway": GatewaySettings, "server": ServerSettings, "limits": LimitSettings}


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read every setting from ``environ`` (the process's own by default), as ``percore.settings.load`` does."""
    environ = os.environ if environ is None else environ
    declared = {name: fields(group) for name, group in GROUPS.items()}
    known = {each.metadata["key"] for group in declared.values() for each in group}
    for key in environ:
        if key.startswith("PERCORE_") and key not in known:
            raise SettingsError(f"{key}={environ[key]!r}: no such setting; known: {', '.join(sorted(known))}")
    groups = {name: GROUPS[name](**{each.name: _read(environ, each) for each in group}) for name, group in declared.items()}
    settings = Settings(**groups)
    _check_source(settings.gateway)
    return settings


def _check_source(gateway: GatewaySettings) -> None:
    given = [bool(gateway.service), bool(gateway.endpoints), gateway.endpoints_file != Path()]
    if sum(given) > 1:
        keys = "PERCORE_GATEWAY_SERVICE, PERCORE_GATEWAY_ENDPOINTS and PERCORE_GATEWAY_ENDPOINTS_FILE"
        raise SettingsError(f"{keys}: set one of them, not {sum(given)}")
