"""Migrations of the schema, run by Alembic when a gateway opens its database."""
