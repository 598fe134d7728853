"""Stored calls, their runs, their bodies, and messages about their ends."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("machine", sa.String(128), nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
    )
    op.create_table(
        "calls",
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
        sa.Column("start_by", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("expires_at", sa.Double),
        sa.Column("erased", sa.Boolean, nullable=False),
        sa.Column("run", sa.SmallInteger, nullable=False),
        sa.Column("pods_lost", sa.SmallInteger, nullable=False),
        sa.Column("gateways_lost", sa.SmallInteger, nullable=False),
        sa.Column("status", sa.SmallInteger),
        sa.Column("phrase", sa.LargeBinary),
        sa.Column("headers", sa.LargeBinary),
        sa.Column("result_bytes", NUMBER, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_calls_state_priority_sequence", "calls", ["state", "priority", "sequence"])
    op.create_index("ix_calls_owner_state", "calls", ["owner", "state"])
    op.create_index("ix_calls_expires_at", "calls", ["expires_at"])
    unowned = sa.text("owner IS NULL AND state = 'queued'")
    op.create_index("ix_calls_unowned", "calls", ["sequence"], sqlite_where=unowned, postgresql_where=unowned)
    call = sa.ForeignKey("calls.sequence", ondelete="CASCADE")
    op.create_table(
        "runs",
        sa.Column("call", NUMBER, call, primary_key=True),
        sa.Column("number", sa.SmallInteger, primary_key=True),
        sa.Column("pod", sa.String(253), nullable=False),
        sa.Column("gateway", sa.String(128), nullable=False),
        sa.Column("began_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("end", sa.String(16)),
    )
    op.create_table(
        "parts",
        sa.Column("call", NUMBER, sa.ForeignKey("calls.sequence", ondelete="CASCADE"), primary_key=True),
        sa.Column("kind", sa.SmallInteger, primary_key=True),
        sa.Column("run", sa.SmallInteger, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        # PostgreSQL reads a part of a value alone only if the value is not compressed.
        op.execute("ALTER TABLE parts ALTER COLUMN data SET STORAGE EXTERNAL")
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.String(320), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("next_at", sa.Double, nullable=False),
    )
    op.create_index("ix_webhooks_next_at", "webhooks", ["next_at"])
