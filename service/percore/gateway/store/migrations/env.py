"""What Alembic runs: the migrations, on the connection that ``database`` gives it."""

from __future__ import annotations

from alembic import context

from percore.gateway.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
