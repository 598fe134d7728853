"""The tables, the same for SQLite and PostgreSQL.

Times are Unix seconds. Bodies are rows of ``parts``, so that a call and its body, or a result and its body, become visible in
one transaction. Nothing is kept outside of the database: docs/decisions/0023.
"""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa

REQUEST, RESULT = 0, 1
"""``parts.kind``"""


class State(StrEnum):
    """The state of a stored call.

    Only its gateway sees ``receiving``, because the receipt is not sent yet.
    """

    RECEIVING = "receiving"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN = (State.QUEUED, State.RUNNING, State.CANCELLING)
FINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED)


class RunEnd(StrEnum):
    """How a run ended."""

    ANSWERED = "answered"
    POD_LOST = "pod-lost"
    GATEWAY_LOST = "gateway-lost"
    RUN_TIMEOUT = "run-timeout"
    CANCELLED = "cancelled"
    NOT_BEGUN = "not-begun"
    """The worker was lost before the last byte of the call."""


LOST = (RunEnd.POD_LOST, RunEnd.GATEWAY_LOST)
"""Ends of runs that may still compute, because the worker may not have noticed yet that its connection is closed."""


metadata = sa.MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s"}
)
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TIME = sa.Double
LONGEST_HOST = 320
"""The most characters of a webhook's host and port."""
PIECE_BYTES = 512 * 1024
"""The largest piece of a body in one row of ``parts``."""

gateways = sa.Table(
    "gateways",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("machine", sa.String(128), nullable=False),
    sa.Column("seen_at", TIME, nullable=False),
)
"""Gateways that own calls. ``machine`` is host name, boot id and port. By it a gateway finds the previous gateway at its
own address."""

UNOWNED = sa.text("owner IS NULL AND state = 'queued'")
"""Queued calls that no gateway owns. There are few, and each gateway looks for them every second. So they have an index."""

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("sequence", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("owner", sa.String(32)),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("caller", sa.LargeBinary),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("client", sa.String(64), nullable=False),
    sa.Column("head", sa.LargeBinary, nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("request_bytes", NUMBER, nullable=False),
    sa.Column("idempotency_key", sa.LargeBinary, unique=True),
    sa.Column("digest", sa.LargeBinary),
    sa.Column("webhook", sa.Text),
    sa.Column("max_runs", sa.SmallInteger, nullable=False),
    sa.Column("start_by", TIME),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("started_at", TIME),
    sa.Column("finished_at", TIME),
    sa.Column("expires_at", TIME),
    sa.Column("erased", sa.Boolean, nullable=False, default=False),
    sa.Column("run", sa.SmallInteger, nullable=False, default=0),
    sa.Column("pods_lost", sa.SmallInteger, nullable=False, default=0),
    sa.Column("gateways_lost", sa.SmallInteger, nullable=False, default=0),
    sa.Column("status", sa.SmallInteger),
    sa.Column("phrase", sa.LargeBinary),
    sa.Column("headers", sa.LargeBinary),
    sa.Column("result_bytes", NUMBER, nullable=False, default=0),
    sa.Index(None, "state", "priority", "sequence"),
    sa.Index(None, "owner", "state"),
    sa.Index(None, "expires_at"),
    sa.Index("ix_calls_unowned", "sequence", sqlite_where=UNOWNED, postgresql_where=UNOWNED),
    sqlite_autoincrement=True,
)
"""One row for each call. ``run`` is the number of its last run. Only this run may write the final state."""

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("call", NUMBER, sa.ForeignKey("calls.sequence", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.SmallInteger, primary_key=True),
    sa.Column("pod", sa.String(253), nullable=False),
    sa.Column("gateway", sa.String(128), nullable=False),
    sa.Column("began_at", TIME, nullable=False),
    sa.Column("ended_at", TIME),
    sa.Column("end", sa.String(16)),
)

parts = sa.Table(
    "parts",
    metadata,
    sa.Column("call", NUMBER, sa.ForeignKey("calls.sequence", ondelete="CASCADE"), primary_key=True),
    sa.Column("kind", sa.SmallInteger, primary_key=True),
    sa.Column("run", sa.SmallInteger, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
"""Bodies, in pieces. ``run`` is 0 for a request."""

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("host", sa.String(LONGEST_HOST), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("next_at", TIME, nullable=False),
    sa.Index(None, "next_at"),
)
"""The outbox: messages that are not delivered yet."""
