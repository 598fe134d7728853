"""The gateway's settings: the environment, read once, in the style of ``percore.settings``.

``PERCORE_APP``, ``PERCORE_HOST``, ``PERCORE_PORT``, ``PERCORE_STATUS_PORT``, ``PERCORE_STATE_DIR``, ``PERCORE_LOG_LEVEL`` and
the limits mean here what they mean in a pod, so that one set of values serves both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from percore.errors import SettingsError
from percore.gateway.endpoints import Endpoint, parse
from percore.gateway.store.webhook_hosts import Host
from percore.gateway.store.webhooks import HOSTS_RULE, SECRETS_RULE, parse_hosts, parse_secrets
from percore.settings import (
    PATH,
    PORT,
    SECONDS,
    TEXT,
    YES_OR_NO,
    AppSettings,
    LimitSettings,
    Rule,
    ServerSettings,
    checked,
    keys,
    one_of,
    read_groups,
    setting,
    within,
)

HEADER = Rule("empty, or a header's name", checked(str, lambda text: re.fullmatch(r"[A-Za-z0-9-]*", text) is not None))
DELAY = Rule("seconds, from 0 to 600", checked(float, lambda value: 0 <= value <= 600))
IDENTITY = Rule(
    "empty, or up to 100 letters, digits, `.`, `_` or `-`",
    checked(str, lambda text: re.fullmatch(r"[\w.-]{0,100}", text) is not None),
)
LABEL = r"[A-Za-z0-9]([A-Za-z0-9_./-]*[A-Za-z0-9])?=([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?"
SELECTOR = Rule(
    "empty, or `LABEL=VALUE` entries with commas between them",
    checked(str, lambda text: re.fullmatch(rf"({LABEL}(,{LABEL})*)?", text) is not None),
)


DATABASE = Rule(
    "empty, or a URL that begins with `postgresql://`",
    checked(str, lambda text: re.fullmatch(r"(postgres(ql)?://\S+)?", text) is not None),
    is_secret=True,
)


WEBHOOK_HOSTS = Rule(HOSTS_RULE, parse_hosts)
WEBHOOK_SECRETS = Rule(SECRETS_RULE, parse_secrets, is_secret=True)


def _paths(text: str) -> frozenset[str]:
    paths = [each.strip() for each in text.split(",")] if text.strip() else []
    if not all(re.fullmatch(r"/[^?#\s]*", path) for path in paths):
        raise ValueError
    return frozenset(paths)


PATHS = Rule("empty, or paths that begin with `/`, with commas between them", _paths)
ENDPOINTS = Rule("empty, or `ADDRESS:PORT/STATUS_PORT` entries with commas between them", parse)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """The gateway, on a cluster and on one machine."""

    name: str = setting("PERCORE_GATEWAY_NAME", "", IDENTITY)
    """The name of this gateway in the workers' log. Empty: the machine's name."""
    service: str = setting("PERCORE_GATEWAY_SERVICE", "", TEXT)
    """The Kubernetes Service whose endpoints are the pods. Empty: `PERCORE_GATEWAY_ENDPOINTS` or
    `PERCORE_GATEWAY_ENDPOINTS_FILE` lists them."""
    namespace: str = setting("PERCORE_GATEWAY_NAMESPACE", "default", TEXT)
    """That Service's namespace."""
    endpoints: tuple[Endpoint, ...] = setting("PERCORE_GATEWAY_ENDPOINTS", "", ENDPOINTS)
    """Without Kubernetes: the pods, as `10.0.0.5:8080/9090,10.0.0.6:8080/9090`. `percore serve` ignores it: its workers are
    its pods."""
    endpoints_file: Path = setting("PERCORE_GATEWAY_ENDPOINTS_FILE", "", PATH)
    """Without Kubernetes: a file with such entries, one in each line. To change it, write a new file and rename it, so that
    the gateway never reads half of it."""
    pod_port: int = setting("PERCORE_GATEWAY_POD_PORT", "8080", PORT)
    """In Kubernetes: the port on which pods take calls."""
    pod_status_port: int = setting("PERCORE_GATEWAY_POD_STATUS_PORT", "9090", PORT)
    """In Kubernetes: the port of the pods' status servers. The gateway asks them which models are
    served, and whether the worker computes."""
    connections: int = setting("PERCORE_GATEWAY_CONNECTIONS", "4096", within(1, 2**20))
    """How many client connections the gateway accepts, besides one for each queued call. When the bound is reached, the
    gateway closes the connection that has been idle longest. If none is idle, further connections wait in the kernel."""
    idle_timeout: float = setting("PERCORE_GATEWAY_IDLE_TIMEOUT", "620", SECONDS)
    """How long a connection may be idle between requests. It must be longer than the idle timeout of load balancers in
    front."""
    uploads: int = setting("PERCORE_GATEWAY_UPLOADS", "256", within(1, 65535))
    """How many bodies over 64 KiB, or of unknown length, may be received at once. The next one gets 503. Other bodies do
    not count."""
    upload_bytes: int = setting("PERCORE_GATEWAY_UPLOAD_BYTES", "1073741824", within(1, 2**50))
    """Bytes that all bodies counted by `PERCORE_GATEWAY_UPLOADS` may have together while they are received. Beyond it callers
    get 503. A body of unknown length counts with the bytes that have arrived. A single such body may be larger."""
    spool_dir: Path = setting("PERCORE_GATEWAY_SPOOL_DIR", "", PATH)
    """Folder on a disk for bodies of queued calls, and for answers that clients read slowly. Its files have no names,
    so `ls` does not show them.
    Empty: the state directory."""
    spool_bytes: int = setting("PERCORE_GATEWAY_SPOOL_BYTES", "2147483648", within(0, 2**50))
    """Bytes that these files may have together. Beyond it callers get 503."""
    spool_memory_bytes: int = setting("PERCORE_GATEWAY_SPOOL_MEMORY_BYTES", "67108864", within(0, 2**40))
    """Bytes of bodies and answers that may stay in memory. Bodies and answers over 64 KiB may use half of it. If one has no
    room in memory, it goes to a file."""
    shutdown_delay: float = setting("PERCORE_GATEWAY_SHUTDOWN_DELAY", "0", DELAY)
    """Seconds from SIGTERM to closing the listener. In this time load balancers see that the gateway is not ready. On one
    machine this time is part of `PERCORE_SHUTDOWN_TIMEOUT`."""
    priority_header: str = setting("PERCORE_GATEWAY_PRIORITY_HEADER", "", HEADER)
    """A request header in which callers may set a priority from 1 to 9. Calls with a higher priority are served first.
    Calls without the header are served last. Empty: there is no such header."""
    caller_header: str = setting("PERCORE_GATEWAY_CALLER_HEADER", "", HEADER)
    """A request header that identifies the caller. With it callers take turns: each has one call in each round of the queue.
    The proxy in front must set this header, because callers can send any value. Empty: the order is that of arrival."""
    calls_enabled: bool = setting("PERCORE_GATEWAY_CALLS_ENABLED", "yes", YES_OR_NO)
    """Whether callers can [store calls](stored-calls.md) by `Prefer: respond-async`. A folder or a database is needed too."""
    calls_dir: Path = setting("PERCORE_GATEWAY_CALLS_DIR", "", PATH)
    """Folder for stored calls (SQLite), on a disk that keeps its files when the machine or the pod restarts. One gateway at
    a time uses it. Empty: `percore serve` takes `percore/calls-PORT` in `$XDG_STATE_HOME` or `~/.local/state`; on a cluster
    calls are not stored."""
    calls_database: str = setting("PERCORE_GATEWAY_CALLS_DATABASE", "", DATABASE)
    """URL of a PostgreSQL database for stored calls instead of a folder: `postgresql://USER:PASSWORD@HOST/NAME`. Several
    gateways share it."""
    calls_limit: int = setting("PERCORE_GATEWAY_CALLS_LIMIT", "10000", within(1, 10**7))
    """How many stored calls may be unfinished. The next one gets 429."""
    calls_bytes: int = setting("PERCORE_GATEWAY_CALLS_BYTES", "10737418240", within(1, 2**50))
    """Bytes that the bodies of stored calls and the results may have together. Beyond it callers get 503, and a call with a
    large result is `failed` with 507."""
    calls_free_bytes: int = setting("PERCORE_GATEWAY_CALLS_FREE_BYTES", "536870912", within(0, 2**50))
    """Bytes that must stay free on the disk of the folder; otherwise callers get 503, and large results 507."""
    calls_retention: float = setting("PERCORE_GATEWAY_CALLS_RETENTION", "86400", SECONDS)
    """How long a stored call and its result are kept after its end. For a week after that, requests about the call get 410,
    and then 404."""
    calls_max_runs: int = setting("PERCORE_GATEWAY_CALLS_MAX_RUNS", "2", within(1, 10))
    """After this many pods were lost while they computed a stored call, the call has failed. Losses of a gateway do not count.
    A caller may set another number."""
    webhook_hosts: tuple[Host, ...] = setting("PERCORE_GATEWAY_WEBHOOK_HOSTS", "", WEBHOOK_HOSTS)
    """Hosts that [webhooks](webhooks.md) may be sent to, as `receiver.example.com,*.example.org,10.0.0.0/8`. Private addresses
    must be listed as addresses or networks. Empty: no webhooks are sent."""
    webhook_secrets: tuple[str, ...] = setting("PERCORE_GATEWAY_WEBHOOK_SECRETS", "", WEBHOOK_SECRETS)
    """One or two secrets that sign webhooks, in the format of Standard Webhooks: `whsec_` and base64. If there are two,
    both sign. Use two while you rotate them."""
    webhook_timeout: float = setting("PERCORE_GATEWAY_WEBHOOK_TIMEOUT", "15", SECONDS)
    """How long one attempt to send a webhook may take."""
    health_paths: frozenset[str] = setting("PERCORE_GATEWAY_HEALTH_PATHS", "", PATHS)
    """Paths that the gateway answers itself: 200 while it takes calls, 503 otherwise. Such a request is never a call, whatever
    its method. For load balancers that probe a fixed path, such as `/`. `/-/ready` needs no entry."""
    deletion_costs: str = setting("PERCORE_GATEWAY_DELETION_COSTS", "yes", one_of("yes", "no"))
    """In Kubernetes: whether pods that compute get a deletion cost, so that scaling in removes free pods first. Needs the
    rights to list and to patch pods."""
    pod_selector: str = setting("PERCORE_GATEWAY_POD_SELECTOR", "", SELECTOR)
    """In Kubernetes: labels of the pods. The gateway reads deletion costs of pods with these labels only. Empty: it lists all
    pods of the namespace."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of a gateway, by group."""

    gateway: GatewaySettings
    app: AppSettings
    server: ServerSettings
    limits: LimitSettings


GROUPS: dict[str, type[Any]] = {
    "gateway": GatewaySettings,
    "app": AppSettings,
    "server": ServerSettings,
    "limits": LimitSettings,
}


def load(environ: Mapping[str, str] | None = None, *, on_machine: bool = False) -> Settings:
    """Read the gateway's settings, as ``percore.settings.read_groups`` does.

    ``on_machine``: on one machine the workers have the same environment, so it may have settings that only they read.
    """
    others = keys() if on_machine else frozenset[str]()
    settings = Settings(**read_groups(GROUPS, environ, others.__contains__))
    _check_source(settings.gateway)
    if settings.gateway.webhook_hosts and not settings.gateway.webhook_secrets:
        raise SettingsError("PERCORE_GATEWAY_WEBHOOK_HOSTS is set, so PERCORE_GATEWAY_WEBHOOK_SECRETS must be set too")
    if settings.gateway.calls_database and settings.gateway.calls_dir != Path():
        raise SettingsError("PERCORE_GATEWAY_CALLS_DIR and PERCORE_GATEWAY_CALLS_DATABASE: set one of them")
    return settings


def _check_source(gateway: GatewaySettings) -> None:
    given = [bool(gateway.service), bool(gateway.endpoints), gateway.endpoints_file != Path()]
    if sum(given) > 1:
        keys = "PERCORE_GATEWAY_SERVICE, PERCORE_GATEWAY_ENDPOINTS and PERCORE_GATEWAY_ENDPOINTS_FILE"
        raise SettingsError(f"{keys}: set one of them, not {sum(given)}")
