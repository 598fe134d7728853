"""Webhooks: the message to a receiver about the end of a call, by Standard Webhooks, and the times of its attempts.

``webhook_hosts`` decides on receivers, ``webhook_post`` sends one webhook, ``webhook_sender`` sends all due webhooks.
"""

from __future__ import annotations

import base64
import http.client
import random
import re
import socket
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import SplitResult, urlsplit

from standardwebhooks import Webhook

from percore import __version__
from percore.errors import BadInput, SettingsError
from percore.gateway.store.schema import LONGEST_HOST
from percore.gateway.store.webhook_hosts import Host, allows_address, allows_host, parse_hosts
from percore.gateway.store.webhook_post import AddressRefused, AnswerTooLarge, Target, post

__all__ = ["Delivery", "Outcome", "WebhookSettings", "check_url", "next_attempt", "parse_hosts", "parse_secrets", "send"]

HEADER = "Percore-Webhook"
NETLOC = re.compile(r"(.*@)?(\[[^\[\]]*\]|[^\[\]:]*)(:[0-9]*)?")
"""User, host and port. Python's parser also takes text between an IPv6 address and the port."""
LONGEST_URL = 2048
SHOWN_URL = 200
SECRET_PREFIX = "whsec_"  # noqa: S105 - not a secret, only the prefix of each secret
SECRET_BYTES = range(24, 65)
"""The sizes that Standard Webhooks allows."""
MOST_SECRETS = 2
SECRETS_RULE = "empty, or one or two secrets with a comma between them: `whsec_` and 24 to 64 bytes in base64"
HOSTS_RULE = (
    "empty, or hosts with commas between them: `receiver.example.com`, `*.example.com`, an IP address or a network as "
    "`10.0.0.0/8`, each alone or with `:PORT`"
)
RESOLVE_SECONDS = 60.0
"""More time than the system needs to resolve a name, or to fail."""

DELAYS = (5.0, 30.0, 2 * 60.0, 10 * 60.0, 30 * 60.0, 3600.0, 2 * 3600.0, 4 * 3600.0)
"""Seconds from each failed attempt to the next one. The last delay repeats."""
JITTER = 0.2
"""Each delay gets longer by a random part, at most this fraction of it. So deliveries that failed together are not sent again
together."""
GIVE_UP_SECONDS = 24 * 3600.0
LONGEST_RETRY_AFTER = DELAYS[-1]

FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (AddressRefused, "the host has no address that webhooks may be sent to"),
    (socket.gaierror, "the host's name cannot be resolved"),
    (ssl.SSLCertVerificationError, "the receiver's certificate is not trusted"),
    (ssl.SSLError, "no TLS with the receiver"),
    (TimeoutError, "no answer in time"),
    (AnswerTooLarge, "the answer's status and headers are too large"),
    (OSError, "no connection, or it broke"),
    (Exception, "the answer is not HTTP"),
)
"""An error is logged with the sentence of the first class that it is an instance of."""


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """The receivers of webhooks, the secrets that sign them, and the timeout."""

    secrets: tuple[str, ...] = field(repr=False)
    """Secrets as Standard Webhooks writes them (`whsec_...`). Each of them signs every webhook. There are two
    while you rotate them."""
    hosts: tuple[Host, ...]
    """The receivers: names, names below a name (`*.example.com`), addresses and networks, each with a port or for all ports.
    Only an entry that is an address or a network allows a private address. Empty: webhooks are off."""
    timeout_seconds: float
    """How long one attempt may take: connecting, TLS, sending and the answer. The time to resolve the name is added."""

    def __post_init__(self) -> None:
        """Raise SettingsError if webhooks would be sent without a signature."""
        if self.hosts and not self.secrets:
            raise SettingsError("webhooks: hosts are listed, so a secret that signs must be set, and there is none")

    @property
    def lease_seconds(self) -> float:
        """How long a delivery belongs to the gateway that took it, in seconds. One attempt never takes longer."""
        return self.timeout_seconds + RESOLVE_SECONDS


def parse_secrets(text: str) -> tuple[str, ...]:
    """Return secrets with commas between them; raise ValueError, which does not show them, if one breaks the rule."""
    secrets = tuple(each.strip() for each in text.split(",")) if text.strip() else ()
    if len(secrets) > MOST_SECRETS or not all(_is_secret(each) for each in secrets):
        raise ValueError(f"must be {SECRETS_RULE}")
    return secrets


def _is_secret(text: str) -> bool:
    try:
        # Strict, because libraries of some languages are.
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        return False
    return text.startswith(SECRET_PREFIX) and len(key) in SECRET_BYTES


@dataclass(slots=True)
class Delivery:
    """One webhook to deliver."""

    id: str
    """The header `webhook-id`, the same for every attempt. It has no dot."""
    url: str
    payload: bytes
    """UTF-8."""
    attempts: int
    """How many attempts have been made."""
    created: float
    """When the call ended, in Unix seconds."""

    @property
    def host(self) -> str:
        """Host and port. If a receiver does not answer, only deliveries to the same host are delayed."""
        return host_of(self.url)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one attempt."""

    delivered: bool
    status: int | None
    """None: there was no answer."""
    reason: str
    """One short sentence for the log. It has no secret, no part of the URL's query, and no text from the receiver."""
    retry_after: float | None = None
    """Seconds that the receiver asks for."""
    gone: bool = False
    """Whether the receiver wants no more webhooks. Then it is not sent again."""


def host_of(url: str) -> str:
    """Return host and port of a URL in one spelling. A store keeps it with the delivery, to select deliveries by host."""
    parts, host, port = _parts(url)
    return host if parts.port is None else f"{host}:{port}"


def check_url(url: str, settings: WebhookSettings) -> None:
    """Raise BadInput if a webhook may not be sent to this URL. The address is checked when the webhook is sent."""
    if not settings.hosts:
        raise BadInput(f"{HEADER}: webhooks are off on this service, so it must be left out; it is {_shown(url)!r}")
    try:
        _target(url, settings)
    except ValueError as error:
        raise BadInput(f"{HEADER}: {error}; it is {_shown(url)!r}") from None


def _shown(url: str) -> str:
    """Return the URL without parts that may be secret."""
    return re.sub(r"//[^/]*@", "//", url.partition("?")[0])[:SHOWN_URL]


def _target(url: str, settings: WebhookSettings) -> Target:
    """Return the target of a URL. If a webhook may not be sent there, raise ValueError, which says the rule."""
    if not re.fullmatch(rf"https?://[!-~]{{1,{LONGEST_URL}}}", url, re.IGNORECASE) or len(url) > LONGEST_URL or "\\" in url:
        raise ValueError(f"must be a URL with http or https, of up to {LONGEST_URL} printable ASCII characters")
    if "#" in url:
        raise ValueError("must have no fragment")
    parts, host, port = _parts(url)
    if "@" in parts.netloc:
        raise ValueError("must have no user name and no password")
    if not allows_host(settings.hosts, host, port):
        raise ValueError("must have a host and a port that the operator of this service allows")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme == "https", host, port, path)


def _parts(url: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("must have a host, and a port from 1 to 65535 or none") from None
    if not host or port == 0 or len(parts.netloc) > LONGEST_HOST or not NETLOC.fullmatch(parts.netloc):
        raise ValueError("must have a host, and a port from 1 to 65535 or none")
    return parts, host, port or (443 if parts.scheme == "https" else 80)


def send(delivery: Delivery, settings: WebhookSettings) -> Outcome:
    """Make one attempt; call it in a thread. Check the URL again, because the operator may have changed the list since."""
    ends = time.monotonic() + settings.timeout_seconds
    try:
        target = _target(delivery.url, settings)
    except ValueError as error:
        return Outcome(False, None, f"the URL {error}")
    headers = _headers(delivery, settings)
    try:
        status, retry_after = post(target, partial(allows_address, settings.hosts), delivery.payload, headers, ends)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Outcome(False, None, _words(error))
    return _outcome(status, retry_after)


def _headers(delivery: Delivery, settings: WebhookSettings) -> dict[str, str]:
    now = datetime.now(UTC)
    text = delivery.payload.decode()
    return {
        "Content-Type": "application/json",
        "User-Agent": f"percore/{__version__}",
        "Connection": "close",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(delivery.id, now, text) for secret in settings.secrets),
    }


def _outcome(status: int, retry_after: str | None) -> Outcome:
    if 200 <= status < 300:
        return Outcome(True, status, f"the receiver answered {status}")
    if status == http.HTTPStatus.GONE:
        return Outcome(False, status, "the receiver answered 410: it wants no more", gone=True)
    if 300 <= status < 400:
        return Outcome(False, status, f"the receiver answered {status}, and no redirect is followed")
    return Outcome(False, status, f"the receiver answered {status}", _seconds(retry_after) if retry_after else None)


def _seconds(retry_after: str) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, by a number or a date; None if it has neither."""
    if re.fullmatch(r"\d{1,9}", retry_after, re.ASCII):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _words(error: Exception) -> str:
    """Return a sentence for an error. It has no text from the receiver, so the message of an HTTPException is left out."""
    words = next(words for kind, words in FAILURES if isinstance(error, kind))
    detail = getattr(error, "verify_message", None) or getattr(error, "strerror", None)
    return f"{words}: {detail}" if detail else words


def next_attempt(attempts: int, created: float, now: float, retry_after: float | None = None) -> float | None:
    """Return the time of the next attempt in Unix seconds; None if there is none, because a day has passed.

    ``retry_after``: seconds that the receiver asked for. They can make a delay longer, within bounds, but never shorter.
    """
    delay = max(DELAYS[min(max(attempts, 1), len(DELAYS)) - 1], min(retry_after or 0.0, LONGEST_RETRY_AFTER))
    at = now + delay * (1 + random.uniform(0, JITTER))  # noqa: S311 - a spread, not a secret
    return at if at <= created + GIVE_UP_SECONDS else None
