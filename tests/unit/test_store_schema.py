"""The migrations give exactly the tables that the code uses."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from percore.gateway.store.database import FILE, Database
from percore.gateway.store.schema import metadata


def test_the_migrations_give_the_tables_of_the_code(tmp_path: Path) -> None:
    database = Database(tmp_path)
    assert database.open()
    database.close()
    with sa.create_engine(f"sqlite:///{tmp_path / FILE}").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() == 2
