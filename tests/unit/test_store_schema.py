"""The migrations create exactly the tables of ``schema``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from percore.gateway.store.database import Database
from percore.gateway.store.schema import metadata

from tests.service.postgresql import PostgreSQL, programs


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Database, str]]:
    if request.param == "sqlite":
        yield Database(tmp_path), f"sqlite:///{tmp_path / 'calls.sqlite3'}"
        return
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server on this machine: Debian's package `postgresql` has it")
    with PostgreSQL(found) as server:
        url = server.create("calls")
        yield Database(None, url), url.replace("postgresql:", "postgresql+psycopg:")


def test_the_migrations_make_exactly_the_tables_of_the_schema(database: tuple[Database, str]) -> None:
    store, url = database
    assert store.open()
    store.close()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
            assert connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() == 2
    engine.dispose()
